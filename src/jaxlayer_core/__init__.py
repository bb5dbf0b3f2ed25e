"""Core of jaxlayer: JAX models as Keras layers, whatever framework they are written in."""

# ruff: noqa: E402  # the backend is chosen before anything imports Keras
from jaxlayer_core import default_backend

default_backend.choose()

from jaxlayer_core.adapter import Adapter
from jaxlayer_core.errors import (
    AdapterError,
    BackendError,
    BuildError,
    JaxLayerError,
    MissingDependencyError,
    ModuleError,
    PatternError,
    SignatureError,
    StructureError,
)
from jaxlayer_core.functions import JaxLayer
from jaxlayer_core.leaving import PureModel, to_pure
from jaxlayer_core.module_layer import ModuleLayer, as_layer
from jaxlayer_core.pure import Annotated, Arguments, Outcome, PureModule, Variables
from jaxlayer_core.registry import register_adapter, unregister_adapter
from jaxlayer_core.rng import key_from_seed, stream_key
from jaxlayer_core.roles import Policy, Role
from jaxlayer_core.signature import CallSignature

__all__ = [
    "Adapter",
    "AdapterError",
    "Annotated",
    "Arguments",
    "BackendError",
    "BuildError",
    "CallSignature",
    "JaxLayer",
    "JaxLayerError",
    "MissingDependencyError",
    "ModuleError",
    "ModuleLayer",
    "Outcome",
    "PatternError",
    "Policy",
    "PureModel",
    "PureModule",
    "Role",
    "SignatureError",
    "StructureError",
    "Variables",
    "as_layer",
    "key_from_seed",
    "register_adapter",
    "stream_key",
    "to_pure",
    "unregister_adapter",
]
