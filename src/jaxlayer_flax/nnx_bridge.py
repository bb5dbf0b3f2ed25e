"""Linen modules inside of NNX modules: `nnx.bridge.ToNNX`, whose variables the first call makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from flax import nnx

from jaxlayer_flax import modes


def linen_of(module: Any) -> nn.Module | None:
    """The linen module that a `ToNNX` wraps; None for any other module."""
    if not isinstance(module, nnx.bridge.ToNNX):
        return None
    return next(value for value in vars(module).values() if isinstance(value, nn.Module))


def linen_method(module: Any, method: Any) -> Callable[..., Any] | None:
    """The method of the linen module that a `ToNNX` wraps; None for what is no method of it.

    Args:
        module: any NNX module.
        method: name or function; None for `__call__`.
    """
    linen = linen_of(module)
    if linen is None:
        return None
    function = getattr(method, "__func__", method)
    name = getattr(function, "__name__", "") if callable(function) else method or "__call__"
    found = getattr(type(linen), name, None)
    is_other = callable(function) and found is not function
    return None if is_other or not callable(found) else found


def is_unmade(module: Any) -> bool:
    """Whether a `ToNNX` in a module has no variables yet."""
    return any(
        isinstance(node, nnx.bridge.ToNNX) and not _variables_of(node)
        for _, node in nnx.iter_graph(module)
    )


def make_variables(module: Any, method: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Makes them by a call, as `lazy_init` does."""
    nnx.bridge.lazy_init(method.__get__(module), *args, **kwargs)


def all_but(collections: set[str]) -> Any:
    """What linen takes as `mutable` for collections that a call must leave alone."""
    return nn.DenyList(collections)


def set_mode(module: Any, training: bool, flags: Mapping[str, bool]) -> None:
    """Tells the linen module that a `ToNNX` wraps whether it trains, where an attribute says so.

    Args:
        module: any NNX module; changed in place.
        training: the mode.
        flags: names of attributes that are flags, with their values in training.
    """
    linen = linen_of(module)
    if linen is None:
        return
    changed = modes.with_mode(linen, modes.attribute_flags(linen, flags), training)
    name = next(name for name, value in vars(module).items() if value is linen)
    setattr(module, name, changed)


def _variables_of(module: Any) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, nnx.Variable | dict) and not name.startswith("to_nnx__")
    ]
