"""Core of jaxlayer: JAX models as Keras layers, whatever framework they are written in."""

# ruff: noqa: E402  # the backend is chosen before anything imports Keras
from jaxlayer_core import default_backend

default_backend.choose()

from jaxlayer_core import homes
from jaxlayer_core.adapter import Adapter
from jaxlayer_core.errors import (
    AdapterError,
    BackendError,
    BuildError,
    CheckpointError,
    ConfigError,
    JaxLayerError,
    LayoutError,
    LayoutWarning,
    MissingDependencyError,
    ModuleError,
    NotExpressibleError,
    PatternError,
    ProcessWarning,
    ProgramError,
    SignatureError,
    StructureError,
    TrustError,
)
from jaxlayer_core.files import replacing
from jaxlayer_core.functions import JaxLayer
from jaxlayer_core.layout_rules import check_layout_map, layout_map_from
from jaxlayer_core.leaving import PureModel, to_pure
from jaxlayer_core.loading import load_weights
from jaxlayer_core.module_layer import ModuleLayer, as_layer
from jaxlayer_core.processes import gather_predictions
from jaxlayer_core.program_layer import ProgramLayer
from jaxlayer_core.pure import Annotated, Arguments, Outcome, PureModule, Variables
from jaxlayer_core.registry import register_adapter, unregister_adapter
from jaxlayer_core.rng import key_from_seed, stream_key
from jaxlayer_core.roles import Policy, Role
from jaxlayer_core.scanned_steps import scan_steps
from jaxlayer_core.seeds import keep_seeds
from jaxlayer_core.serialization import distrust, trust, trusting
from jaxlayer_core.signature import CallSignature

homes.announce()

__all__ = [
    "Adapter",
    "AdapterError",
    "Annotated",
    "Arguments",
    "BackendError",
    "BuildError",
    "CallSignature",
    "CheckpointError",
    "ConfigError",
    "JaxLayer",
    "JaxLayerError",
    "LayoutError",
    "LayoutWarning",
    "MissingDependencyError",
    "ModuleError",
    "ModuleLayer",
    "NotExpressibleError",
    "Outcome",
    "PatternError",
    "Policy",
    "ProcessWarning",
    "ProgramError",
    "ProgramLayer",
    "PureModel",
    "PureModule",
    "Role",
    "SignatureError",
    "StructureError",
    "TrustError",
    "Variables",
    "as_layer",
    "check_layout_map",
    "distrust",
    "gather_predictions",
    "keep_seeds",
    "key_from_seed",
    "layout_map_from",
    "load_weights",
    "register_adapter",
    "replacing",
    "scan_steps",
    "stream_key",
    "to_pure",
    "trust",
    "trusting",
    "unregister_adapter",
]
