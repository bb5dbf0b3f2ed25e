"""Equinox' adapter keeps every property."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlayer_core.testing import AdapterConformance, ConformanceCase
from jaxlayer_equinox import EquinoxAdapter

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
IDS = np.array([[1, 2, 0], [3, 0, 1], [2, 2, 1], [0, 3, 3]], "int32")


class Normed(eqx.Module):
    """Statistics of the batch, and dropout: two modes."""

    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.first = eqx.nn.Linear(3, 4, key=first)
        self.norm = eqx.nn.BatchNorm(4, axis_name="rows", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.last = eqx.nn.Linear(4, 2, key=last)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.first(x), state)
        return self.last(self.dropout(x, key=key)), state


class Embedded(eqx.Module):
    """Two inputs, one of them ids and by keyword; a static option; noise in either mode."""

    words: eqx.nn.Embedding
    last: eqx.nn.Linear
    order: np.ndarray

    def __init__(self, key):
        words, last = jax.random.split(key)
        self.words = eqx.nn.Embedding(4, 3, key=words)
        self.last = eqx.nn.Linear(3, 2, key=last)
        self.order = np.array([2, 0, 1])

    def __call__(self, x, ids=None, *, key, reduce="sum"):
        words = jax.vmap(self.words)(ids)
        words = words.sum(axis=0) if reduce == "sum" else words.max(axis=0)
        noise = jax.random.normal(key, x.shape, x.dtype) / 8
        return {"out": self.last((x + words + noise)[self.order]), "in": x}


class Counting(eqx.Module):
    """Takes whole batches, and keeps what it has seen."""

    seen: eqx.nn.StateIndex
    scale: jax.Array

    def __init__(self, key):
        self.seen = eqx.nn.StateIndex((jnp.zeros((), jnp.int32), jnp.zeros((3,))))
        self.scale = jax.random.normal(key, (3,))

    def __call__(self, x, state):
        count, last = state.get(self.seen)
        last = 0.5 * last + jnp.mean(x, axis=0).astype(jnp.float32)
        return (x + last.astype(x.dtype)) * self.scale, state.set(self.seen, (count + 1, last))


def case(name, factory, args, kwargs=None, state=(), batched=True):
    """A case, run as an Equinox user runs it.

    Args:
        name: of the case.
        factory: makes the module of a key.
        args: of the call.
        kwargs: of the call.
        state: paths of its state, in the order in which `eqx.nn.State` holds it.
        batched: whether it is written for one example.
    """

    def parts(key):
        module, held = eqx.nn.make_with_state(factory)(key)
        arrays, rest = eqx.partition(module, eqx.is_array)
        named = jax.tree_util.tree_flatten_with_path(arrays)
        paths = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in named[0]]
        return paths, arrays, rest, held

    def init(model, key, args, kwargs):
        paths, arrays, _, held = parts(key)
        params = dict(zip(paths, jax.tree.leaves(arrays), strict=True))
        return params, dict(zip(state, jax.tree.leaves(held), strict=True))

    def apply(model, params, before, key, args, kwargs, training):
        paths, arrays, rest, held = parts(jax.random.key(0))
        arrays = jax.tree.unflatten(jax.tree.structure(arrays), [params[path] for path in paths])
        held = jax.tree.unflatten(jax.tree.structure(held), [before[path] for path in state])
        module = eqx.nn.inference_mode(eqx.combine(arrays, rest), not training)

        def one(x, ids, key):
            given = {} if ids is None else {"ids": ids}
            own = (held,) if state else ()
            if batched:
                given["key"] = key
            outputs = module(x, *own, **{**kwargs, **given})
            return outputs if state else (outputs, held)

        x, ids = args[0], kwargs.get("ids")
        if not batched:
            outputs, after = one(x, ids, key)
        else:
            keys = jax.random.split(key, len(x))
            mapped = jax.vmap(one, (0, None if ids is None else 0, 0), (0, None), axis_name="rows")
            outputs, after = mapped(x, ids, keys)
        after = dict(zip(state, jax.tree.leaves(after), strict=True))
        return outputs, after if training else before

    return ConformanceCase(name, lambda: factory, lambda: (args, kwargs or {}), init, apply)


class TestEquinoxAdapter(AdapterConformance):
    adapter = EquinoxAdapter
    cases = (
        case(
            "normed",
            Normed,
            (X,),
            state=("norm/batch_counter", "norm/batch_state_index/0", "norm/batch_state_index/1"),
        ),
        case("embedded", Embedded, (X,), {"ids": IDS, "reduce": "max"}),
    )


@pytest.mark.slow
class TestBatchesThemselves(AdapterConformance):
    """Modules that are not mapped."""

    adapter = EquinoxAdapter(batch_axis=None)
    cases = (case("counting", Counting, (X,), state=("seen/0", "seen/1"), batched=False),)
