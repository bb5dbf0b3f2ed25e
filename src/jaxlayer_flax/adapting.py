"""What the adapters for linen and for NNX have in common, and `FlaxLayer` needs of them."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax

from jaxlayer_core import Adapter, SignatureError
from jaxlayer_core.roles import Role


class FlaxAdapter(Adapter):
    """Adapts one kind of Flax modules. Abstract.

    Args:
        rngs: streams to supply besides those that a module demands.
    """

    def __init__(self, rngs: Iterable[str] = ()) -> None:
        self._rngs = tuple(rngs)

    def takes(self, obj: Any) -> bool:
        """Whether `FlaxLayer` takes `obj`, also if it does not tell its framework."""
        return self.accepts(obj)

    @abc.abstractmethod
    def variables(
        self, obj: Any, given: Any, state_policy: Mapping[str, Role | str] | None = None
    ) -> tuple[Any, Any]:
        """Splits the variables that a user gives for a module into params and state.

        Args:
            obj: the module.
            given: the variables, as the user has them.
            state_policy: the user's roles, before `jaxlayer_flax.roles.COLLECTIONS`.
        """

    def collections(self, given: Any) -> Any:
        """The dict of collections that a thing of the framework holds; others as they are."""
        return given

    def passed_over(self, obj: Any) -> Collection[str]:
        """Paths of what a module has beside its variables."""
        return ()

    @abc.abstractmethod
    def live(self, obj: Any, variables: Mapping[str, Any], key: jax.Array) -> Any:
        """A module to work with outside of Keras.

        Args:
            obj: what the layer was made of.
            variables: dict of collections.
            key: for its draws.
        """


def no_method(name: str, cls: type, framework: type, method: str) -> SignatureError:
    """The error for a method that a module does not have.

    Args:
        name: the model's name.
        cls: the module's class.
        framework: the class that its own methods are added to.
        method: what was asked for.
    """
    own = [
        member
        for base in cls.__mro__
        if issubclass(base, framework) and base is not framework
        for member, value in vars(base).items()
        if inspect.isfunction(value) and member[:1] != "_" and member != "setup"
    ]
    return SignatureError(
        f"{name} has no method {method!r}. Its methods are: "
        f"{', '.join(dict.fromkeys(own)) or 'none'}. Choose one with method=...."
    )
