"""Haiku models as Keras layers."""

from jaxlayer_haiku.adapter import HaikuAdapter
from jaxlayer_haiku.layer import HaikuLayer

__all__ = ["HaikuAdapter", "HaikuLayer"]
