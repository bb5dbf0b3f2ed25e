"""One pytree as named Keras variables, and back.

Keras keeps flat lists of variables with paths; a model wants its own tree of arrays.
`VariableTree` holds the correspondence: the treedef and, leaf by leaf, either a variable or
a static value that was never an array. It never maps over variables as pytree leaves,
because with `KERAS_NNX_ENABLED` a variable is itself a pytree.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np

from jaxlayer_core import paths, returned_state, rng
from jaxlayer_core.errors import PatternError
from jaxlayer_core.paths import Path
from jaxlayer_core.pure import Annotated, PyTree
from jaxlayer_core.roles import Policy, Role
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


@dataclasses.dataclass(frozen=True)
class Slot:
    """One leaf of a `VariableTree`.

    Attributes:
        path: of the leaf.
        variable: holds it; None where it is a static value.
        static: that value.
        key_impl: set where the leaf is a typed PRNG key, kept as its data.
        is_constant: whether it is saved, but no weight of the layer.
    """

    path: Path
    variable: Any = None
    static: Any = None
    key_impl: Any = None
    is_constant: bool = False

    @property
    def spec(self) -> ArraySpec:
        """Shape and dtype of the leaf as the model sees it."""
        spec = ArraySpec(tuple(self.variable.shape), jax.numpy.dtype(self.variable.dtype))
        if self.key_impl is None:
            return spec
        wrap = functools.partial(jax.random.wrap_key_data, impl=self.key_impl)
        return ArraySpec.of(jax.eval_shape(wrap, spec.filled(())))


def is_array(value: Any) -> bool:
    """Whether a leaf becomes a variable: arrays of numbers and Python numbers do."""
    if isinstance(value, np.ndarray | np.generic):
        return is_numeric(value.dtype)
    return isinstance(value, jax.Array | bool | int | float | complex)


def is_leaf(value: Any) -> bool:
    """Stops flattening at annotated leaves, at slots and at Keras variables."""
    return isinstance(value, Annotated | Pending | Slot | keras.Variable)


class VariableTree:
    """A pytree whose array leaves are Keras variables.

    Args:
        slots: the leaves.
        treedef: the structure.
        scope: names before the leaves' own paths.
    """

    def __init__(self, slots: Sequence[Slot], treedef: Any, scope: Path = ()) -> None:
        self._slots = tuple(slots)
        self._treedef = treedef
        self._scope = scope
        self._dynamic = tuple(s for s in slots if s.variable is not None)

    @classmethod
    def create(
        cls,
        tree: PyTree,
        *,
        owner: str,
        scope: Path,
        trainable: bool,
        policy: Policy,
        dtype: str | None = None,
        full_precision: Callable[[str], bool] = lambda name: False,
        copy: bool = True,
    ) -> VariableTree:
        """Creates the variables, under the name scope that is open.

        Args:
            tree: leaves are arrays, Python numbers, `Pending`, the `Slot`s of another
                `VariableTree`, or anything else, which is kept as it is.
            owner: path of the layer, whose name scope is open.
            scope: names before the leaves' own paths.
            trainable: whether floating leaves are trained.
            policy: roles of the leaves.
            dtype: variable dtype for floating leaves; None keeps each leaf's own.
            full_precision: which leaves, by name, are float32 whatever `dtype` is, and are
                not cast for compute.
            copy: whether to copy arrays and the values of Keras variables. Keras donates
                buffers while it trains, which would delete the user's own.
        """
        named, treedef = paths.flatten(tree, is_leaf=is_leaf)
        slots = []
        for path, leaf in named:
            if isinstance(leaf, Slot):
                slots.append(leaf)
                continue
            if isinstance(leaf, keras.Variable) and not copy:
                slots.append(Slot(path, variable=leaf))
                continue
            pending = _pending(leaf, copy)
            if pending is None:
                slots.append(Slot(path, static=leaf))
                continue
            role = policy.role(path)
            if not trainable and role in (Role.PARAM, Role.OVERWRITTEN):
                raise PatternError(
                    f"state_policy: `{paths.show(path)}` has the role {role.value!r}, but it is "
                    "one leaf of the state. Only a whole collection of Flax can be trained: give "
                    "its name as the pattern."
                )
            pending, key_impl = _as_data(pending)
            overwritten = trainable and role is Role.OVERWRITTEN
            full = (*scope, *path)
            is_full_precision = full_precision("/".join(full))
            variable = _variable(
                owner,
                full,
                pending,
                trainable=trainable,
                float_dtype=None if overwritten else dtype and _float(dtype, is_full_precision),
                autocast=trainable and not (overwritten or is_full_precision),
            )
            variable.overwrite_with_gradient = overwritten
            is_constant = not trainable and role is Role.CONSTANT
            slots.append(Slot(path, variable=variable, key_impl=key_impl, is_constant=is_constant))
        return cls(slots, treedef, scope)

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables, in the order of the leaves."""
        return [s.variable for s in self._dynamic]

    @property
    def weights(self) -> list[keras.Variable]:
        """The variables that are weights of the layer: those that are not constants."""
        return [s.variable for s in self._dynamic if not s.is_constant]

    @property
    def paths(self) -> list[Path]:
        """Paths of the variables, in the same order."""
        return [s.path for s in self._dynamic]

    @property
    def names(self) -> list[str]:
        """Paths of the variables inside the layer, such as `params/Dense_0/kernel`."""
        return ["/".join((*self._scope, *path)) for path in self.paths]

    @staticmethod
    def is_trainable(variable: keras.Variable) -> bool:
        """Whether a variable of params can be trained: gradients exist for its dtype."""
        return bool(jax.numpy.issubdtype(variable.dtype, np.inexact))

    @property
    def tree(self) -> PyTree:
        """The pytree with variables as leaves."""
        return jax.tree_util.tree_unflatten(
            self._treedef, [s.static if s.variable is None else s.variable for s in self._slots]
        )

    @property
    def slots(self) -> PyTree:
        """The pytree with `Slot`s and static values as leaves, to make another one of."""
        return jax.tree_util.tree_unflatten(
            self._treedef, [s.static if s.variable is None else s for s in self._slots]
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
            initial = self.restore([returned_state.Shown(s) for s in self.specs()])
            raise returned_state.structure_error(owner, initial, tree)
        values = []
        for slot, leaf in zip(self._slots, leaves, strict=True):
            if slot.variable is None:
                if not is_array(slot.static):  # constants stay, whatever comes back
                    returned_state.check_static(owner, slot.path, slot.static, leaf)
                continue
            is_key = slot.key_impl is not None
            returned_state.check_kind(owner, slot.path, slot.variable.dtype, is_key, leaf)
            value = jax.random.key_data(leaf) if rng.is_key(leaf) else leaf
            returned_state.check_shape(owner, slot.path, tuple(slot.variable.shape), value)
            values.append(jax.numpy.asarray(value))
        return values


def _pending(leaf: Any, copy: bool) -> Pending | None:
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


def _float(dtype: str, is_full_precision: bool) -> str:
    return "float32" if is_full_precision else dtype


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
    owner: str,
    path: Path,
    pending: Pending,
    *,
    trainable: bool,
    float_dtype: str | None,
    autocast: bool,
) -> keras.Variable:
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
