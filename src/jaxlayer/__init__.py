"""Haiku and Flax models as Keras layers.

Everything is loaded when it is first used, so `import jaxlayer` needs no framework:

    >>> import jaxlayer
    >>> jaxlayer.FlaxLayer.__module__
    'jaxlayer_flax.layer'
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlayer_core import Adapter, JaxLayer, JaxLayerError, as_layer, register_adapter, to_pure
    from jaxlayer_flax import FlaxLayer
    from jaxlayer_haiku import HaikuLayer

__all__ = [
    "Adapter",
    "FlaxLayer",
    "HaikuLayer",
    "JaxLayer",
    "JaxLayerError",
    "as_layer",
    "register_adapter",
    "to_pure",
]

_HOMES = {"FlaxLayer": ("jaxlayer_flax", "flax"), "HaikuLayer": ("jaxlayer_haiku", "haiku")}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("jaxlayer")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, framework = _HOMES.get(name, ("jaxlayer_core", ""))
    try:
        return getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if framework and error.name == framework:
            from jaxlayer_core import registry

            raise registry.missing(framework, error) from error
        raise


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
