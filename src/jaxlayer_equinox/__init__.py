"""Equinox modules as Keras layers."""

import jaxlayer_core  # noqa: F401  # first: it settles the backend before Keras is imported
from jaxlayer_equinox import serialization  # noqa: F401  # adds its rules
from jaxlayer_equinox.adapter import EquinoxAdapter
from jaxlayer_equinox.layer import EquinoxLayer

__all__ = ["EquinoxAdapter", "EquinoxLayer"]
