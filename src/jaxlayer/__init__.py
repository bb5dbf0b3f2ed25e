"""Haiku and Flax models as Keras layers.

The frameworks' layers are loaded when they are first used, so `import jaxlayer` needs none:

    >>> import jaxlayer
    >>> jaxlayer.FlaxLayer.__module__
    'jaxlayer_flax.layer'
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlayer_core import (
        Adapter,
        JaxLayer,
        JaxLayerError,
        as_layer,
        check_layout_map,
        distrust,
        gather_predictions,
        keep_seeds,
        layout_map_from,
        load_weights,
        register_adapter,
        replacing,
        scan_steps,
        to_pure,
        trust,
        trusting,
    )
    from jaxlayer_equinox import EquinoxLayer
    from jaxlayer_flax import FlaxLayer
    from jaxlayer_haiku import HaikuLayer
    from jaxlayer_optax import OptaxOptimizer, as_optimizer

__all__ = [
    "Adapter",
    "EquinoxLayer",
    "FlaxLayer",
    "HaikuLayer",
    "JaxLayer",
    "JaxLayerError",
    "OptaxOptimizer",
    "as_layer",
    "as_optimizer",
    "check_layout_map",
    "distrust",
    "gather_predictions",
    "keep_seeds",
    "layout_map_from",
    "load_weights",
    "register_adapter",
    "replacing",
    "scan_steps",
    "to_pure",
    "trust",
    "trusting",
]

# It makes the layers' names known to Keras, so that a saved model loads after `import jaxlayer`.
# Where Keras cannot be imported, whatever is used first says why.
with contextlib.suppress(ImportError):
    importlib.import_module("jaxlayer_core")

_HOMES = {
    "EquinoxLayer": ("jaxlayer_equinox", "equinox"),
    "FlaxLayer": ("jaxlayer_flax", "flax"),
    "HaikuLayer": ("jaxlayer_haiku", "haiku"),
    "OptaxOptimizer": ("jaxlayer_optax", "optax"),
    "as_optimizer": ("jaxlayer_optax", "optax"),
}


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
            from jaxlayer_core import dependencies

            raise dependencies.missing(framework, error) from error
        raise


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
