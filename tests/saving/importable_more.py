"""As `importable.py`, of NNX, Equinox and Optax, which few tests need."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flax import nnx


class Gated(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.gate = nnx.Param(jnp.ones(3))

    def __call__(self, x):
        return self.dense(x) * self.gate


class Scaled(eqx.Module):
    linear: eqx.nn.Linear
    weight: jax.Array
    name: str = eqx.field(static=True)

    def __init__(self, key):
        self.linear, self.weight, self.name = eqx.nn.Linear(3, 2, key=key), jnp.ones(2), "scaled"

    def __call__(self, x):
        return self.linear(x) * self.weight


def clipped_sgd(learning_rate):
    return optax.chain(optax.clip(1.0), optax.sgd(learning_rate))
