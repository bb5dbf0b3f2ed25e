"""Frameworks say through their adapters what of them configs may name."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata

GROUP = "jaxlayer.adapters"


@functools.cache
def introduce(package: str) -> ImportError | None:
    """Imports the installed adapters of a framework, which list its names and bring its rules.

    Args:
        package: the framework's top-level package, as a name or an object says it.

    Returns:
        Why that failed: the framework is not installed.
    """
    for entry_point in importlib.metadata.entry_points(group=GROUP):
        if entry_point.name.partition(".")[0] == package:
            try:
                importlib.import_module(entry_point.module)
            except ImportError as error:
                return error
    return None
