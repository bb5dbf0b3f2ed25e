"""How a module wants to be called: what is data, and what Equinox' users hand it beside that."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from jaxlayer_core import Arguments, SignatureError, StructureError
from jaxlayer_core.signature import supply

_KEY = "key"


@dataclasses.dataclass(frozen=True)
class Method:
    """One method of a module class.

    Attributes:
        owner: the model's name, for errors.
        name: of the method.
        parameters: all that it takes, without `self`.
        state: the parameter that takes the `eqx.nn.State`, or None.
    """

    owner: str
    name: str
    parameters: tuple[inspect.Parameter, ...]
    state: str | None

    @classmethod
    def of(cls, owner: str, module: eqx.Module, is_stateful: bool, method: Any) -> Method:
        """Reads the signature of a method.

        Args:
            owner: the model's name.
            module: the module; its arrays may be missing.
            is_stateful: whether it has state.
            method: name, function, or None for `__call__`.

        Raises:
            SignatureError: there is no such method.
        """
        name = "__call__" if method is None else getattr(method, "__name__", method)
        # Not `hasattr`, for which every class has a `__call__`: that of its metaclass.
        if not any(name in vars(base) for base in type(module).__mro__):
            raise SignatureError(_no_method(owner, type(module), name))
        function = getattr(type(module), name)
        bound = _parameters(function)
        if not isinstance(inspect.getattr_static(type(module), name), staticmethod):
            bound = bound[1:]
        takers = [p.name for p in bound if _takes_state(p, is_stateful)]
        return cls(owner, name, tuple(bound), takers[0] if takers else None)

    @property
    def data(self) -> list[inspect.Parameter]:
        """The parameters that a caller of the layer gives."""
        return [p for p in self.parameters if p.name not in (_KEY, self.state)]

    @property
    def takes_key(self) -> bool:
        """Whether it takes `key`."""
        return any(p.name == _KEY for p in self.parameters)

    def run(
        self, module: eqx.Module, arguments: Arguments, state: eqx.nn.State, key: jax.Array
    ) -> tuple[Any, eqx.nn.State]:
        """Calls the method.

        Returns:
            Outputs and the new state.

        Raises:
            StructureError: it takes the state and does not return it.
        """
        supplied: dict[str, Any] = {_KEY: key} if self.takes_key else {}
        if self.state is not None:
            supplied[self.state] = state
        args, kwargs = supply(self.parameters, *arguments, supplied)
        function: Callable[..., Any] = getattr(module, self.name)
        result = function(*args, **kwargs)
        if self.state is None:
            return result, state
        is_pair = isinstance(result, tuple) and len(result) == 2
        if not (is_pair and isinstance(result[1], eqx.nn.State)):
            kind = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result)
            raise StructureError(
                f"{self.owner} takes the state as `{self.state}`, so `{self.name}` must return "
                f"the tuple (outputs, state), but it returned {kind}. Several outputs go into "
                "one: return (a, b), state."
            )
        return result


def _parameters(function: Any) -> list[inspect.Parameter]:
    """The parameters, with annotations evaluated where that can be."""
    try:
        return list(inspect.signature(function, eval_str=True).parameters.values())
    except (NameError, AttributeError, TypeError, SyntaxError):
        # Some names exist for type checkers only.
        return list(inspect.signature(function).parameters.values())


def _takes_state(parameter: inspect.Parameter, is_stateful: bool) -> bool:
    """Whether a parameter is for the `eqx.nn.State`: its name says so, or its annotation."""
    if is_stateful and parameter.name == "state":
        return True
    annotation = parameter.annotation
    if isinstance(annotation, str):
        is_annotated = annotation.endswith("nn.State")
    else:
        is_annotated = eqx.nn.State in (annotation, *typing.get_args(annotation))
    is_optional = parameter.default is not parameter.empty
    return is_annotated and (is_stateful or not is_optional)


def _no_method(owner: str, cls: type, name: Any) -> str:
    if name == "__call__":
        text = f"{owner} cannot be called: it has no `__call__`. Choose one with method=."
    else:
        text = f"{owner} has no method {name!r}."
    public = [
        member for member, _ in inspect.getmembers(cls, callable) if not member.startswith("_")
    ]
    return f"{text} Its methods are: {', '.join(public) or 'none'}."
