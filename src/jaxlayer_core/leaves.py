"""One leaf of a model's pytree as a Keras variable."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np

from jaxlayer_core import keras_bridge, layouts, placing, rng
from jaxlayer_core.paths import Path
from jaxlayer_core.pure import Annotated
from jaxlayer_core.specs import ArraySpec, is_numeric


@dataclasses.dataclass(frozen=True)
class Pending:
    """A leaf whose value is computed only when its variable is initialised.

    Attributes:
        spec: shape and dtype.
        value: computes the value where a sharding says, None being the default device.
        axes: mesh axes that the model asks for, or None.
    """

    spec: jax.ShapeDtypeStruct
    value: Callable[[jax.sharding.Sharding | None], jax.Array]
    axes: tuple[str | None, ...] | None = None


def zeros(tree: Any) -> Any:
    """A pytree with zeros, not computed yet, in place of specs."""

    def pending(leaf: Any) -> Any:
        if not isinstance(leaf, ArraySpec):
            return leaf
        spec = leaf.filled(())
        return Pending(spec, lambda s: jax.numpy.zeros(spec.shape, spec.dtype, device=s))

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
        return Pending(spec, functools.partial(_placed, leaf, copy), axes)
    if is_array(leaf):
        array = np.asarray(leaf)
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        spec = jax.ShapeDtypeStruct(array.shape, dtype)
        return Pending(spec, lambda s: placing.copy_of(array, s, dtype), axes)
    return None


def _placed(array: jax.Array, copy: bool, sharding: jax.sharding.Sharding | None) -> jax.Array:
    if copy:
        return placing.copy_of(array, sharding)
    return array if sharding is None else placing.moved(array, sharding)


def as_data(pending: Pending) -> tuple[Pending, Any]:
    """Turns a typed PRNG key, which Keras cannot hold, into its data and implementation."""
    if not rng.is_key(pending.spec):
        return pending, None
    found = []

    def data(key: jax.Array) -> jax.Array:
        found.append(jax.random.key_impl(key))
        return jax.random.key_data(key)

    spec = jax.eval_shape(data, pending.spec)

    def value(sharding: jax.sharding.Sharding | None) -> jax.Array:
        return _placed(data(pending.value(None)), copy=False, sharding=sharding)

    return Pending(spec, value), found[0]


@dataclasses.dataclass
class AbstractVariable:
    """A variable that is not made: what is known of it without a value.

    Attributes:
        shape: its shape.
        dtype: its dtype, by name.
        layout: where the active distribution would put it; None without one.
        overwrite_with_gradient: as of a Keras variable.
    """

    shape: tuple[int, ...]
    dtype: str
    layout: Any
    overwrite_with_gradient: bool = False


def to_abstract(
    owner: str, path: Path, pending: Pending, *, float_dtype: str | None, **_: Any
) -> AbstractVariable:
    """What `to_variable` would make; takes the same arguments, and allocates nothing."""
    own_dtype = jax.numpy.dtype(pending.spec.dtype)
    real = jax.numpy.issubdtype(own_dtype, np.floating)
    dtype = float_dtype if float_dtype is not None and real else own_dtype.name
    layout = layouts.layout_of("/".join((owner, *path)), pending.spec.shape, pending.axes)
    return AbstractVariable(tuple(pending.spec.shape), dtype, layout)


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
    planned = to_abstract(owner, path, pending, float_dtype=float_dtype)
    has_gradients = bool(jax.numpy.issubdtype(pending.spec.dtype, np.inexact))

    def initializer(shape: Any, dtype: Any = None, **_: Any) -> jax.Array:
        # Keras may call this inside somebody's trace; the values must not become part of it.
        with jax.core.eval_context():
            return jax.numpy.asarray(pending.value(layouts.sharding_of(planned.layout)), dtype)

    with contextlib.ExitStack() as stack:
        for segment in path[:-1]:
            stack.enter_context(keras.name_scope(segment))
        value: Any = initializer
        if planned.layout is not None:
            stack.enter_context(keras_bridge.outside_of_scopes())
            value = initializer(planned.shape, planned.dtype)
        return keras.Variable(
            value,
            shape=planned.shape,
            dtype=planned.dtype,
            trainable=trainable and has_gradients,
            autocast=autocast,
            layout=planned.layout,
            name=path[-1] if path else "value",
        )
