"""One pytree as named Keras variables, and back.

Keras keeps flat lists of variables with paths; a model wants its own tree of arrays.
`VariableTree` holds the correspondence: the treedef and, leaf by leaf, either a variable or
a static value that was never an array. It never maps over variables as pytree leaves,
because with `KERAS_NNX_ENABLED` a variable is itself a pytree.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np

from jaxlayer_core import layouts, memory, paths, returned_state, rng
from jaxlayer_core.errors import PatternError
from jaxlayer_core.leaves import AbstractVariable, Pending, as_data, to_pending, to_variable
from jaxlayer_core.paths import Path
from jaxlayer_core.pure import Annotated, PyTree
from jaxlayer_core.roles import Policy, Role
from jaxlayer_core.specs import ArraySpec


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


def check_fits(owner: str, *trees: PyTree) -> None:
    """Refuses variables that this machine could not hold.

    Args:
        owner: path of the layer, for the error.
        *trees: as `VariableTree.create` takes them.

    Raises:
        BuildError: they are larger than its memory.
    """
    leaves = [leaf for tree in trees for _, leaf in paths.flatten(tree, is_leaf=is_leaf)[0]]
    new = [ArraySpec.of(leaf.spec) for leaf in leaves if isinstance(leaf, Pending)]
    memory.check_fits(f"The variables of {owner}", new)


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
        make: Callable[..., Any] = to_variable,
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
            make: makes a variable, or an `AbstractVariable`.
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
            pending = to_pending(leaf, copy)
            if pending is None:
                slots.append(Slot(path, static=leaf))
                continue
            role = policy.role(path)
            if not trainable and role in (Role.PARAM, Role.OVERWRITTEN):
                raise PatternError(
                    f"state_policy: `{paths.show(path)}` has the role {role.value!r}, but it is "
                    "one leaf of the state. Only a whole collection, where the framework has them, "
                    "can be trained: give its name as the pattern."
                )
            pending, key_impl = as_data(pending)
            overwritten = trainable and role is Role.OVERWRITTEN
            full = (*scope, *path)
            float_dtype = None if overwritten else dtype
            is_cast = trainable and not overwritten
            if full_precision("/".join(full)):
                float_dtype, is_cast = "float32", False
            variable = make(
                owner,
                full,
                pending,
                trainable=trainable,
                float_dtype=float_dtype,
                autocast=is_cast,
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
    def constants(self) -> list[keras.Variable]:
        """The variables that are no weights."""
        return [s.variable for s in self._dynamic if s.is_constant]

    @property
    def paths(self) -> list[Path]:
        """Paths of the variables, in the same order."""
        return [s.path for s in self._dynamic]

    @property
    def scope(self) -> Path:
        """Names before the leaves' own paths."""
        return self._scope

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

    @property
    def blank(self) -> PyTree:
        """The pytree with specs in place of variables, as the model sees them."""
        leaves = [s.static if s.variable is None else s.spec for s in self._slots]
        return jax.tree_util.tree_unflatten(self._treedef, leaves)

    @property
    def structs(self) -> PyTree:
        """The pytree as `jax.ShapeDtypeStruct`s, with shardings where there are any."""
        leaves = [s.static if s.variable is None else _struct(s) for s in self._slots]
        return jax.tree_util.tree_unflatten(self._treedef, leaves)

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
                returned_state.check_static(owner, slot.path, slot.static, leaf)
                continue
            is_key = slot.key_impl is not None
            returned_state.check_kind(owner, slot.path, slot.variable.dtype, is_key, leaf)
            value = jax.random.key_data(leaf) if rng.is_key(leaf) else leaf
            returned_state.check_shape(owner, slot.path, tuple(slot.variable.shape), value)
            values.append(jax.numpy.asarray(value))
        return values


def _struct(slot: Slot) -> jax.ShapeDtypeStruct:
    spec = slot.spec.filled(())
    if slot.key_impl is not None:
        return spec  # its data have another shape, which a sharding would be for
    variable = slot.variable
    if isinstance(variable, AbstractVariable):
        sharding = layouts.sharding_of(variable.layout)
    else:
        sharding = variable.value.sharding
    return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)
