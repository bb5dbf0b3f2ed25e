"""Results whose non-arrays ride along, so that they go through `jax.jit` unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxlayer_core import paths
from jaxlayer_core.errors import StructureError
from jaxlayer_core.structure import Static, is_array


@jax.tree_util.register_pytree_node_class
class Packed:
    """A tree whose non-array leaves ride along as static data.

    Args:
        arrays: the array leaves.
        treedef: the whole structure.
        statics: per leaf None for an array, `Static` for the rest.
    """

    def __init__(
        self, arrays: Sequence[Any], treedef: Any, statics: tuple[Static | None, ...]
    ) -> None:
        self.arrays = list(arrays)
        self.treedef = treedef
        self.statics = statics

    @classmethod
    def of(cls, tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Packed:
        """Packs a tree; Python numbers become arrays."""
        leaves, treedef = jax.tree_util.tree_flatten(tree, is_leaf=is_leaf)
        arrays: list[Any] = []
        statics: list[Static | None] = []
        for leaf in leaves:
            if is_array(leaf) or isinstance(leaf, bool | int | float | complex):
                arrays.append(leaf)
                statics.append(None)
            else:
                statics.append(Static(leaf))
        return cls(arrays, treedef, tuple(statics))

    def tree_flatten(self) -> tuple[list[Any], Any]:
        """Pytree protocol."""
        return self.arrays, (self.treedef, self.statics)

    @classmethod
    def tree_unflatten(cls, aux: Any, arrays: Sequence[Any]) -> Packed:
        """Pytree protocol."""
        return cls(arrays, *aux)

    def unpack(self) -> Any:
        """The tree, with the array leaves as they are now."""
        remaining = iter(self.arrays)
        leaves = [next(remaining) if s is None else s.value for s in self.statics]
        return jax.tree_util.tree_unflatten(self.treedef, leaves)

    def map(self, fn: Callable[[Any], Any]) -> Packed:
        """The same with `fn` applied to its arrays."""
        return Packed(list(map(fn, self.arrays)), self.treedef, self.statics)


def only_arrays(tree: Any, owner: str, drop: bool) -> Any:
    """A result with array leaves only.

    Args:
        tree: what the model returned.
        owner: the model's name, for errors.
        drop: whether to put None in place of other leaves instead of refusing them.

    Raises:
        StructureError: a leaf is not an array and `drop` is False.
    """
    named, treedef = paths.flatten(tree)
    leaves = []
    for path, leaf in named:
        if is_array(leaf) or isinstance(leaf, bool | int | float | complex | np.generic):
            leaves.append(leaf)
        elif drop:
            leaves.append(None)
        else:
            raise StructureError(
                f"{owner} returned a value that is not an array at `{paths.show(path)}` of its "
                f"output: {leaf!r} of type {type(leaf).__name__}. A Keras layer returns arrays. "
                "Make the layer with non_array_outputs='drop' to get None in its place."
            )
    return jax.tree_util.tree_unflatten(treedef, leaves)
