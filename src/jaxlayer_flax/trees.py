"""Trees of Flax variables: without Flax's boxes, and what `sow` has added to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import keras

from jaxlayer_core import Annotated


def clean(variables: Any) -> dict[str, Any]:
    """Plain dicts, with Flax's metadata boxes turned into annotations."""

    def unbox(leaf: Any) -> Any:
        if isinstance(leaf, nn.Partitioned):
            return Annotated(leaf.value, tuple(leaf.names))
        return leaf.unbox() if isinstance(leaf, nn.meta.AxisMetadata) else leaf

    plain: dict[str, Any] = flax.core.unfreeze(variables)
    return jax.tree.map(unbox, plain, is_leaf=_is_leaf)


def _is_leaf(value: Any) -> bool:
    # With NNX enabled, a Keras variable is itself a pytree.
    return isinstance(value, Annotated | keras.Variable) or nn.meta.is_axis_metadata(value)


def plain(variables: Any) -> Any:
    """The variables without annotations."""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, Annotated) else leaf,
        variables,
        is_leaf=_is_leaf,
    )


def grown(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """The collections that `sow` has added to."""
    structure: Callable[[Any], Any] = jax.tree.structure
    return {
        name
        for name, collection in before.items()
        if name in after
        and was_sown(after[name])
        and structure(collection) != structure(after[name])
    }


def was_sown(collection: Any) -> bool:
    """Whether there are tuples in a collection, which `sow` makes."""
    if isinstance(collection, Mapping):
        return any(map(was_sown, collection.values()))
    return isinstance(collection, tuple)
