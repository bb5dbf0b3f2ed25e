"""Functions of the cases under names, as those that users write into their modules have."""

from __future__ import annotations

import functools
import sys
import types
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .cases import Case

MODULE = types.ModuleType("parity_functions")
sys.modules[MODULE.__name__] = MODULE


def give_names(obj: Any) -> None:
    """Makes functions importable that the cases define inside of others.

    Args:
        obj: a model: a function, or what frameworks make of one.
    """
    if isinstance(obj, functools.partial):
        obj = (obj.func, *obj.args, *obj.keywords.values())
    if isinstance(obj, tuple | list):
        for one in obj:
            give_names(one)
    if not isinstance(obj, types.FunctionType):
        return
    if obj.__module__.startswith(__package__):
        obj.__module__ = MODULE.__name__
        obj.__name__ = obj.__qualname__ = f"function_{len(vars(MODULE))}"
        setattr(MODULE, obj.__name__, obj)
    elif obj.__module__ != MODULE.__name__:  # a framework's, around ours
        for cell in obj.__closure__ or ():
            give_names(cell.cell_contents)


def packages(case: Case) -> list[str]:
    """Import names of the packages that a case is from: its distributions' and our own."""
    words = [word for word in case.requires.split() if not word.startswith("-")]
    wanted = {canonicalize_name(Requirement(word).name) for word in words}
    names = metadata.packages_distributions().items()
    found = [name for name, own in names if wanted & {*map(canonicalize_name, own)}]
    return [*filter(str.isidentifier, found), __package__, MODULE.__name__]
