"""One leaf of an NNX module's state: a variable, or an array by itself, in any version of Flax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlayer_core import Annotated

ARRAYS = "arrays"
"""The collection of arrays that are attributes by themselves, in no variable."""


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The names on the way to a leaf: attributes, numbers in lists, and keys of dicts.

    Example:
        >>> names_of(("layers", 0, "kernel"))
        ('layers', '0', 'kernel')
        >>> names_of(("scales", ("layer", "kernel")))  # keys are tuples, as in `nnx.WeightNorm`
        ('scales', 'layer.kernel')
    """
    return tuple(".".join(map(str, k)) if isinstance(k, tuple) else str(k) for k in path)


def is_variable(leaf: Any) -> bool:
    """Whether a leaf of a state is a variable, and no array by itself."""
    return hasattr(leaf, "get_metadata")


def type_of(leaf: Any) -> type:
    """The variable's type; before Flax 0.11 a state holds stand-ins of the variables."""
    return leaf.type if hasattr(leaf, "to_variable") else type(leaf)


def raw(leaf: Any) -> Any:
    """The value that is stored, whatever hooks make of it when it is read."""
    if not is_variable(leaf):
        return leaf
    if hasattr(leaf, "get_raw_value"):
        return leaf.get_raw_value()
    return leaf.value if hasattr(leaf, "to_variable") else leaf.raw_value


def replace(leaf: Any, value: Any) -> Any:
    """A new leaf like this one with another value."""
    return leaf.replace(value) if is_variable(leaf) else value


def hook(variable: Any, call: Callable[[Any, Any], Any]) -> None:
    """Has a variable call `call(variable, value)` with what it is assigned, and store the result.

    The variable's own hooks run before.
    """
    before = variable.get_metadata().get("on_set_value", ())
    hooks = (*(before if isinstance(before, tuple) else (before,)), call)

    def run(variable: Any, value: Any) -> Any:
        for hook in hooks:
            value = hook(variable, value)
        return value

    # Until Flax 0.11 metadata are attributes.
    set_metadata = getattr(variable, "set_metadata", variable.__setattr__)
    set_metadata("on_set_value", run)


def is_rng_state(leaf: Any) -> bool:
    """Whether a leaf is the key or the counter of a random stream."""
    return issubclass(type_of(leaf), nnx.RngState)


def collection_of(leaf: Any) -> str:
    """The collection of a variable: the name that Flax has for its type.

    Example:
        >>> collection_of(nnx.BatchStat(0.0))
        'batch_stats'
    """
    return name_of(type_of(leaf)) if is_variable(leaf) else ARRAYS


def name_of(variable_type: type) -> str:
    """The name of a type of variables, as `nnx.bridge` uses it for linen's collections."""
    try:
        return nnx.variable_name_from_type(variable_type)
    except ValueError:  # without a registered one its own name, which Flax would register
        return variable_type.__name__


def as_arrays(value: Any) -> Any:
    """Numbers in a variable's value as arrays, which is what they are inside of `nnx.jit`."""
    return jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), value)


def annotated(leaf: Any, value: Any) -> Any:
    """A value with the mesh axes that its variable names, if it does."""
    axes = _axes(leaf)
    if axes is None or not hasattr(value, "ndim"):
        return value
    return Annotated(value, (*axes, *[None] * (value.ndim - len(axes))))


def _axes(leaf: Any) -> tuple[Any, ...] | None:
    if not is_variable(leaf):
        return None
    metadata = leaf.get_metadata()
    # Flax has had three words for it.
    names = ("out_sharding", "sharding_names", "sharding")
    axes = next((metadata[name] for name in names if metadata.get(name) is not None), None)
    spec = getattr(axes, "spec", axes)
    return None if spec is None else tuple(spec)
