"""Haiku's adapter keeps every property."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from jaxlayer_core.testing import AdapterConformance, ConformanceCase
from jaxlayer_haiku import HaikuAdapter

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
IDS = np.array([[1, 2, 0], [3, 0, 1], [2, 2, 1], [0, 3, 3]], "int32")


def init(model, key, args, kwargs):
    return model.init(key, *args, **kwargs)


def apply(model, params, state, key, args, kwargs, training):
    outputs, after = model.apply(params, state, key, *args, **kwargs)
    return outputs, after if training else state


def init_training(model, key, args, kwargs):
    return model.init(key, *args, **kwargs, is_training=True)


def apply_with_flag(model, params, state, key, args, kwargs, training):
    kwargs = {**kwargs, "is_training": training}
    return apply(model, params, state, key, args, kwargs, training)


def init_stateless(model, key, args, kwargs):
    return model.init(key, *args, **kwargs), {}


def apply_stateless(model, params, state, key, args, kwargs, training):
    return model.apply(params, key, *args, **kwargs), state


def normed():
    def forward(x, is_training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training)
        rate = 0.5 if is_training else 0.0
        return hk.Linear(2)(hk.dropout(hk.next_rng_key(), rate, x))

    return hk.transform_with_state(forward)


def recurrent():
    """Carries what it has seen from call to call, and has no modes."""

    def forward(x):
        core = hk.GRU(3)
        carry = hk.get_state("carry", (len(x), 3), init=jnp.zeros)
        outputs, carry = core(x, carry)
        hk.set_state("carry", carry)
        return {"out": outputs, "last": carry}

    return hk.transform_with_state(forward)


def embedded():
    """Two inputs, one of them ids and by keyword; a static option; noise in either mode."""

    def forward(x, ids=None, *, reduce="sum"):
        words = hk.Embed(4, 3)(ids)
        words = words.sum(axis=1) if reduce == "sum" else words.max(axis=1)
        noise = jax.random.normal(hk.next_rng_key(), x.shape, x.dtype) / 8
        return hk.Linear(2)(x + words + noise)

    return hk.transform(forward)


class TestHaikuAdapter(AdapterConformance):
    adapter = HaikuAdapter
    cases = (
        ConformanceCase("normed", normed, lambda: ((X,), {}), init_training, apply_with_flag),
        ConformanceCase("recurrent", recurrent, lambda: ((X,), {}), init, apply),
        ConformanceCase(
            "embedded",
            embedded,
            lambda: ((X,), {"ids": IDS, "reduce": "max"}),
            init_stateless,
            apply_stateless,
        ),
    )
