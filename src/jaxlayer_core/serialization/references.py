"""Classes and functions by the names under which another process finds them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from jaxlayer_core import dependencies
from jaxlayer_core.errors import ConfigError, TrustError
from jaxlayer_core.serialization import trust
from jaxlayer_core.serialization.introductions import introduce


class Reference(NamedTuple):
    """Where an object is.

    Attributes:
        module: import name of a module.
        name: the object's name in it; a dotted one leads through classes.
        registered: the name that it is registered with Keras under, if it is.
    """

    module: str
    name: str
    registered: str | None = None

    @property
    def full(self) -> str:
        """The full name."""
        return f"{self.module}.{self.name}"

    @property
    def is_importable(self) -> bool:
        """Whether another process could find it: it is not of a script or a notebook."""
        return self.module != "__main__" and "<" not in self.name


def find(obj: Any) -> Reference | None:
    """The name of a class or function, or None if it has none.

    A private name, such as `jax._src.nn.functions.relu`, is avoided where a public one of the same
    package exists. An object that cannot be imported, because it is defined inside a function
    or in a notebook, has a name all the same: the user may give an object for it when loading.
    """
    module = getattr(obj, "__module__", None)
    name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    introduce(module.partition(".")[0])
    own = Reference(module, name, _registered_name(obj))
    has_public = _is_private(module) or trust.is_listed(own.full)
    candidates = [own, *_aliases(obj, own)] if has_public else [own]
    found = [ref for ref in candidates if "<" not in ref.name and _look_up(ref) is obj]
    found += [] if found else _aliases_in(obj, sys.modules.get(module), module)
    if found:
        return min(found, key=lambda ref: (_is_private(ref.module), _depth(ref), ref != own, ref))
    return None if "<lambda>" in name else own._replace(name=_unimportable(name))


def _registered_name(obj: Any) -> str | None:
    try:
        name = keras.saving.get_registered_name(obj)
    except TypeError:  # not hashable
        return None
    return name if ">" in name else None


def _unimportable(name: str) -> str:
    """A name that says of itself that nothing can be imported by it."""
    return name if "<" in name else f"<locals>.{name}"


def _depth(reference: Reference) -> int:
    return reference.full.count(".")


def _is_private(module: str) -> bool:
    return any(part.startswith("_") and part != "__main__" for part in module.split("."))


def _aliases(obj: Any, own: Reference) -> Iterator[Reference]:
    """The object's names in loaded public modules of its package."""
    package = own.module.partition(".")[0]
    for name, module in list(sys.modules.items()):
        is_public = name.partition(".")[0] == package and not _is_private(name)
        # Not by `getattr`: a module that loads lazily would load.
        if is_public and own.name.partition(".")[0] in vars(module):
            yield own._replace(module=name)


def _aliases_in(obj: Any, module: Any, name: str) -> list[Reference]:
    """The object's names in its own module, if it has others than it says."""
    names = vars(module) if module is not None else {}
    return [Reference(name, key) for key, value in names.items() if value is obj]


def _look_up(reference: Reference) -> Any:
    """What a name of a loaded module stands for, or None; only classes are looked into."""
    target = sys.modules.get(reference.module)
    for index, part in enumerate(reference.name.split(".")):
        if index and not isinstance(target, type):
            return None
        target = getattr(target, part, None)
    return target


def given(reference: Reference) -> Any:
    """What is registered with Keras, or given in `custom_objects`, for a name; or None.

    A name of JAX, Flax or Haiku is only replaced by an object given for the whole name:
    `custom_objects={"Dense": ...}` is meant for another `Dense`.
    """
    introduce(reference.module.partition(".")[0])
    last = reference.name.rpartition(".")[2]
    names = [reference.registered, reference.full]
    names += [] if trust.is_listed(reference.full) else [last]
    found = (keras.saving.get_registered_object(name) for name in names if name)
    return next((obj for obj in found if obj is not None), None)


def load(reference: Reference, *, safe: bool, where: str) -> Any:
    """The object of a name.

    Args:
        reference: the name.
        safe: whether only what is registered, given or trusted may be had.
        where: what of the config needs it, for errors.

    Raises:
        TrustError: it is none of these. Nothing was imported.
        MissingDependencyError: its package is not installed.
        ConfigError: there is no such object.
    """
    obj = given(reference)
    if obj is not None:
        return obj
    package = reference.module.partition(".")[0]
    missing = introduce(package)
    if safe and not trust.is_trusted(reference.full):
        if missing is not None:
            raise dependencies.missing(package, missing) from missing
        raise TrustError(_untrusted(reference, where))
    if not reference.is_importable and reference.module not in sys.modules:
        raise ConfigError(_unknown(reference, where))
    try:
        importlib.import_module(reference.module)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise dependencies.missing(package, error) from error
        raise ConfigError(_unknown(reference, where), cause=error) from error
    obj = _look_up(reference)
    if obj is None:
        raise ConfigError(_unknown(reference, where))
    home = getattr(obj, "__module__", None)
    own = f"{home}.{getattr(obj, '__qualname__', '')}"
    if safe and not (isinstance(home, str) and trust.is_at_home(reference.full, own)):
        raise TrustError(
            f"{where} names {reference.full!r}, which is {obj!r}, an object of {home!r} that a "
            f"file may not name. {_way_out(reference)}"
        )
    return obj


def _untrusted(reference: Reference, where: str) -> str:
    return (
        f"{where} names {reference.full!r}, which is neither registered with Keras, nor given, nor "
        f"of a trusted package, so it was not imported. {_way_out(reference)}"
    )


def _unknown(reference: Reference, where: str) -> str:
    last = reference.name.rpartition(".")[2]
    return (
        f"{where} names {reference.full!r}, which does not exist here. Give the object itself, "
        f"custom_objects={{{last!r}: ...}}, or install the version that the model was saved with."
    )


def _way_out(reference: Reference) -> str:
    last = reference.name.rpartition(".")[2]
    package = reference.module.partition(".")[0]
    return (
        f"If you trust it, load with custom_objects={{{last!r}: ...}}, call "
        f"jaxlayer.trust({package!r}) first, or load with safe_mode=False."
    )
