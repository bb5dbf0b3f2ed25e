"""Flax models as Keras layers."""

import jaxlayer_core  # noqa: F401  # first: it settles the backend before Keras is imported
from jaxlayer_flax import nnx_serialization, serialization  # noqa: F401  # what configs may name
from jaxlayer_flax.layer import FlaxLayer
from jaxlayer_flax.linen import LinenAdapter
from jaxlayer_flax.nnx import NnxAdapter
from jaxlayer_flax.nnx_rngs import reseed

__all__ = ["FlaxLayer", "LinenAdapter", "NnxAdapter", "reseed"]
