"""Flax models as Keras layers."""

import jaxlayer_core  # noqa: F401  # first: it settles the backend before Keras is imported
from jaxlayer_flax import serialization  # noqa: F401  # lists what configs may name
from jaxlayer_flax.layer import FlaxLayer
from jaxlayer_flax.linen import LinenAdapter

__all__ = ["FlaxLayer", "LinenAdapter"]
