"""The canonical form: every model, whatever its framework, as two pure functions.

Adapters make a `PureModule`; everything past them knows nothing else. Both functions
always take every argument and `call` always returns the state, so no later code asks a
model what it can do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax

from jaxlayer_core.roles import STATE_ONLY, Policy
from jaxlayer_core.signature import CallSignature

PyTree = Any


class Arguments(NamedTuple):
    """What a module is called with: `module(*args, **kwargs)`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Variables(NamedTuple):
    """What a module owns.

    Attributes:
        params: pytree that is trained.
        state: pytree that the module itself updates; empty where there is none.
    """

    params: PyTree
    state: PyTree


class Outcome(NamedTuple):
    """What a call gives.

    Attributes:
        outputs: pytree of arrays.
        state: pytree with the structure of the state that went in.
        sown: what the call made on the side and nobody keeps, by path. The module's policy
            says whether it is a loss, a metric, an output, or nothing.
        captured: what was asked for with `capture`, by path.
    """

    outputs: PyTree
    state: PyTree
    sown: Mapping[str, PyTree] = MappingProxyType({})
    captured: Mapping[str, PyTree] = MappingProxyType({})


class InitFn(Protocol):
    """Makes the variables: `init(rng, arguments)`.

    Supplied by the adapter, called by the layer, always in training mode. `rng` is a
    typed scalar key. It may run the forward pass: only the operations that the variables
    depend on are executed.
    """

    def __call__(self, rng: jax.Array, arguments: Arguments) -> Variables:
        """Returns initial variables; leaves may be `Annotated`."""
        ...


class CallFn(Protocol):
    """Runs the model: `call(params, state, rng, arguments, training)`.

    Supplied by the adapter, called by the layer under `jax.jit`. `rng` is a typed scalar
    key that must only be used if the model draws. The arguments are complete: visible and
    hidden train flags are already filled in according to `training`.
    """

    def __call__(
        self,
        params: PyTree,
        state: PyTree,
        rng: jax.Array,
        arguments: Arguments,
        training: bool,
    ) -> Outcome:
        """Returns outputs, the new state, and what else the call made."""
        ...


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Annotated:
    """A leaf that names the mesh axis each of its dimensions is split over.

    Attributes:
        value: the array.
        axes: one mesh axis name, or None, per dimension.
    """

    value: Any
    axes: tuple[str | None, ...]

    def tree_flatten(self) -> tuple[tuple[Any], tuple[str | None, ...]]:
        """Pytree protocol."""
        return (self.value,), self.axes

    @classmethod
    def tree_unflatten(cls, axes: tuple[str | None, ...], children: tuple[Any]) -> Annotated:
        """Pytree protocol."""
        return cls(children[0], axes)


@dataclasses.dataclass(frozen=True)
class PureModule:
    """A model in canonical form.

    Attributes:
        init: makes the variables; None if they are all given by the user.
        call: runs the model.
        signature: how the model wants to be called.
        init_signature: how its init wants to be called, where that differs.
        has_modes: whether training and inference differ for this model by a flag. One
            without a flag and called without `training=` runs as in training.
        policy: what becomes of each leaf of the state and of what a call makes on the side,
            and which params are overwritten by their gradients.
        scopes: names put before the paths of params and of state.
        optional_groups: whether a top-level entry may be missing from the params or state
            that a user gives, and is then initialised.
        captures: whether its calls capture; they then return `(outputs, captured)`.
        shows_modes: whether a trace has shown modes of which nothing else tells; None as long as
            nothing was traced.
    """

    init: InitFn | None
    call: CallFn
    signature: CallSignature
    has_modes: bool
    policy: Policy = STATE_ONLY
    init_signature: CallSignature | None = None
    scopes: tuple[tuple[str, ...], tuple[str, ...]] = (("params",), ("state",))
    optional_groups: bool = False
    captures: bool = False
    shows_modes: Callable[[], bool | None] = lambda: False
