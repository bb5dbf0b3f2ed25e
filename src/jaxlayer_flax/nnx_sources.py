"""What a user gives for an NNX module: an instance, or a class or function that makes one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp
from flax import nnx

from jaxlayer_core import AdapterError
from jaxlayer_core.paths import show
from jaxlayer_core.roles import Role
from jaxlayer_flax.nnx_leaves import collection_of, names_of, raw
from jaxlayer_flax.nnx_rngs import rngs_of
from jaxlayer_flax.nnx_trees import Parts, Traced, unsharded
from jaxlayer_flax.roles import COLLECTIONS


class Source(Protocol):
    """Where modules come from.

    Attributes:
        name: what errors call it.
        module_class: the class of the modules.
        parts: a module taken apart; its arrays may be specs only.
    """

    name: str
    module_class: type
    parts: Parts

    def make(self, key: jax.Array) -> Any:
        """A new module with its initial variables, at the level of the trace in progress."""
        ...


class Instance:
    """A module that exists. It stays as it is; the layer has copies of its variables.

    Args:
        module: the module.

    Raises:
        AdapterError: its variables are no arrays that could be copied.
    """

    def __init__(self, module: nnx.Module) -> None:
        self.module_class = type(module)
        self.name = f"the NNX module {self.module_class.__name__}"
        self.parts = Parts.of(_without_sown(Parts.of(module)))
        for path, leaf in self.parts.leaves:
            self._check(path, raw(leaf))

    def make(self, key: jax.Array) -> Any:
        """A copy."""
        copies = jax.tree.map(jnp.array, self.parts.variables())
        return self.parts.merge(copies, key)

    def _check(self, path: tuple[Any, ...], value: Any) -> None:
        for leaf in jax.tree.leaves(value):
            name = show(names_of(path))
            if isinstance(leaf, jax.core.Tracer):
                raise AdapterError(
                    f"{self.name} was made or changed inside a JAX transformation that is not "
                    f"this one: its `{name}` is a tracer, {leaf!r:.80}. Make the module outside, "
                    "or let the layer make it: FlaxLayer(functools.partial(Class, ...))."
                )
            if isinstance(leaf, jax.ShapeDtypeStruct):
                raise AdapterError(
                    f"{self.name} has no values: its `{name}` is {leaf}, as nnx.eval_shape makes "
                    "it. Let the layer make the module when it is built: "
                    "FlaxLayer(functools.partial(Class, ...))."
                )


class Factory:
    """A class, or a function that returns a module; with arguments as a `functools.partial`.

    It gets `rngs`, if it takes that: `nnx.Rngs(key)` with the key of the initialisation.

    Args:
        make: the class or function.
        streams: names of streams that `rngs` has besides the default.

    Raises:
        AdapterError: it does not make a module.
    """

    def __init__(self, make: Callable[..., Any], streams: Iterable[str]) -> None:
        self._make = make
        self._streams = tuple(streams)
        target = make.func if isinstance(make, functools.partial) else make
        self._called = getattr(target, "__qualname__", repr(target))
        self.name = f"the NNX module of {self._called}"
        self._takes_rngs = _takes_rngs(make)
        if isinstance(make, functools.partial) and "rngs" in make.keywords:
            raise AdapterError(
                f"The partial of {self._called} holds `rngs`, whose state it would share with "
                "whoever else has it. Leave rngs out: the layer gives it, from its seed."
            )
        traced = Traced(self._call)
        self.make = traced.make
        self.parts = traced.parts
        self.module_class = type(self.parts.as_it_is())
        self.name = f"the NNX module {self.module_class.__name__}"

    def _call(self, key: jax.Array) -> Any:
        rngs = {"rngs": rngs_of(key, self._streams)} if self._takes_rngs else {}
        try:
            with unsharded():
                module = self._make(**rngs)
        except Exception as error:
            raise AdapterError(
                f"{self._called} did not make an NNX module: {type(error).__name__}: {error}\n"
                "Give arguments as functools.partial(Class, ...); "
                + (
                    "it draws from an nnx.Rngs that it does not own: take `rngs` as an argument, "
                    "which the layer gives from its seed."
                    if isinstance(error, flax.errors.TraceContextError)
                    else "`rngs` is given by the layer, from its seed."
                ),
                cause=error,
            ) from error
        if not isinstance(module, nnx.Module):
            raise AdapterError(
                f"{self._called} was called to make an NNX module, and returned {module!r:.80}. "
                "FlaxLayer takes modules, their classes, and functions that return one."
            )
        return _with_traced_arrays(module)


def source_of(obj: Any, streams: Iterable[str] = ()) -> Source:
    """The source that a user's object is.

    Args:
        obj: a module, a class or a function.
        streams: names of streams that constructors are given besides the default.
    """
    return Instance(obj) if isinstance(obj, nnx.Module) else Factory(obj, streams)


def was_sown(leaf: Any) -> bool:
    """Whether a variable is what `sow` or `perturb` made in a call, and makes in each."""
    dropped = COLLECTIONS.role((collection_of(leaf),)) is Role.DROP
    return dropped or isinstance(raw(leaf), tuple)


def _without_sown(parts: Parts) -> Any:
    """A module of the same arrays without what calls have left in it."""
    module = parts.as_it_is()
    if any(was_sown(leaf) for _, leaf in parts.leaves):
        nnx.pop(module, lambda path, leaf: was_sown(leaf))
    return module


def _takes_rngs(make: Callable[..., Any]) -> bool:
    """Whether `rngs` is an argument. A class is asked for its own, not for its metaclass's."""
    target = make.func if isinstance(make, functools.partial) else make
    try:
        called = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
        parameters = inspect.signature(called).parameters.values()
    except ValueError:  # written in C
        return False
    return any(p.name == "rngs" or p.kind is p.VAR_KEYWORD for p in parameters)


def _with_traced_arrays(module: nnx.Module) -> nnx.Module:
    """The module, in which arrays that are attributes by themselves are data in traces, too.

    Since Flax 0.11 it is settled when they are assigned, and tracers are not taken for arrays.
    """
    for _, node in list(nnx.iter_graph(module)) if hasattr(nnx, "data") else []:
        for name, value in list(vars(node).items()) if isinstance(node, nnx.Pytree) else []:
            if isinstance(value, jax.core.Tracer):
                setattr(node, name, nnx.data(value))
    return module
