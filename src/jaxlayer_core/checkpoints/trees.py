"""A pytree as a source, and a layer's variables as the pytree that its framework takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import keras
import numpy as np

from jaxlayer_core import paths, rng
from jaxlayer_core.checkpoints.format import Contents, Source
from jaxlayer_core.errors import StructureError
from jaxlayer_core.leaves import is_array
from jaxlayer_core.pure import Annotated, PyTree
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.variables import VariableTree


class TreeSource(Source):
    """The arrays of a pytree.

    Args:
        tree: leaves are arrays, Python numbers, typed PRNG keys, which stand for their data,
            Keras variables, or anything else, which does not count.
    """

    def __init__(self, tree: PyTree) -> None:
        named, _ = paths.flatten(_plain(tree), is_leaf=_is_leaf)
        leaves = (("/".join(path), _data(leaf)) for path, leaf in named)
        self._leaves = {name: leaf for name, leaf in leaves if is_array(leaf)}

    @property
    def specs(self) -> Mapping[str, ArraySpec]:
        """Shapes and dtypes by path."""
        return {name: spec(leaf) for name, leaf in self._leaves.items()}

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[tuple[str, Any]]:
        """Copies: Keras deletes the arrays of its variables, and a NumPy array may change."""
        leaves = {name: self._leaves[name] for name in wanted}
        for name, leaf in leaves.items():
            if isinstance(leaf, jax.Array) and leaf.is_deleted():
                raise StructureError(
                    f"The array `{name}` of the tree has been deleted: JAX gave its memory to "
                    "the result of a function that was called with donate_argnums, as Keras' "
                    "train step is. Take a copy before training. Nothing was loaded."
                )
        for name, leaf in leaves.items():
            yield name, leaf.copy() if isinstance(leaf, jax.Array) else np.array(leaf)


def spec(leaf: Any) -> ArraySpec:
    """Shape and dtype of an array or a number, the dtype as JAX has it."""
    return ArraySpec.of(leaf if isinstance(leaf, jax.Array) else np.asarray(leaf))


def contents(params: VariableTree, state: VariableTree, *, copy: bool = False) -> Contents:
    """The values of two trees of variables, in both forms.

    Args:
        params: the layer's params.
        state: its state.
        copy: whether to copy the values; without, they are valid until Keras trains on.

    Raises:
        StructureError: the trees cannot stand beside each other, though their paths can.
    """
    named: dict[str, jax.Array] = {}
    whole: PyTree = {}
    for own in (params, state):
        values = [v.value.copy() if copy else v.value for v in own.variables]
        named |= zip(own.names, values, strict=True)
        part = _filled(own, values)
        for segment in reversed(own.scope if part is not None else ()):
            part = {segment: part}
        whole = _beside(whole, part)
    return Contents(named, whole)


def _filled(own: VariableTree, values: Sequence[jax.Array]) -> PyTree:
    """The tree with values in place of the variables; keys stay key data."""
    by_variable = {id(v): value for v, value in zip(own.variables, values, strict=True)}
    return jax.tree.map(lambda leaf: by_variable.get(id(leaf), leaf), own.tree, is_leaf=_is_leaf)


def _beside(one: PyTree, other: PyTree) -> PyTree:
    """Two trees as one."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        common = {key: _beside(one[key], other[key]) for key in one if key in other}
        return {**one, **other, **common}
    if not jax.tree.leaves(one) or not jax.tree.leaves(other):
        return other if jax.tree.leaves(other) else one
    raise StructureError(
        f"Params and state are a {type(one).__name__} and a {type(other).__name__}, which do not "
        "make one tree. Choose a format that keeps names: npz or safetensors."
    )


def _is_leaf(value: Any) -> bool:
    # With NNX enabled, a Keras variable is itself a pytree.
    return isinstance(value, Annotated | keras.Variable)


def _plain(tree: PyTree) -> PyTree:
    """Dicts in place of mappings that JAX may know without their keys."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {field: _plain(getattr(tree, field)) for field in tree._fields}
    if type(tree) in (list, tuple):
        return type(tree)(map(_plain, tree))
    return tree


def _data(leaf: Any) -> Any:
    """What is in a leaf."""
    if isinstance(leaf, Annotated):
        leaf = leaf.value
    if isinstance(leaf, keras.Variable):
        leaf = leaf.value
    return jax.random.key_data(leaf) if rng.is_key(leaf) else leaf
