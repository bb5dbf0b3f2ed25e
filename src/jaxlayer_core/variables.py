"""One pytree as named Keras variables, and back.

Keras keeps flat lists of variables with paths; a model wants its own tree of arrays.
`VariableTree` holds the correspondence: the treedef and, leaf by leaf, either a variable or
a static value that was never an array. It never maps over variables as pytree leaves,
because with `KERAS_NNX_ENABLED` a variable is itself a pytree.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np

from jaxlayer_core import paths, rng
from jaxlayer_core.errors import StructureError
from jaxlayer_core.paths import Path
from jaxlayer_core.pure import Annotated, PyTree
from jaxlayer_core.specs import ArraySpec, kind


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


@dataclasses.dataclass(frozen=True)
class _Slot:
    """One leaf: a variable, or a static value where `variable` is None."""

    path: Path
    variable: Any = None
    static: Any = None
    key_impl: Any = None  # set where the leaf is a typed PRNG key, kept as its data


def is_array(value: Any) -> bool:
    """Whether a leaf becomes a variable: arrays and Python numbers do."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | bool | int | float | complex)


def is_trainable_dtype(dtype: Any) -> bool:
    """Whether gradients exist for a dtype."""
    return bool(jax.numpy.issubdtype(dtype, np.inexact))


def is_leaf(value: Any) -> bool:
    """Stops flattening at annotated leaves and at Keras variables."""
    return isinstance(value, Annotated | Pending | keras.Variable)


class VariableTree:
    """A pytree whose array leaves are Keras variables.

    Args:
        slots: the leaves.
        treedef: the structure.
    """

    def __init__(self, slots: Sequence[_Slot], treedef: Any) -> None:
        self._slots = tuple(slots)
        self._treedef = treedef
        self._dynamic = tuple(s for s in slots if s.variable is not None)

    @classmethod
    def create(
        cls,
        tree: PyTree,
        *,
        owner: str,
        scope: Path,
        trainable: bool,
        dtype: str | None = None,
        copy: bool = True,
    ) -> VariableTree:
        """Creates the variables, under the name scope that is open.

        Args:
            tree: leaves are arrays, Python numbers, `Pending`, existing variables, or
                anything else, which is kept as it is.
            owner: path of the layer, whose name scope is open.
            scope: names before the leaves' own paths.
            trainable: whether floating leaves are trained.
            dtype: variable dtype for floating leaves; None keeps each leaf's own.
            copy: whether to copy arrays. Keras donates buffers while it trains, which
                would delete the user's own.
        """
        named, treedef = paths.flatten(tree, is_leaf=is_leaf)
        slots = []
        for path, leaf in named:
            if isinstance(leaf, keras.Variable):
                slots.append(_Slot(path, variable=leaf))
                continue
            pending = _pending(leaf, copy)
            if pending is None:
                slots.append(_Slot(path, static=leaf))
                continue
            pending, key_impl = _as_data(pending)
            variable = _variable(
                owner, (*scope, *path), pending, trainable=trainable, float_dtype=dtype
            )
            slots.append(_Slot(path, variable=variable, key_impl=key_impl))
        return cls(slots, treedef)

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables, in the order of the leaves."""
        return [s.variable for s in self._dynamic]

    @property
    def paths(self) -> list[Path]:
        """Paths of the variables, in the same order."""
        return [s.path for s in self._dynamic]

    @property
    def tree(self) -> PyTree:
        """The pytree with variables as leaves."""
        return jax.tree_util.tree_unflatten(
            self._treedef, [s.static if s.variable is None else s.variable for s in self._slots]
        )

    def values(self) -> list[jax.Array]:
        """Current values of the variables, cast for compute where Keras says so."""
        return [s.variable.value for s in self._dynamic]

    def specs(self) -> list[ArraySpec]:
        """Shapes and dtypes of `values()`."""
        return [ArraySpec(tuple(v.shape), jax.numpy.dtype(v.dtype)) for v in self.variables]

    def restore(self, values: Sequence[Any]) -> PyTree:
        """The model's own tree, with `values` in place of the variables."""
        remaining = iter(values)
        leaves = []
        for slot in self._slots:
            if slot.variable is None:
                leaves.append(slot.static)
            elif slot.key_impl is not None:
                leaves.append(jax.random.wrap_key_data(next(remaining), impl=slot.key_impl))
            else:
                leaves.append(next(remaining))
        return jax.tree_util.tree_unflatten(self._treedef, leaves)

    def extract(self, tree: PyTree, owner: str) -> list[jax.Array]:
        """Values for the variables out of a tree that the model returned.

        Args:
            tree: must have the structure, shapes and dtypes' kinds of this one.
            owner: the model's name, for errors.

        Raises:
            StructureError: it has not; the first leaf that differs is named.
        """
        leaves, treedef = jax.tree_util.tree_flatten(tree)
        if treedef != self._treedef:
            raise _structure_error(owner, self.restore([_Shown(s) for s in self.specs()]), tree)
        values = []
        for slot, leaf in zip(self._slots, leaves, strict=True):
            if slot.variable is None:
                _check_static(owner, slot, leaf)
                continue
            _check_kind(owner, slot, leaf)
            value = jax.random.key_data(leaf) if rng.is_key(leaf) else leaf
            shape = tuple(np.shape(value))
            if shape != tuple(slot.variable.shape):
                raise StructureError(
                    f"Structure mismatch: {owner} returned state whose leaf "
                    f"`{paths.show(slot.path)}` has shape {shape}, but it was initialised with "
                    f"shape {tuple(slot.variable.shape)}. State must keep its shape."
                )
            values.append(jax.numpy.asarray(value))
        return values


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A stand-in leaf that prints as shape and dtype inside an error."""

    spec: Any

    @property
    def shape(self) -> Any:
        return self.spec.shape

    @property
    def dtype(self) -> Any:
        return self.spec.dtype

    def __repr__(self) -> str:
        return f"{self.spec.dtype}{list(self.spec.shape)}"


def _structure_error(owner: str, initial: PyTree, returned: PyTree) -> StructureError:
    """Says where two trees differ, by leaf and in the words of JAX."""
    before = {paths.show(p) for p, _ in paths.flatten(initial)[0]}
    after = {paths.show(p) for p, _ in paths.flatten(returned)[0]}
    parts = []
    if gone := sorted(before - after):
        parts.append(f"leaves that it was initialised with and did not return: {gone[:5]}")
    if new := sorted(after - before):
        parts.append(f"leaves that it returned and was not initialised with: {new[:5]}")
    try:
        structure: Any = jax.tree.structure(returned)
        structure.flatten_up_to(initial)
        detail = "a leaf was returned where a subtree was expected"
    except ValueError as error:
        detail = str(error)
    parts.append(f"comparing what it returned with the initial state: {detail.rstrip('.')}")
    return StructureError(
        f"Structure mismatch: {owner} returned a state whose structure is not that of the "
        f"initial state; {'; '.join(parts)}. Return the state with the structure that "
        "`init_fn` (or the `state` argument) gave it."
    )


def _check_kind(owner: str, slot: _Slot, leaf: Any) -> None:
    """Refuses values that the variable could only hold with loss."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:  # a Python number
        return
    expected = -1 if slot.key_impl is not None else kind(slot.variable.dtype)
    got = kind(dtype)
    if (got < 0) != (expected < 0) or got > expected:
        raise StructureError(
            f"Structure mismatch: {owner} returned state whose leaf `{paths.show(slot.path)}` has "
            f"dtype {dtype}, but it was initialised as "
            f"{'a PRNG key' if expected < 0 else slot.variable.dtype}. State must keep its dtype."
        )


