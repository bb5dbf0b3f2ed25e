"""Who adapts this object: registered adapters, installed ones, and one for plain functions.

An installed adapter is an entry point of the group `jaxlayer.adapters` whose name is the
package of the framework it serves. It is matched with the modules in an object's MRO, so
looking for an adapter imports nothing but the one that fits.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterable
from typing import Any

from jaxlayer_core.adapter import Adapter
from jaxlayer_core.dependencies import missing
from jaxlayer_core.errors import AdapterError
from jaxlayer_core.init_apply import InitApplyAdapter

GROUP = "jaxlayer.adapters"

_registered: list[Adapter] = []
_LAST = InitApplyAdapter()
"""Adapts what belongs to no framework."""


def check(cls: Any, origin: str) -> type[Adapter]:
    """Checks that `cls` is a usable adapter class.

    Raises:
        AdapterError: it is not; says what is missing.
    """
    if not (isinstance(cls, type) and issubclass(cls, Adapter)):
        raise AdapterError(
            f"{origin} is not an adapter: expected a subclass of jaxlayer_core.Adapter, "
            f"got {cls!r}."
        )
    if missing := sorted(cls.__abstractmethods__):
        raise AdapterError(
            f"{origin} ({cls.__name__}) is not complete: implement {', '.join(missing)}."
        )
    if not isinstance(getattr(cls, "framework", None), str):
        raise AdapterError(
            f"{origin} ({cls.__name__}) does not say which framework it adapts: set the class "
            "attribute `framework`, for example framework = 'haiku'."
        )
    allowed = set(inspect.signature(Adapter.purify).parameters)
    takes = inspect.signature(cls.purify).parameters
    if not allowed <= set(takes) and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise AdapterError(
            f"{origin} ({cls.__name__}): `purify` must take {sorted(allowed)}, it takes "
            f"{list(takes)}."
        )
    return cls


def register_adapter(cls: type[Adapter]) -> type[Adapter]:
    """Makes an adapter known in this process; usable as a decorator.

    The newest registered adapter that accepts an object wins, before any installed one.

    Args:
        cls: the adapter class; instantiated at once.

    Returns:
        `cls`.

    Raises:
        AdapterError: the class is not a usable adapter.
    """
    _registered.insert(0, check(cls, "The registered class")())
    return cls


def unregister_adapter(cls: type[Adapter]) -> None:
    """Takes back `register_adapter(cls)`."""
    _registered[:] = [adapter for adapter in _registered if type(adapter) is not cls]


def installed() -> list[importlib.metadata.EntryPoint]:
    """The entry points of all installed adapters, none of them loaded."""
    return list(importlib.metadata.entry_points(group=GROUP))


def load(entry_point: importlib.metadata.EntryPoint) -> Adapter:
    """Loads an installed adapter.

    Raises:
        MissingDependencyError: its framework is not installed.
        AdapterError: it is broken.
    """
    origin = f"The adapter {entry_point.name!r} of {distribution(entry_point)}"
    try:
        cls = entry_point.load()
    except ImportError as error:
        package = entry_point.name.partition(".")[0]
        if (error.name or "").partition(".")[0] == package:
            raise missing(package, error) from error
        raise AdapterError(f"{origin} failed to import: {error}", cause=error) from error
    except Exception as error:
        raise AdapterError(
            f"{origin} failed to load: {type(error).__name__}: {error}", cause=error
        ) from error
    return check(cls, origin)()


def distribution(entry_point: importlib.metadata.EntryPoint) -> str:
    """The distribution that an entry point comes from, with its version."""
    dist = entry_point.dist
    return f"{dist.name} {dist.version}" if dist is not None else "an unknown distribution"


def _classes(obj: Any) -> list[type]:
    """The classes whose modules tell the framework, most derived first."""
    target = getattr(obj, "func", obj) if type(obj).__name__ == "partial" else obj
    return list((target if isinstance(target, type) else type(target)).__mro__)


def _matching(obj: Any) -> list[importlib.metadata.EntryPoint]:
    """Entry points of the most derived class that has any."""
    candidates = installed()
    for cls in _classes(obj):
        module = f"{cls.__module__}."
        fits = [e for e in candidates if module.startswith(f"{e.name}.")]
        if fits:
            longest = max(len(e.name) for e in fits)
            return [e for e in fits if len(e.name) == longest]
    return []


def resolve(obj: Any, adapter: str | Adapter | type[Adapter] | None = None) -> Adapter:
    """Finds the adapter for a model.

    Args:
        obj: the model.
        adapter: the adapter itself, its class, or an installed one's name; None to look.

    Raises:
        AdapterError: there is none, there are two, or it is broken.
        MissingDependencyError: its framework is not installed.
    """
    if isinstance(adapter, Adapter):
        return adapter
    if isinstance(adapter, type):
        return check(adapter, "The class given as `adapter`")()
    if isinstance(adapter, str):
        return _by_name(adapter)
    for registered in _registered:
        if registered.accepts(obj):
            return registered
    matches = _matching(obj)
    accepting = [(e, a) for e, a in ((e, load(e)) for e in matches) if a.accepts(obj)]
    if len(accepting) > 1:
        names = ", ".join(f"{e.name!r} of {distribution(e)}" for e, _ in accepting)
        raise AdapterError(
            f"Several installed adapters accept {_describe(obj)}: {names}. Choose one with "
            "adapter=..., giving its class, or uninstall the others."
        )
    if accepting:
        return accepting[0][1]
    if not matches and _LAST.accepts(obj):
        return _LAST
    raise AdapterError(_nobody(obj))


def _by_name(name: str) -> Adapter:
    registered = [a for a in (*_registered, _LAST) if a.framework == name]
    if registered:
        return registered[0]
    entry_points = [e for e in installed() if e.name == name]
    if not entry_points:
        known = sorted({e.name for e in installed()} | {a.framework for a in _registered})
        raise AdapterError(f"There is no adapter {name!r}. Known: {', '.join(known) or 'none'}.")
    if len(entry_points) > 1:
        names: Iterable[str] = map(distribution, entry_points)
        raise AdapterError(f"Several installed adapters are called {name!r}: {', '.join(names)}.")
    return load(entry_points[0])


def _describe(obj: Any) -> str:
    cls = obj if isinstance(obj, type) else type(obj)
    kind = "the class" if isinstance(obj, type) else "an object of"
    return f"{kind} {cls.__module__}.{cls.__qualname__}"


def _nobody(obj: Any) -> str:
    known = sorted({e.name for e in installed()} | {a.framework for a in _registered})
    text = (
        f"No adapter knows {_describe(obj)}. Adapters: {', '.join(known) or 'none'}. "
        "Register one with jaxlayer_core.register_adapter, or name one with adapter=...."
    )
    if isinstance(obj, type):
        text += " Perhaps an instance of the class is meant, not the class."
    if inspect.isroutine(obj) or type(obj).__name__ == "partial":
        text += (
            " A plain function does not tell its framework: use HaikuLayer(fn) for one that uses "
            "Haiku modules, or JaxLayer(call_fn, init_fn) for pure JAX functions."
        )
    return text
