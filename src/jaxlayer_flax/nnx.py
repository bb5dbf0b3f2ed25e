"""The adapter for Flax NNX modules."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import keras
from flax import nnx

from jaxlayer_core import AdapterError, PureModule
from jaxlayer_core.capturing import Capture
from jaxlayer_core.roles import Role
from jaxlayer_core.serialization.trust import is_of_framework
from jaxlayer_flax import nnx_bridge
from jaxlayer_flax.adapting import FlaxAdapter
from jaxlayer_flax.nnx_leaves import name_of, type_of
from jaxlayer_flax.nnx_model import NnxModel
from jaxlayer_flax.nnx_sources import source_of
from jaxlayer_flax.nnx_trees import Parts
from jaxlayer_flax.roles import COLLECTIONS, Collections


class NnxAdapter(FlaxAdapter):
    """Adapts modules of `flax.nnx`: instances, classes, and functions that make one.

    Args:
        rngs: names of streams that constructors, and calls that take `rngs`, are given besides
            the default stream.

    Example:
        >>> NnxAdapter().accepts(functools.partial(nnx.Linear, 3, 4))
        True
    """

    framework = "flax.nnx"

    def accepts(self, obj: Any) -> bool:
        """Whether `obj` is an NNX module, or a class of them, with or without arguments."""
        target = obj.func if isinstance(obj, functools.partial) else obj
        return _is_module_class(target if isinstance(target, type) else type(target))

    def takes(self, obj: Any) -> bool:
        """Whether `FlaxLayer` takes `obj`: also a function, which may make a module."""
        target = obj.func if isinstance(obj, functools.partial) else obj
        # What a framework has is no model. A config could have anything called by naming it.
        is_own = isinstance(target, types.FunctionType) and not is_of_framework(target.__module__)
        return is_own or self.accepts(obj)

    def purify(
        self,
        obj: Any,
        *,
        method: Any = None,
        training_arg: str | Iterable[str] | None = None,
        state_policy: Mapping[str, Role | str] | None = None,
        capture: str | Iterable[str] = (),
    ) -> PureModule:
        """Makes the canonical form of a module and one of its methods."""
        source = source_of(obj, self._rngs)
        collections = _collections(source.parts, state_policy)
        return NnxModel(
            source, method, training_arg, self._rngs, collections, Capture(capture)
        ).pure()

    def variables(
        self, obj: Any, given: Any, state_policy: Mapping[str, Role | str] | None = None
    ) -> tuple[Any, Any]:
        """Splits variables into params and state.

        Args:
            obj: the module that they are for.
            given: a dict of collections, an `nnx.State`, or a module that holds them.
            state_policy: the user's roles, before `jaxlayer_flax.roles.COLLECTIONS`.
        """
        parts = source_of(obj, self._rngs).parts
        params, state = _collections(parts, state_policy).split(self.collections(given))
        return params or None, state or None

    def collections(self, given: Any) -> Any:
        """The collections of a module or an `nnx.State`; others as they are."""
        if isinstance(given, nnx.Module):
            return Parts.of(given).variables()
        if isinstance(given, nnx.State):
            return Parts(None, nnx.to_flat_state(given)).variables()
        return given

    def passed_over(self, obj: Any) -> Collection[str]:
        """Paths of the states of random streams, which a module's own state has, too."""
        return source_of(obj, self._rngs).parts.streams()

    def live(self, obj: Any, variables: Mapping[str, Any], key: jax.Array) -> nnx.Module:
        """A module with these variables, and random streams that start from a key.

        Args:
            obj: what the layer was made of.
            variables: dict of collections.
            key: see `jaxlayer_flax.reseed`.

        Raises:
            AdapterError: Flax itself has not made all variables of the module that was given.
        """
        source = source_of(obj, self._rngs)
        if nnx_bridge.is_unmade(source.parts.as_it_is()):
            remedy = (
                "Call nnx.bridge.lazy_init(module, x) before making the layer of it."
                if isinstance(obj, nnx.Module)
                else "Make the layer of a function that takes `rngs` and returns "
                "nnx.bridge.lazy_init(Class(..., rngs=rngs), x)."
            )
            raise AdapterError(
                f"{source.name} was given to the layer before the linen modules inside it had "
                f"variables, so there is no NNX module to put them into. {remedy}"
            )
        return source.parts.merge(variables, key)


def _is_module_class(cls: type) -> bool:
    # With NNX enabled, Keras' layers are NNX modules.
    return issubclass(cls, nnx.Module) and not issubclass(cls, keras.layers.Layer)


def _collections(parts: Parts, state_policy: Mapping[str, Role | str] | None) -> Collections:
    """The roles of a module's collections; subclasses of `nnx.Param` are params."""
    types = {type_of(leaf) for _, leaf in parts.leaves}
    own = {
        re.escape(name_of(kind)): Role.PARAM
        for kind in types
        if issubclass(kind, nnx.Param) and kind is not nnx.Param
    }
    return Collections(COLLECTIONS.extended(own).extended(state_policy))
