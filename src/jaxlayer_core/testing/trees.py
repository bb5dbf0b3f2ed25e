"""Trees of arrays: taken apart, cast, and made a loss of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def loss_of(outputs: Any) -> jax.Array:
    """A loss for any model: of each inexact output the mean squared distance from one."""
    total = jnp.zeros(())
    for leaf in map(jnp.asarray, jax.tree.leaves(outputs)):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size:
            distance = leaf - 1
            square = (distance * jnp.conj(distance)).real
            total += jnp.mean(square.astype(jnp.float32))
    return total


def split(tree: Any, chosen: Callable[[Any], bool]) -> tuple[list[Any], Callable[[Any], Any]]:
    """The chosen leaves of a tree, and the function that puts others into their places.

    Example:
        >>> ones, put_back = split((1, "a"), lambda leaf: leaf == 1)
        >>> put_back([2])
        (2, 'a')
    """
    leaves, treedef = jax.tree.flatten(tree)
    choice = [chosen(leaf) for leaf in leaves]

    def put_back(values: Sequence[Any]) -> Any:
        remaining = iter(values)
        merged = [
            next(remaining) if yes else leaf for leaf, yes in zip(leaves, choice, strict=True)
        ]
        return jax.tree.unflatten(treedef, merged)

    return [leaf for leaf, yes in zip(leaves, choice, strict=True) if yes], put_back


def is_array(leaf: Any) -> bool:
    """Whether a leaf of the arguments is data."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf has a gradient."""
    return bool(jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.inexact))


def casted(tree: Any, dtype: Any) -> Any:
    """The tree with its floating leaves in another dtype; None keeps them."""

    def cast(leaf: Any) -> Any:
        floating = dtype is not None and jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)
        return jnp.asarray(leaf, dtype) if floating else leaf

    return jax.tree.map(cast, tree)
