"""Optax' transformations as Keras optimizers."""

import jaxlayer_core  # noqa: F401  # first: it settles the backend before Keras is imported
from jaxlayer_optax import serialization  # noqa: F401  # adds its rules
from jaxlayer_optax.choosing import Labels, Matching
from jaxlayer_optax.errors import OptaxError
from jaxlayer_optax.optimizer import OptaxOptimizer, as_optimizer
from jaxlayer_optax.swapping import SwapWeights

__all__ = [
    "Labels",
    "Matching",
    "OptaxError",
    "OptaxOptimizer",
    "SwapWeights",
    "as_optimizer",
]
