"""Flax NNX's adapter keeps every property."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlayer_core.testing import AdapterConformance, ConformanceCase
from jaxlayer_flax import NnxAdapter, reseed

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
IDS = np.array([[1, 2, 0], [3, 0, 1], [2, 2, 1], [0, 3, 3]], "int32")


class losses(nnx.Variable):
    """Named as the collection that it makes."""


class Normed(nnx.Module):
    """Modes as attributes; losses sown."""

    def __init__(self, width, *, rngs):
        self.dense = nnx.Linear(3, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(self.norm(self.dense(x)))
        self.sow(losses, "activity", jnp.mean(x**2))
        return x


class Embedded(nnx.Module):
    """Two inputs, one of them ids and by keyword; a static option; polarity of its own."""

    def __init__(self, *, rngs):
        self.embed = nnx.Embed(4, 3, rngs=rngs)
        self.dense = nnx.Linear(3, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, ids=None, reduce="sum", deterministic=True, rngs=None):
        words = self.embed(ids)
        words = words.sum(axis=1) if reduce == "sum" else words.max(axis=1)
        x = self.dropout(x + words, deterministic=deterministic, rngs=rngs)
        return {"out": self.dense(x), "in": x}


class Counting(nnx.Module):
    """Keeps a cache, which inference writes too."""

    def __init__(self, *, rngs):
        self.dense = nnx.Linear(3, 2, rngs=rngs)
        self.seen = nnx.Cache(jnp.zeros((), jnp.int32))
        self.last = nnx.Cache(jnp.zeros((3,)))

    def __call__(self, x):
        mean = jnp.mean(x, axis=0).astype(jnp.float32)
        self.seen.copy_from(nnx.Cache(self.seen[...] + 1))  # as all versions of Flax can
        self.last.copy_from(nnx.Cache(0.5 * self.last[...] + mean))
        return self.dense(x + self.last[...].astype(x.dtype))


NAMES = {nnx.Param: "params", nnx.BatchStat: "batch_stats", nnx.Cache: "cache"}


def variables(module):
    """The variables by collection and path, as `FlaxLayer` names them."""
    return {
        (NAMES.get(type(node), type(node).__name__), *map(str, path)): node
        for path, node in nnx.iter_graph(module)
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.RngState)
    }


def values(module):
    """Their values as dicts of dicts: params, and the rest."""
    found = {"params": {}}
    for (collection, *parents, last), variable in variables(module).items():
        branch = found.setdefault(collection, {})
        for name in parents:
            branch = branch.setdefault(name, {})
        branch[last] = variable.get_value() if hasattr(variable, "get_value") else variable.value
    return {"params": found.pop("params")}, found


def case(name, model, args, kwargs, flag=None, takes_rngs=False):
    """A case, run as the documentation of `FlaxLayer` says."""

    def made(model, key):
        return nnx.clone(model) if isinstance(model, nnx.Module) else model(rngs=nnx.Rngs(key))

    def init(model, key, args, kwargs):
        return values(made(model, key))

    def apply(model, params, state, key, args, kwargs, training):
        module = made(model, jax.random.key(0))
        for (collection, *path), variable in variables(module).items():
            value = {**params, **state}[collection]
            for part in path:
                value = value[part]
            variable.copy_from(type(variable)(value))
        reseed(module, key)
        module.train() if training else module.eval()
        flags = {flag: not training} if flag else {}
        rngs = {"rngs": nnx.Rngs(key)} if takes_rngs else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*Using 'Module\.sow", DeprecationWarning)
            outputs = module(*args, **kwargs, **flags, **rngs)
        _, after = values(module)
        sown = after.pop("losses", {})
        written = {k: v for k, v in after.items() if training or k == "cache"}
        return outputs, {**state, **written}, sown

    return ConformanceCase(name, model, lambda: (args, kwargs), init, apply)


class TestNnxAdapter(AdapterConformance):
    adapter = NnxAdapter
    cases = (
        case("normed", lambda: functools.partial(Normed, 4), (X,), {}),
        case("normed instance", lambda: Normed(4, rngs=nnx.Rngs(0)), (X,), {}),
        case(
            "embedded", lambda: Embedded, (X,), {"ids": IDS, "reduce": "max"}, "deterministic", True
        ),
        case("counting", lambda: Counting, (X,), {}),
    )

    @staticmethod
    def given(params, state):
        return {"variables": {**params, **state}}
