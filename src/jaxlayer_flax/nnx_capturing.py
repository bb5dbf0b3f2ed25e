"""What modules inside an NNX module return, stored where `sow` stores: in the modules."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flax import nnx

from jaxlayer_core.capturing import Capture
from jaxlayer_flax import capturing
from jaxlayer_flax.nnx_leaves import names_of
from jaxlayer_flax.nnx_modes import modules

_RESULT = "jaxlayer_result"
"""The attribute that holds what a module returned."""


def record(module: nnx.Module, wants: Callable[[str], bool]) -> None:
    """Has modules store what they return.

    As variables, since these come out of `nnx.scan` and its kin, in which a module may run.

    Args:
        module: a module that is used for one call; the classes of those inside it change.
        wants: whether the result at a path is wanted.
    """
    for path, inside in list(modules(module)):
        if callable(inside) and wants(capturing.name((*names_of(path), "__call__"))):
            cls: Any = type(inside)
            inside.__class__ = _recording(cls)


def results(sown: Mapping[str, Any], capture: Capture) -> tuple[dict[str, list[Any]], set[str]]:
    """What was sown as intermediates, by the paths that users write.

    Args:
        sown: by path, collection first.
        capture: what is wanted.

    Returns:
        All results of all calls, and the keys of `sown` that are wanted.
    """
    found: dict[str, list[Any]] = {}
    taken = set()
    for key, value in sown.items():
        collection, *path = key.split("/")
        if collection == "intermediates":
            named = tuple("__call__" if part == _RESULT else part for part in path)
            name = capturing.name(named)
            found[name] = list(value) if isinstance(value, tuple) else [value]
            if capture.wants(name):
                taken.add(key)
    return found, taken


@contextmanager
def sowing() -> Iterator[None]:
    """Lets modules sow into themselves, which a module made for one call may do.

    Flax wants `nnx.capture` to be used, and says so, which the user can do nothing about.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Using 'Module\.(sow|perturb)", DeprecationWarning)
        yield


@functools.cache
def _recording(cls: Any) -> type:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = cls.__call__(self, *args, **kwargs)
        self.sow(nnx.Intermediate, _RESULT, outputs)
        return outputs

    return type(cls)(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
