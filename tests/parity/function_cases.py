"""Pairs of init and apply: `jax.example_libraries.stax`, and what older code has."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
from jax.example_libraries import stax

from .cases import TRAIN, Cases, f32, floats, given

CASES = Cases("functions")
add = CASES.add


def _residual():
    """The block of JAX' old `examples/resnet50.py`."""
    main = stax.serial(
        stax.Conv(3, (1, 1)), stax.BatchNorm(), stax.Relu, stax.Conv(3, (3, 3), padding="SAME")
    )
    return stax.serial(stax.FanOut(2), stax.parallel(main, stax.Identity), stax.FanInSum, stax.Relu)


def _plain():
    """Functions as in the first chapters of JAX' own documentation."""

    def init(rng, x):
        first, last = jax.random.split(rng)
        return [
            (jax.random.normal(first, (x.shape[-1], 8)) / 4, jnp.zeros(8)),
            (jax.random.normal(last, (8, 2)) / 4, jnp.zeros(2)),
        ]

    def apply(params, x, scale=1.0):
        *hidden, (w, b) = params
        for weights, bias in hidden:
            x = jnp.tanh(x @ weights + bias)
        return (x @ w + b) * scale

    return types.SimpleNamespace(init=init, apply=apply)


def _noisy():
    def init(rng, x):
        return {"w": jax.random.normal(rng, x.shape[-1:])}

    def apply(params, x, rng, train=False):
        noise = jax.random.normal(rng, x.shape) if train else 0.0
        return x * params["w"] + noise

    return types.SimpleNamespace(init=init, apply=apply)


add(
    "stax MLP",
    lambda: stax.serial(stax.Dense(8), stax.Relu, stax.Dense(3), stax.LogSoftmax),
    floats(4, 5),
    sample=True,
)
add(
    "stax convolutions",
    lambda: stax.serial(
        stax.Conv(4, (3, 3), strides=(2, 2), padding="SAME"),
        stax.BatchNorm(),
        stax.Relu,
        stax.MaxPool((2, 2)),
        stax.Flatten,
        stax.Dense(2),
    ),
    floats(2, 9, 9, 3),
)
add(
    "stax residual block",
    lambda: stax.serial(_residual(), stax.AvgPool((2, 2))),
    floats(2, 6, 6, 3),
)
add(
    "stax dropout",
    lambda: stax.serial(stax.Dense(8), stax.Dropout(0.6), stax.Dense(2)),
    floats(4, 5),
)
add(
    "stax two inputs",
    lambda: stax.serial(
        stax.parallel(stax.Dense(4), stax.Dense(4)), stax.FanInConcat(), stax.Dense(2)
    ),
    given((f32(4, 3), f32(4, 5))),
)
add("init and apply of an object", _plain, floats(4, 3))
add("apply with rng and train", _noisy, floats(4, 3), **TRAIN)
