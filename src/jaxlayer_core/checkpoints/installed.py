"""Which format a file has: by its suffix, or by what the user says.

Formats are entry points of the group `jaxlayer.formats`, ours among them. Only the one that is
asked for is loaded.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

from jaxlayer_core import dependencies, registry
from jaxlayer_core.checkpoints.format import Format
from jaxlayer_core.errors import AdapterError, CheckpointError

GROUP = "jaxlayer.formats"

FOLDERS = "orbax"
"""The format of folders whose suffix says nothing."""


def find(path: Path, name: str | Format | type[Format] | None = None) -> Format:
    """The format of a file that exists or shall be written.

    Args:
        path: its path.
        name: what the user says it is: the name of an installed format, or a format of their
            own; None to go by the suffix.

    Raises:
        CheckpointError: there is no such format.
        MissingDependencyError: a package that it needs is not installed.
        AdapterError: an installed format is broken.

    Example:
        >>> find(Path("model.npz")).label
        'npz'
    """
    if isinstance(name, Format):
        return name
    if isinstance(name, type) and issubclass(name, Format):
        return name()
    if name is not None and not isinstance(name, str):
        raise CheckpointError(
            f"format= takes the name of a format, or a jaxlayer_core.checkpoints.Format of your "
            f"own; got {name!r}. Installed are: {_known()}."
        )
    if name is not None:
        return _load(_entry_point(name.removeprefix("."), f"There is no format {name!r}."))
    suffix = path.suffix[1:].lower()
    if path.is_dir() and suffix not in _entry_points():
        suffix = FOLDERS
    return _load(
        _entry_point(
            suffix,
            f"The suffix {path.suffix!r} of {path} tells no format."
            if suffix
            else f"{path} has no suffix that would tell its format.",
        )
    )


def require(module: str) -> Any:
    """Imports a module of an optional package.

    Raises:
        MissingDependencyError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] == package:
            raise dependencies.missing(package, error) from error
        raise


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}


def _known() -> str:
    return ", ".join(sorted(_entry_points())) or "none"


def _entry_point(name: str, problem: str) -> importlib.metadata.EntryPoint:
    found = _entry_points().get(name)
    if found is None:
        raise CheckpointError(f"{problem} Choose one with format=: {_known()}.")
    return found


def _load(entry_point: importlib.metadata.EntryPoint) -> Format:
    origin = f"The format {entry_point.name!r} of {registry.distribution(entry_point)}"
    try:
        cls = entry_point.load()
    except ModuleNotFoundError as error:
        raise dependencies.missing((error.name or "").partition(".")[0], error) from error
    except Exception as error:
        raise AdapterError(
            f"{origin} failed to load: {type(error).__name__}: {error}", cause=error
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Format)):
        raise AdapterError(
            f"{origin} is not a format: expected a subclass of jaxlayer_core.checkpoints.Format, "
            f"got {cls!r}."
        )
    if missing := sorted(cls.__abstractmethods__):
        raise AdapterError(f"{origin} is not complete: implement {', '.join(missing)}.")
    return cls()
