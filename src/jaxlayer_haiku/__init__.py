"""Haiku models as Keras layers."""

import jaxlayer_core  # noqa: F401  # first: it settles the backend before Keras is imported
from jaxlayer_haiku import serialization  # noqa: F401  # adds its rules
from jaxlayer_haiku.adapter import HaikuAdapter
from jaxlayer_haiku.layer import HaikuLayer
from jaxlayer_haiku.pickled import unpickle

__all__ = ["HaikuAdapter", "HaikuLayer", "unpickle"]