def _check_static(owner: str, slot: _Slot, leaf: Any) -> None:
    if is_array(leaf) or isinstance(leaf, jax.core.Tracer) or leaf != slot.static:
        raise StructureError(
            f"Structure mismatch: {owner} returned {leaf!r} for the leaf "
            f"`{paths.show(slot.path)}`, which is not an array but the fixed value "
            f"{slot.static!r}. Only arrays can change from call to call."
        )


def _pending(leaf: Any, copy: bool) -> Pending | None:
    """The initial value that a leaf stands for, or None if it is not an array."""
    axes = None
    if isinstance(leaf, Annotated):
        leaf, axes = leaf.value, leaf.axes
    if isinstance(leaf, Pending):
        return dataclasses.replace(leaf, axes=axes or leaf.axes)
    if isinstance(leaf, jax.Array):
        spec = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return Pending(spec, lambda: leaf.copy() if copy else leaf, axes)
    if is_array(leaf):
        array = np.asarray(leaf)
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        spec = jax.ShapeDtypeStruct(array.shape, dtype)
        return Pending(spec, lambda: jax.numpy.array(array, dtype), axes)
    return None


def _as_data(pending: Pending) -> tuple[Pending, Any]:
    """Turns a typed PRNG key, which Keras cannot hold, into its data and implementation."""
    if not rng.is_key(pending.spec):
        return pending, None
    found = []

    def data(key: jax.Array) -> jax.Array:
        found.append(jax.random.key_impl(key))
        return jax.random.key_data(key)

    spec = jax.eval_shape(data, pending.spec)
    return Pending(spec, lambda: jax.random.key_data(pending.value())), found[0]


def _variable(
    owner: str, path: Path, pending: Pending, *, trainable: bool, float_dtype: str | None
) -> keras.Variable:
    own_dtype = jax.numpy.dtype(pending.spec.dtype)
    real = jax.numpy.issubdtype(own_dtype, np.floating)

    def initializer(shape: Any, dtype: Any = None, **_: Any) -> jax.Array:
        # Keras may call this inside somebody's trace; the values must not become part of it.
        with jax.ensure_compile_time_eval():
            return jax.numpy.asarray(pending.value(), dtype)

    with contextlib.ExitStack() as stack:
        for segment in path[:-1]:
            stack.enter_context(keras.name_scope(segment))
        return keras.Variable(
            initializer,
            shape=pending.spec.shape,
            dtype=float_dtype if float_dtype is not None and real else own_dtype.name,
            trainable=trainable and is_trainable_dtype(own_dtype),
            autocast=trainable,
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
