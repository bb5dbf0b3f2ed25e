"""Flax linen's adapter keeps every property."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxlayer_core import stream_key
from jaxlayer_core.testing import AdapterConformance, ConformanceCase
from jaxlayer_flax import LinenAdapter

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
IDS = np.array([[1, 2, 0], [3, 0, 1], [2, 2, 1], [0, 3, 3]], "int32")


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        self.sow("losses", "activity", jnp.mean(x**2))
        return nn.Dense(2)(x)


class Embedded(nn.Module):
    """Two inputs, one of them ids and by keyword; a static option; polarity of its own."""

    @nn.compact
    def __call__(self, x, ids=None, reduce="sum", deterministic=True):
        words = nn.Embed(4, 3)(ids)
        words = words.sum(axis=1) if reduce == "sum" else words.max(axis=1)
        x = nn.Dropout(0.5, rng_collection="noise")(x + words, deterministic=deterministic)
        return {"out": nn.Dense(2)(x), "in": x}


class Counting(nn.Module):
    """Keeps a cache, which inference writes too."""

    @nn.compact
    def __call__(self, x):
        seen = self.variable("cache", "seen", jnp.zeros, (), jnp.int32)
        last = self.variable("cache", "last", jnp.zeros, (3,))
        if not self.is_initializing():
            seen.value += 1
            last.value = 0.5 * last.value + jnp.mean(x, axis=0).astype(jnp.float32)
        return nn.Dense(2)(x + last.value.astype(x.dtype))


def case(name, module, args, kwargs, flag=None, inverted=False):
    """A case, run as the documentation of `FlaxLayer` says."""

    def flags(training):
        return {flag: training is not inverted} if flag else {}

    def init(model, key, args, kwargs):
        made = model.init(key, *args, **kwargs, **flags(True))
        made.pop("losses", None)
        return {"params": made.pop("params")}, made

    def apply(model, params, state, key, args, kwargs, training):
        outputs, written = model.apply(
            {**params, **state},
            *args,
            **kwargs,
            **flags(training),
            rngs={name: stream_key(key, name) for name in ("dropout", "noise")},
            mutable=[*state, "losses"] if training else ["cache", "losses"],
        )
        losses = written.pop("losses", {})
        return outputs, {**state, **written}, losses

    return ConformanceCase(name, module, lambda: (args, kwargs), init, apply)


class TestLinenAdapter(AdapterConformance):
    adapter = LinenAdapter
    cases = (
        case("normed", Normed, (X,), {}, "train"),
        case("embedded", Embedded, (X,), {"ids": IDS, "reduce": "max"}, "deterministic", True),
        case("counting", Counting, (X,), {}),
    )

    @staticmethod
    def given(params, state):
        return {"variables": {**params, **state}}
