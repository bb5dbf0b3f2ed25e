"""The state of a transformation as Keras variables."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import keras

from jaxlayer_core import paths, rng
from jaxlayer_core.leaves import is_array
from jaxlayer_core.paths import Path
from jaxlayer_core.pure import PyTree
from jaxlayer_core.variables import Slot, VariableTree
from jaxlayer_optax.weights import Weights


def create(state: PyTree, weights: Weights) -> VariableTree:
    """Makes variables of a state, under the name scope that is open.

    A leaf that is like a weight, such as its momentum, has the weight's path at the end of its
    own, and is laid out over devices as the weight is.

    Args:
        state: what a transformation's `init` gave.
        weights: for which.
    """
    named, treedef = paths.flatten(state)
    return VariableTree([_slot(path, leaf, weights) for path, leaf in named], treedef)


def _slot(path: Path, leaf: Any, weights: Weights) -> Slot:
    if not is_array(leaf):
        return Slot(path, static=leaf)
    key_impl = jax.random.key_impl(leaf) if rng.is_key(leaf) else None
    data = jax.random.key_data(leaf) if rng.is_key(leaf) else leaf
    # A copy: Keras donates the buffers of all variables, and a state may begin as the weights.
    value = jnp.array(data)
    position = weights.at_end_of(path)
    like = None if position is None else weights.variables[position]
    is_alike = like is not None and tuple(like.shape) == value.shape
    variable = _variable(path, value, getattr(like, "_layout", None) if is_alike else None)
    return Slot(path, variable=variable, key_impl=key_impl)


def _variable(path: Path, value: jax.Array, layout: Any) -> keras.Variable:
    with contextlib.ExitStack() as stack:
        for part in path[:-1]:
            stack.enter_context(keras.name_scope(part))
        return keras.Variable(
            value,
            dtype=value.dtype.name,
            trainable=False,
            autocast=False,
            layout=layout,
            name=path[-1] if path else "state",
        )
