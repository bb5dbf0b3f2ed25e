"""A model's weights as Optax sees them: one nested dict, by path."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import keras

from jaxlayer_core.errors import StructureError
from jaxlayer_core.paths import Path
from jaxlayer_core.pure import PyTree


class Weights:
    """Keras variables, and their places in a nested dict.

    The dict has a level for each part of a variable's path: `dense/kernel` is at
    `["dense"]["kernel"]`. Where a path is taken, or leads through another weight, the part that
    clashes gets a number: the second `dense/kernel` is `dense/kernel_1`.

    Args:
        variables: the weights that are trained, each once.

    Raises:
        StructureError: a variable is there twice.

    Example:
        >>> dense = keras.layers.Dense(2)
        >>> dense.build((None, 3))
        >>> weights = Weights(dense.trainable_variables)
        >>> weights.nest(["one", "two"])
        {'dense': {'bias': 'two', 'kernel': 'one'}}
    """

    def __init__(self, variables: Iterable[keras.Variable]) -> None:
        self.variables = tuple(variables)
        self._check_unique()
        self._positions: dict[str, Any] = {}
        self.paths = tuple(
            _insert(self._positions, variable.path, position)
            for position, variable in enumerate(self.variables)
        )
        self._by_path = {path: position for position, path in enumerate(self.paths)}
        self._treedef: Any
        self._order, self._treedef = jax.tree_util.tree_flatten(self._positions)

    def nest(self, values: Sequence[Any]) -> dict[str, Any]:
        """The nested dict with a value for each weight, in the order of `variables`."""
        return jax.tree_util.tree_unflatten(self._treedef, [values[i] for i in self._order])

    def flatten(self, tree: PyTree) -> list[Any]:
        """What a nested dict holds for each weight, in the order of `variables`.

        Raises:
            ValueError: the tree has another structure.
        """
        values: list[Any] = [None] * len(self.variables)
        for position, value in zip(self._order, self._treedef.flatten_up_to(tree), strict=True):
            values[position] = value
        return values

    def at_end_of(self, path: Path) -> int | None:
        """The position of the weight whose path ends another one, as those of its momenta do."""
        endings = (path[start:] for start in range(len(path)))
        return next((self._by_path[end] for end in endings if end in self._by_path), None)

    def values(self) -> list[jax.Array]:
        """The current value of each weight."""
        return [variable.value for variable in self.variables]

    def tree(self) -> dict[str, Any]:
        """The nested dict of the current values."""
        return self.nest(self.values())

    def _check_unique(self) -> None:
        seen: set[int] = set()
        for variable in self.variables:
            if id(variable) in seen:
                raise StructureError(
                    f"The weight {variable.path!r} is given to the optimizer twice, so that two "
                    "updates would be made of it in each step. Give each variable once."
                )
            seen.add(id(variable))


def _insert(root: dict[str, Any], path: str, leaf: int) -> Path:
    """Puts a leaf into nested dicts, and tells where it is."""
    *outer, last = (part or "_" for part in path.split("/"))
    node, found = root, []
    for part in outer:
        name = next(n for n in _numbered(part) if isinstance(node.get(n, {}), dict))
        node = node.setdefault(name, {})
        found.append(name)
    name = next(n for n in _numbered(last) if n not in node)
    node[name] = leaf
    return (*found, name)


def _numbered(name: str) -> Iterator[str]:
    yield name
    for number in itertools.count(1):
        yield f"{name}_{number}"
