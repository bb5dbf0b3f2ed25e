"""Where the active `keras.distribution` puts each variable, and its mesh."""

from __future__ import annotations

import contextlib
import math
import re
import types
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import keras

from jaxlayer_core import keras_bridge, patterns, placing
from jaxlayer_core.errors import LayoutError, LayoutWarning

Axes = tuple[str | None, ...]
"""Mesh axes, one per dimension of a variable; None where it is not split."""


def layout_of(path: str, shape: Sequence[int], axes: Axes | None) -> Any:
    """The layout of a variable that is about to be made.

    A rule of the user's `LayoutMap` comes first, then what the model itself asks for, as far as
    the mesh has such axes, then what the distribution does with variables.

    Args:
        path: of the variable.
        shape: its shape.
        axes: the mesh axes that the model's own annotation names, or None.

    Returns:
        A `keras.distribution.TensorLayout`; None without a distribution.

    Raises:
        LayoutError: the layout does not fit the shape.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    layout = None
    if axes is not None and distribution.get_tensor_layout(path) is None:
        layout = _annotated(axes, distribution.device_mesh)
    if layout is None:
        # Keras asks with the variable, which does not exist yet.
        variable = types.SimpleNamespace(path=path, shape=tuple(shape), _layout=None)
        layout = distribution.get_variable_layout(variable)
    _check(path, shape, sharding_of(layout))
    return layout


def follow_distribution(variable: keras.Variable) -> None:
    """Puts a variable that is older than the active distribution where that wants it."""
    layout = layout_of(variable.path, variable.shape, None)
    sharding = sharding_of(layout)
    if sharding is not None and not keras_bridge.has_layout(variable):
        # A mesh of one device is another sharding than that device, though it is equivalent.
        keras_bridge.place(variable, layout, placing.moved(variable.value, sharding))


def active_mesh() -> jax.sharding.Mesh | None:
    """The mesh of the active distribution, as JAX knows it."""
    distribution = keras.distribution.distribution()
    return None if distribution is None else distribution.device_mesh.backend_mesh


def under_mesh() -> AbstractContextManager[Any]:
    """A block in which `jax.lax.with_sharding_constraint` knows the mesh of the distribution."""
    mesh = active_mesh()
    if mesh is None:
        return contextlib.nullcontext()
    if hasattr(jax.sharding, "use_abstract_mesh"):  # may be entered inside of traces
        context: AbstractContextManager[Any] = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
        return context
    return mesh  # JAX before 0.7


def sharding_of(layout: Any) -> jax.sharding.Sharding | None:
    """The sharding that JAX understands."""
    if isinstance(layout, keras.distribution.TensorLayout):
        layout = layout.backend_layout
    sharding: jax.sharding.Sharding | None = layout
    return sharding


def _annotated(axes: Axes, mesh: Any) -> Any:
    known = tuple(axis if axis in mesh.axis_names else None for axis in axes)
    return keras.distribution.TensorLayout(known, mesh) if any(known) else None


def _check(path: str, shape: Sequence[int], sharding: Any) -> None:
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return
    check_axes(path, shape, tuple(sharding.spec), dict(sharding.mesh.shape))


def check_axes(path: str, shape: Sequence[int], axes: Sequence[Any], mesh: dict[str, int]) -> None:
    """Checks that a variable can be split so.

    Args:
        path: of the variable, for errors.
        shape: its shape.
        axes: for each dimension a mesh axis, several, or None.
        mesh: sizes of the mesh's axes.

    Raises:
        LayoutError: an axis is unknown, there are more axes than dimensions, or a dimension
            cannot be divided by the size of its axes.
    """
    shown = f"`{path}` of shape {tuple(shape)}"
    if len(axes) > len(shape):
        raise LayoutError(
            f"The layout of {shown} names {len(axes)} axes, {tuple(axes)}, for {len(shape)} "
            "dimensions. Give one mesh axis, or None, per dimension."
        )
    for number, (size, axis) in enumerate(zip(shape, axes, strict=False)):
        names = (axis,) if isinstance(axis, str) else tuple(axis or ())
        if unknown := [name for name in names if name not in mesh]:
            raise LayoutError(
                f"The layout of {shown} names {unknown[0]!r}, which is no axis of the mesh. Its "
                f"axes are: {', '.join(map(repr, mesh))}."
            )
        parts = math.prod(mesh[name] for name in names)
        if size % parts:
            raise LayoutError(
                f"{shown[0].upper()}{shown[1:]} cannot be split as {tuple(axes)}: its dimension "
                f"{number} has size {size}, which the {parts} devices along {'*'.join(names)} do "
                "not divide. Choose another layout, or None, for it."
            )


def check_rules_of(owner: str, names: Sequence[str]) -> None:
    """Warns of rules in the active `LayoutMap` that are for a layer, and for no variable of it.

    Args:
        owner: path of the layer, with which the key of such a rule begins.
        names: paths of its variables inside it.

    Warns:
        LayoutWarning: there are such rules.
    """
    own = [key for key in keras_bridge.layout_map() or () if key.startswith(f"{owner}/")]
    warn_of_unused(own, [f"{owner}/{name}" for name in names], f"the layer {owner}")


def warn_of_unused(keys: Iterable[str], names: Sequence[str], what: str) -> None:
    """Warns of keys of a `LayoutMap` that match none of some paths.

    Args:
        keys: the keys, which Keras compares with paths, and matches as regular expressions.
        names: paths of variables.
        what: whose they are.

    Warns:
        LayoutWarning: there are such keys.
    """
    unused = [
        f"{key!r} matches no variable. {patterns.near(key, names)}"
        for key in keys
        if key not in names and not any(re.fullmatch(key, name) for name in names)
    ]
    if unused:
        lines = "\n  ".join(unused)
        message = f"Rules of the LayoutMap for {what} that mean nothing:\n  {lines}"
        warnings.warn(message, LayoutWarning, stacklevel=2)
