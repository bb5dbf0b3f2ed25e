"""The Keras layer over a model that an adapter understands."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import keras

from jaxlayer_core import model_config, registry
from jaxlayer_core.adapter import Adapter
from jaxlayer_core.errors import AdapterError
from jaxlayer_core.layer import PureLayer
from jaxlayer_core.pure import PureModule, PyTree
from jaxlayer_core.roles import Role
from jaxlayer_core.source import Source


@keras.saving.register_keras_serializable(package="jaxlayer")
class ModuleLayer(PureLayer):
    """Keras layer over a model of any framework that has an adapter.

    Users of Haiku and Flax have `HaikuLayer` and `FlaxLayer`, which are this with the
    framework's own words; `as_layer` makes this one for other frameworks.

    Args:
        module: the model.
        adapter: its adapter, or the adapter's class or name; None to find it.
        method: which of the model's methods to call; None for the usual one. A single call
            can choose another: `layer(x, method="encode")`.
        training_arg: the model's train flag, where it has an unusual name:
            `"mode"`, or `"not frozen"` if it is True in inference; several as a tuple; `()`
            for a model that must not be told.
        params: initial params.
        state: initial state.
        capture: paths of intermediate results that the layer's own method returns beside its
            output: it then returns `(output, {path: value})`. What a path is, the adapter
            says.
        state_policy: see `PureLayer`.
        **kwargs: see `PureLayer`.
    """

    adapter_class: ClassVar[type[Adapter] | None] = None
    """The adapter whose models `as_layer` wraps in this class, for subclasses."""

    @classmethod
    def is_for(cls, adapter: Adapter) -> bool:
        """Whether `as_layer` wraps the models of an adapter in this class."""
        return cls.adapter_class is type(adapter)

    def __init__(
        self,
        module: Any,
        *,
        adapter: str | Adapter | type[Adapter] | None = None,
        method: Any = None,
        training_arg: str | Iterable[str] | None = None,
        params: PyTree = None,
        state: PyTree = None,
        capture: str | Iterable[str] = (),
        state_policy: Mapping[str, Role | str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.method = method
        self._training_arg = training_arg
        self._adapter_given = adapter
        self._capture = [capture] if isinstance(capture, str) else list(capture)
        found = registry.resolve(module, adapter)
        takes = inspect.signature(found.purify).parameters
        if self._capture and "capture" not in takes:
            raise AdapterError(
                f"{type(found).__name__}, the adapter for {found.framework}, cannot capture "
                "intermediate results. Make the layer without capture=."
            )
        shared: dict[str, Any] = {"training_arg": training_arg}
        if "state_policy" in takes:
            shared["state_policy"] = state_policy

        def purify(chosen: Any) -> PureModule:
            if chosen not in (None, method or "__call__"):
                return found.purify(module, method=chosen, **shared)
            own = {"capture": self._capture} if self._capture else {}
            return found.purify(module, method=method, **shared, **own)

        super().__init__(purify, params=params, state=state, state_policy=state_policy, **kwargs)
        # Not the attributes of the layer: Keras replaces what contains dicts and lists.
        parts = {"module": module, "method": _without_owner(method)}
        if isinstance(adapter, type):
            parts["adapter"] = adapter
        self._source = Source(self.name, parts)

    @property
    def module(self) -> Any:
        """The model, as it was given.

        No attribute: with NNX enabled, an NNX module in one would be part of the layer.
        """
        return self._source.objects["module"]

    def get_config(self) -> dict[str, Any]:
        """Config with the model as Keras serialises it."""
        if self.adapter_class is None and _has_options(self._adapter_given):
            raise AdapterError(
                f"{self.name} cannot be saved with the adapter {self._adapter_given!r}, whose "
                "options would be lost. Use the framework's own layer class, or an adapter "
                "class without arguments."
            )
        training_arg = self._training_arg
        if training_arg is not None and not isinstance(training_arg, str):
            training_arg = list(training_arg)
        config = {
            **super().get_config(),
            **model_config.describe(self, self._source),
            "training_arg": training_arg,
            "capture": list(self._capture),
        }
        if isinstance(self._adapter_given, str):
            config["adapter"] = self._adapter_given
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PureLayer:
        """Rebuilds the layer from `get_config()`.

        Returns:
            The layer; a `ProgramLayer` where the model is not to be had, but its program is.

        Raises:
            TrustError: the config names what nobody trusts.
            MissingDependencyError: a package is not installed.
            ConfigError: the config is broken.
        """
        config = dict(config)
        parts = model_config.restore(cls, config, "module")
        if isinstance(parts, PureLayer):
            return parts
        layer: ModuleLayer = super().from_config({**config, **parts})
        return layer


def _without_owner(method: Any) -> Any:
    """The method, by name where it belongs to the model."""
    owner = getattr(method, "__self__", None)
    return method if owner is None else method.__name__


def _has_options(adapter: Any) -> bool:
    """Whether an adapter is not simply what its class makes, which is what a load will use."""
    if not isinstance(adapter, Adapter):
        return False
    try:
        return vars(type(adapter)()) != vars(adapter)
    except TypeError:  # it needs arguments
        return True


def as_layer(module: Any, **options: Any) -> PureLayer:
    """Makes a Keras layer of a model, whatever its framework.

    Args:
        module: a Flax or Equinox module, a Haiku transform or module class, an object of any
            framework whose adapter is installed or registered, or a pair `(init, apply)` of
            functions, see `jaxlayer_core.init_apply`.
        **options: of the layer; see `ModuleLayer`.

    Returns:
        The layer.

    Raises:
        AdapterError: no adapter knows the object, or several do.
        MissingDependencyError: its framework is not installed.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> as_layer(nn.Dense(2))(jnp.ones((4, 3))).shape
        (4, 2)
    """
    given = options.pop("adapter", None)
    adapter = registry.resolve(module, given)
    if isinstance(given, Adapter):  # it may have options of its own, which a class would lose
        return ModuleLayer(module, adapter=given, **options)
    for cls in ModuleLayer.__subclasses__():
        if cls.is_for(adapter):
            return cls(module, **options)
    return ModuleLayer(module, adapter=adapter, **options)
