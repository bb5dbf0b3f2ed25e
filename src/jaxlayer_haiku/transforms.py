"""Haiku's many transforms, all as one form: with state, with rng."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax

from jaxlayer_core import paths
from jaxlayer_core.errors import SignatureError

State = Mapping[str, Any]


class Stateful(NamedTuple):
    """A Haiku model as `hk.transform_with_state` gives it.

    Attributes:
        init: `(rng, *args, **kwargs) -> (params, state)`.
        apply: `(params, state, rng, *args, **kwargs) -> (outputs, state)`.
        parameters: the model's own parameters.
        name: for errors.
        init_parameters: those of init, where it has its own.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    parameters: tuple[inspect.Parameter, ...]
    name: str
    init_parameters: tuple[inspect.Parameter, ...] | None = None


TRANSFORMED = (hk.Transformed, hk.TransformedWithState)
MULTI = (hk.MultiTransformed, hk.MultiTransformedWithState)


def is_module_class(obj: Any) -> bool:
    """Whether `obj` is a Haiku module class, or a partial of one."""
    target = obj.func if isinstance(obj, functools.partial) else obj
    return isinstance(target, type) and issubclass(target, hk.Module)


def to_stateful(obj: Any, method: Any) -> Stateful:
    """Normalises anything that is a Haiku model.

    Args:
        obj: a transform of any kind, a module class or a partial of one, or a function.
        method: a method of the class, or an entry of a multi-transform; None for the
            usual one.

    Raises:
        SignatureError: there is no such method.
    """
    if isinstance(obj, MULTI):
        return _from_multi(obj, method)
    if isinstance(obj, TRANSFORMED):
        _refuse_method(obj, method)
        stateful = isinstance(obj, hk.TransformedWithState)
        takes_rng = _takes_rng(obj.init, obj.apply, stateful)
        init_own = tuple(inspect.signature(obj.init).parameters.values())[1:]
        own = tuple(inspect.signature(obj.apply).parameters.values())[1 + stateful + takes_rng :]
        if original := _original(obj):
            # Haiku's signatures lack arguments of the model's own called `rng` or `state`.
            own = init_own = tuple(inspect.signature(original).parameters.values())
        return Stateful(
            _init_with_state(obj.init, stateful),
            _apply_with_all(obj.apply, stateful, takes_rng),
            own,
            _name(obj),
            init_parameters=None if init_own == own else init_own,
        )
    function = _from_class(obj, method) if is_module_class(obj) else obj
    if function is obj:
        _refuse_method(obj, method)
    transformed = hk.transform_with_state(function)
    parameters = tuple(inspect.signature(function).parameters.values())
    return Stateful(transformed.init, transformed.apply, parameters, _name(obj))


def _original(transformed: Any) -> Callable[..., Any] | None:
    """The function that Haiku transformed, or None if `init` and `apply` have not one."""
    original: Callable[..., Any] | None = getattr(transformed.init, "_original_fn", None)
    return original if getattr(transformed.apply, "_original_fn", None) is original else None


def _refuse_method(obj: Any, method: Any) -> None:
    if method is not None:
        raise SignatureError(
            f"{_name(obj)} has no method {method!r}: it is a single function. Several methods "
            "that share weights come from hk.multi_transform, or from a module class."
        )


def _from_class(cls: Any, method: Any) -> Callable[..., Any]:
    """A function that makes the module and calls it, with the call's own signature."""
    target = cls.func if isinstance(cls, functools.partial) else cls
    if callable(method):
        unbound = method
    else:
        unbound = getattr(target, method or "__call__", None)
        if unbound is None:
            public = [n for n, _ in inspect.getmembers(target, callable) if n[:1] != "_"]
            raise SignatureError(
                f"{target.__name__} has no method {method!r}. Its methods are: "
                f"{', '.join(public) or 'none'}."
            )

    def function(*args: Any, **kwargs: Any) -> Any:
        return unbound(cls(), *args, **kwargs)

    parameters = list(inspect.signature(unbound).parameters.values())[1:]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__name__ = target.__name__
    return function


def _from_multi(multi: Any, method: Any) -> Stateful:
    """One apply function of a multi-transform, with the init they share."""
    named = {
        paths.show(path): apply for path, apply in paths.flatten(multi.apply, is_leaf=callable)[0]
    }
    if method is None and len(named) == 1:
        method = next(iter(named))
    choice = (
        f"This multi-transform has the methods {', '.join(named)}; choose one when making the "
        "layer, method=..., or in a call, layer(x, method=...)."
        + (" A tuple's functions are numbered." if "0" in named else "")
    )
    if method is not None and str(method) not in named:
        raise SignatureError(f"There is no method {method!r}. {choice}")

    def undecided(params: Any, state: Any, key: jax.Array, /, *args: Any, **kwargs: Any) -> Any:
        raise SignatureError(f"No method is chosen. {choice}")

    stateful = isinstance(multi, hk.MultiTransformedWithState)
    apply = named.get(str(method), undecided)
    leading = list(inspect.signature(apply).parameters)
    takes_rng = leading[2 if stateful else 1 :][:1] == ["rng"]
    anything = (
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    )
    return Stateful(
        _init_with_state(multi.init, stateful),
        undecided if apply is undecided else _apply_with_all(apply, stateful, takes_rng),
        anything,
        f"the method {method!r} of a multi-transform",
        init_parameters=anything,
    )


def _takes_rng(init: Callable[..., Any], apply: Callable[..., Any], stateful: bool) -> bool:
    """Whether `apply` has an rng argument, which `hk.without_apply_rng` removes.

    Its name tells, unless the model's own first argument has the same name: then the number
    of arguments does, because `init` takes the rng and the model's own.
    """
    names = list(inspect.signature(apply).parameters)
    if names[1 + stateful :][:1] != ["rng"]:
        return False
    own = list(inspect.signature(init).parameters)[1:]
    return own[:1] != ["rng"] or len(names) - len(own) != 1 + stateful


def _init_with_state(init: Callable[..., Any], stateful: bool) -> Callable[..., Any]:
    def with_state(rng: jax.Array, /, *args: Any, **kwargs: Any) -> Any:
        return init(rng, *args, **kwargs), {}

    return init if stateful else with_state


def _apply_with_all(apply: Callable[..., Any], stateful: bool, rng: bool) -> Callable[..., Any]:
    def full(params: Any, state: Any, key: jax.Array, /, *args: Any, **kwargs: Any) -> Any:
        before = (params, state) if stateful else (params,)
        outputs = apply(*before, *((key,) if rng else ()), *args, **kwargs)
        return outputs if stateful else (outputs, state)

    return full


def _name(obj: Any) -> str:
    if isinstance(obj, TRANSFORMED):
        obj = getattr(obj.init, "_original_fn", obj.init)
    if isinstance(obj, functools.partial):
        obj = obj.func
    name = getattr(obj, "__name__", type(obj).__name__)
    return "the Haiku function" if name == "<lambda>" else f"the Haiku model {name}"
