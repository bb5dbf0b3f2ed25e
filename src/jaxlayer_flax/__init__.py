"""Flax models as Keras layers."""

from jaxlayer_flax.layer import FlaxLayer
from jaxlayer_flax.linen import LinenAdapter

__all__ = ["FlaxLayer", "LinenAdapter"]
