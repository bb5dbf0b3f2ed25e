"""Modules that the tests share; a file, so that another process can import them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


class Normed(eqx.Module):
    """Batch statistics by the name "rows", dropout, a float that is no weight."""

    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    rate: float

    def __init__(self, key):
        self.linear = eqx.nn.Linear(3, 4, key=key)
        self.norm = eqx.nn.BatchNorm(4, axis_name="rows", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.rate = 2.0

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.linear(x), state)
        return self.rate * self.dropout(x, key=key), state

    def project(self, x):
        return self.linear(x)


class Kinds(eqx.Module):
    """All kinds of fields."""

    weight: jax.Array
    table: np.ndarray
    order: jax.Array
    rate: float
    size: int
    act: object
    name: str = eqx.field(static=True)
    shift: float = eqx.field(static=True)

    def __init__(self):
        self.weight = jnp.array([1.0, 2.0, 3.0])
        self.table = np.array([4.0, 5.0, 6.0], "float32")
        self.order = jnp.array([2, 0, 1])
        self.rate = 0.5
        self.size = 3
        self.act = jnp.tanh
        self.name = "kinds"
        self.shift = 7.0

    def __call__(self, x):
        return self.act(x[self.order] * self.weight + self.table) * self.rate + self.shift


class Noisy(eqx.Module):
    """Draws, takes a second input that all examples share."""

    scale: jax.Array

    def __init__(self, key):
        self.scale = jax.random.normal(key, (3,))

    def __call__(self, x, shared, *, key):
        return x * self.scale + shared + jax.random.normal(key, x.shape)
