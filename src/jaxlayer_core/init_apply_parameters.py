"""What the parameters of an `init` and of an `apply` are for, by their names."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax import export

from jaxlayer_core.errors import SignatureError
from jaxlayer_core.pure import Arguments, PyTree
from jaxlayer_core.signature import supply

KEYS = ("rng", "key", "rng_key", "prng_key", "prng")
"""What a parameter for a key is called."""
STATES = ("state", "states")
"""What a parameter of `apply` for the state is called."""
SHAPES = ("input_shape", "in_shape", "shape")
"""What a parameter of `init` is called that takes the shape of the input instead of the input."""

_Parameters = Mapping[str, inspect.Parameter]
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_HINT = "Wrap both in functions with these names, or use JaxLayer(call_fn, init_fn)."
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclasses.dataclass(frozen=True)
class Init:
    """An `init`, and what its parameters are for.

    Attributes:
        owner: the model's name.
        function: itself.
        parameters: its parameters.
        key: which of them takes the key, or None.
        shape: which takes the shape of the input, or None.
    """

    owner: str
    function: Callable[..., Any]
    parameters: _Parameters
    key: str | None
    shape: str | None

    @classmethod
    def of(cls, owner: str, function: Callable[..., Any]) -> Init:
        """Reads the signature.

        Args:
            owner: the model's name.
            function: `init`.

        Raises:
            SignatureError: it cannot be told which parameter is the key.
        """
        parameters = _parameters(owner, "init", function)
        shape = _named(parameters, SHAPES)
        key = _named(parameters, KEYS)
        if key is None and parameters:
            first = next(iter(parameters))
            if shape is None or first == shape:
                raise SignatureError(
                    f"`init` of {owner} takes ({', '.join(parameters)}), and none of these is "
                    f"called {' or '.join(map(repr, KEYS[:2]))}, so it cannot be told which is "
                    f"the key. {_HINT}"
                )
            key = first
        return cls(owner, function, parameters, key, shape)

    @property
    def takes_shape(self) -> bool:
        """Whether it follows the convention of stax."""
        return self.shape is not None

    def run(
        self, rng: jax.Array, arguments: Arguments, taken: Iterable[inspect.Parameter]
    ) -> PyTree:
        """What it makes, without the shape of the output.

        Args:
            rng: the key.
            arguments: of the call that the model is initialised for.
            taken: the parameters of `apply` that they are for.

        Raises:
            SignatureError: it requires something that is not among them.
        """
        given: dict[str, Any] = {} if self.key is None else {self.key: rng}
        named = _by_name(arguments, taken)
        if self.shape is not None:
            first = next(iter(named.values()), None)
            given[self.shape] = jax.tree.map(lambda x: tuple(x.shape), first)
        rest = [name for name in named if name not in self.parameters]
        for name, parameter in self.parameters.items():
            if name in given or parameter.kind in _VARIABLE:
                continue
            if name in named:
                given[name] = named[name]
            elif parameter.default is parameter.empty:
                if not rest:
                    raise SignatureError(
                        f"`init` of {self.owner} requires `{name}`, and `apply` takes nothing "
                        f"that it could be. {_HINT}"
                    )
                given[name] = named[rest.pop(0)]
        made = _called(self.function, self.parameters, given)
        return made[1] if self.takes_shape and _has_shape(made) else made


@dataclasses.dataclass(frozen=True)
class Apply:
    """An `apply`, and what its parameters are for.

    Attributes:
        function: itself.
        parameters: its parameters.
        params: which takes the params.
        state: which takes the state, or None.
        key: which takes the key, or None.
        data: those that a caller of the layer gives.
    """

    function: Callable[..., Any]
    parameters: _Parameters
    params: str
    state: str | None
    key: str | None
    data: list[inspect.Parameter]

    @classmethod
    def of(cls, owner: str, function: Callable[..., Any], takes_shape: bool) -> Apply:
        """Reads the signature.

        Args:
            owner: the model's name.
            function: `apply`.
            takes_shape: whether `init` does: then `**kwargs` get the key.

        Raises:
            SignatureError: the first parameter is not for the params.
        """
        parameters = _parameters(owner, "apply", function)
        names = [name for name, p in parameters.items() if p.kind not in _VARIABLE]
        if not names or names[0] in (*KEYS, *STATES):
            raise SignatureError(
                f"`apply` of {owner} takes ({', '.join(map(str, parameters.values()))}). Its "
                f"first argument must be the params. {_HINT}"
            )
        state = names[1] if names[1:2] and names[1] in STATES else None
        key = _named(parameters, KEYS)
        supplied = {names[0], state, key}
        data = [p for name, p in parameters.items() if name not in supplied]
        if key is None and takes_shape and any(p.kind is p.VAR_KEYWORD for p in data):
            key = KEYS[0]
        return cls(function, parameters, names[0], state, key, data)

    def run(self, params: PyTree, state: PyTree, rng: jax.Array, arguments: Arguments) -> Any:
        """What it returns."""
        supplied = {self.params: params}
        if self.state is not None:
            supplied[self.state] = state
        if self.key is not None:
            supplied[self.key] = rng
        args, kwargs = supply(self.parameters.values(), *arguments, supplied)
        return self.function(*args, **kwargs)


def _parameters(owner: str, role: str, function: Callable[..., Any]) -> _Parameters:
    try:
        return inspect.signature(function).parameters
    except ValueError as error:
        raise SignatureError(
            f"`{role}` of {owner} does not tell its arguments: {error}. {_HINT}", cause=error
        ) from error


def _named(parameters: _Parameters, names: Iterable[str]) -> str | None:
    return next((name for name in parameters if name in names), None)


def _by_name(arguments: Arguments, taken: Iterable[inspect.Parameter]) -> dict[str, Any]:
    """The arguments of a call by the names that `apply` has for them."""
    names = [p.name for p in taken if p.kind in _POSITIONAL]
    names += [f"*{number}" for number in range(len(arguments.args) - len(names))]
    return {**dict(zip(names, arguments.args, strict=False)), **arguments.kwargs}


def _called(function: Callable[..., Any], parameters: _Parameters, given: dict[str, Any]) -> Any:
    """Calls a function by position, as far as all that is before a value is given, too."""
    args = []
    for name, parameter in parameters.items():
        if name not in given or parameter.kind not in _POSITIONAL:
            break
        args.append(given.pop(name))
    return function(*args, **given)


def _has_shape(made: Any) -> bool:
    """Whether a result is `(output_shape, params)`, where shapes may be nested."""

    def is_dimension(leaf: Any) -> bool:
        return isinstance(leaf, int | np.integer) or export.is_symbolic_dim(leaf)

    is_pair = type(made) is tuple and len(made) == 2
    return is_pair and all(map(is_dimension, jax.tree.leaves(made[0])))
