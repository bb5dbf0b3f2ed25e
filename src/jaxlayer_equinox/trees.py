"""A module's arrays by path, and the module around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlayer_core import StructureError, paths
from jaxlayer_core.specs import is_numeric

Arrays = dict[str, Any]
"""Arrays by path, such as `layers/0/weight`."""


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of numbers, or stands for one whose values are not known."""
    if isinstance(leaf, jax.ShapeDtypeStruct | jax.Array):
        return True
    return isinstance(leaf, np.ndarray | np.generic) and is_numeric(leaf.dtype)


def with_values(tree: Any) -> Any:
    """A copy of a tree of arrays; zeros stand where no values are known."""

    def value(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.array(leaf) if is_array(leaf) else leaf

    return jax.tree.map(value, tree)


def attributes(tree: Any, name: str) -> list[Any]:
    """What all nodes of a tree have as an attribute, found as `eqx.nn.inference_mode` does."""

    def has_it(node: Any) -> bool:
        return node is not tree and hasattr(node, name)

    own = [getattr(tree, name)] if hasattr(tree, name) else []
    inside = [node for node in jax.tree.leaves(tree, is_leaf=has_it) if has_it(node)]
    return own + [value for node in inside for value in attributes(node, name)]


class Template:
    """A pytree without its arrays.

    Args:
        tree: a module, or an `eqx.nn.State`.
        names: paths of its leaves in order; None for those that the tree itself gives.
    """

    def __init__(self, tree: Any, names: list[str] | None = None) -> None:
        named, self._treedef = paths.flatten(tree)
        shown = names or [paths.show(path) for path, _ in named]
        pairs = list(zip(shown, (leaf for _, leaf in named), strict=True))
        self._names = [name if is_array(leaf) else None for name, leaf in pairs]
        self._leaves = [None if is_array(leaf) else leaf for _, leaf in pairs]

    def arrays(self, tree: Any) -> Arrays:
        """The arrays of a tree that is like this one.

        Raises:
            StructureError: it is another one.
        """
        leaves = jax.tree.leaves(tree)
        if len(leaves) != len(self._leaves):
            raise StructureError(
                f"{type(tree).__name__} has {len(leaves)} leaves, expected {len(self._leaves)}: "
                "it is not of the model of this layer, or its class makes it differently each "
                "time. Give one that was made with the same arguments."
            )
        pairs = zip(self._names, leaves, strict=True)
        return {name: leaf for name, leaf in pairs if name is not None}

    def fill(self, arrays: Mapping[str, Any]) -> Any:
        """The tree with these arrays."""
        pairs = zip(self._names, self._leaves, strict=True)
        leaves = [leaf if name is None else arrays[name] for name, leaf in pairs]
        return jax.tree.unflatten(self._treedef, leaves)
