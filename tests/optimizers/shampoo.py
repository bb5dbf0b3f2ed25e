"""Shampoo (Gupta, Koren, Singer 2018, https://arxiv.org/abs/1802.09568), as a user writes it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class ShampooState(NamedTuple):
    """For each weight the statistics that stand in its place: matrices of other shapes."""

    statistics: Any


def shampoo(learning_rate, epsilon=1e-4):
    """Algorithm 1 for matrices: a preconditioner for each dimension. Others have a diagonal."""

    def begin(param):
        if param.ndim != 2:
            return (jnp.full_like(param, epsilon),)
        left, right = (epsilon * jnp.eye(size, dtype=param.dtype) for size in param.shape)
        return {"left": left, "right": right}

    def init(params):
        return ShampooState(jax.tree.map(begin, params))

    def update(updates, state, params=None):
        statistics = jax.tree.map(_added, updates, state.statistics)
        steps = jax.tree.map(_preconditioned, updates, statistics)
        return jax.tree.map(lambda step: -learning_rate * step, steps), ShampooState(statistics)

    return optax.GradientTransformation(init, update)


def _added(gradient, statistics):
    if isinstance(statistics, tuple):
        return (statistics[0] + gradient**2,)
    return {
        "left": statistics["left"] + gradient @ gradient.T,
        "right": statistics["right"] + gradient.T @ gradient,
    }


def _preconditioned(gradient, statistics):
    if isinstance(statistics, tuple):
        return gradient / jnp.sqrt(statistics[0])
    return _root(statistics["left"]) @ gradient @ _root(statistics["right"])


def _root(matrix):
    """The inverse fourth root."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * values**-0.25) @ vectors.T
