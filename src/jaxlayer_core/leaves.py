"""One leaf of a model's pytree as a Keras variable."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np

from jaxlayer_core import rng
from jaxlayer_core.paths import Path
from jaxlayer_core.pure import Annotated
from jaxlayer_core.specs import ArraySpec, is_numeric


@dataclasses.dataclass(frozen=True)
class Pending:
    """A leaf whose value is computed only when its variable is initialised.

    Attributes:
        spec: shape and dtype.
        value: computes the value.
        axes: mesh axes that the model asks for, or None.
    """

    spec: jax.ShapeDtypeStruct
    value: Callable[[], jax.Array]
    axes: tuple[str | None, ...] | None = None


def zeros(tree: Any) -> Any:
    """A pytree with zeros, not computed yet, in place of specs."""

    def pending(leaf: Any) -> Any:
        if not isinstance(leaf, ArraySpec):
            return leaf
        spec = leaf.filled(())
        return Pending(spec, lambda: jax.numpy.zeros(spec.shape, spec.dtype))

    return jax.tree.map(pending, tree)


def is_array(value: Any) -> bool:
    """Whether a leaf becomes a variable: arrays of numbers and Python numbers do."""
    if isinstance(value, np.ndarray | np.generic):
        return is_numeric(value.dtype)
    return isinstance(value, jax.Array | bool | int | float | complex)


def to_pending(leaf: Any, copy: bool) -> Pending | None:
    """The initial value that a leaf stands for, or None if it is not an array."""
    axes = None
    if isinstance(leaf, Annotated):
        leaf, axes = leaf.value, leaf.axes
    if isinstance(leaf, Pending):
        return dataclasses.replace(leaf, axes=axes or leaf.axes)
    if isinstance(leaf, keras.Variable):
        leaf = leaf.value
    if isinstance(leaf, jax.Array):
        spec = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return Pending(spec, lambda: leaf.copy() if copy else leaf, axes)
    if is_array(leaf):
        array = np.asarray(leaf)
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        spec = jax.ShapeDtypeStruct(array.shape, dtype)
        return Pending(spec, lambda: jax.numpy.array(array, dtype), axes)
    return None


def as_data(pending: Pending) -> tuple[Pending, Any]:
    """Turns a typed PRNG key, which Keras cannot hold, into its data and implementation."""
    if not rng.is_key(pending.spec):
        return pending, None
    found = []

    def data(key: jax.Array) -> jax.Array:
        found.append(jax.random.key_impl(key))
        return jax.random.key_data(key)

    spec = jax.eval_shape(data, pending.spec)
    return Pending(spec, lambda: jax.random.key_data(pending.value())), found[0]


def to_variable(
    owner: str,
    path: Path,
    pending: Pending,
    *,
    trainable: bool,
    float_dtype: str | None,
    autocast: bool,
) -> keras.Variable:
    """Makes the variable under the name scope that is open.

    Args:
        owner: path of the layer, whose scope it is.
        path: of the leaf inside it.
        pending: the initial value.
        trainable: whether it is trained, if gradients exist for its dtype.
        float_dtype: its dtype if it is floating; None for its own.
        autocast: whether Keras casts it for compute.
    """
    own_dtype = jax.numpy.dtype(pending.spec.dtype)
    real = jax.numpy.issubdtype(own_dtype, np.floating)

    def initializer(shape: Any, dtype: Any = None, **_: Any) -> jax.Array:
        # Keras may call this inside somebody's trace; the values must not become part of it.
        with jax.core.eval_context():
            return jax.numpy.asarray(pending.value(), dtype)

    with contextlib.ExitStack() as stack:
        for segment in path[:-1]:
            stack.enter_context(keras.name_scope(segment))
        return keras.Variable(
            initializer,
            shape=pending.spec.shape,
            dtype=float_dtype if float_dtype is not None and real else own_dtype.name,
            trainable=trainable and bool(jax.numpy.issubdtype(own_dtype, np.inexact)),
            autocast=autocast,
            layout=_layout("/".join((owner, *path)), pending.axes),
            name=path[-1] if path else "value",
        )


def _layout(path: str, axes: tuple[str | None, ...] | None) -> Any:
    """The sharding that the model's own annotation asks for, or None to let Keras decide.

    A rule of the user's `LayoutMap` for the same path comes first.
    """
    distribution = keras.distribution.distribution()
    if axes is None or distribution is None or distribution.get_tensor_layout(path) is not None:
        return None
    mesh = distribution.device_mesh
    known = tuple(axis if axis in mesh.axis_names else None for axis in axes)
    return keras.distribution.TensorLayout(known, mesh) if any(known) else None
