"""NNX modules in configs: their attributes, and what their variables are like, without values.

A class with arguments is data as it is. The weights of an instance are in the file beside the
config; what is made of the config alone has zeros for them.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import keras
from flax import nnx

from jaxlayer_core import memory
from jaxlayer_core.serialization import Decoder, Encoder, Node, Rule, add_rule
from jaxlayer_core.serialization.trust import list_names
from jaxlayer_core.specs import ArraySpec
from jaxlayer_flax.nnx_leaves import raw
from jaxlayer_flax.nnx_trees import unsharded

_OWN = ("_pytree__state", "_pytree__nodes", "_object__state")
"""Attributes that Flax gives every object."""
_BASE: Any = getattr(nnx, "Pytree", nnx.Object)  # Flax 0.11 has renamed it
_WAYS = ("hijax", "ref", "eager_sharding")
"""Metadata that say how a process handles a variable."""


class ObjectRule(Rule):
    """Modules, and the random streams in them."""

    tag = "flax.nnx.object"
    has_identity = True

    def matches(self, value: Any) -> bool:
        """Whether it is an object of NNX."""
        return _is_object_class(type(value))

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Class and attributes, and which of these are data."""
        attributes = {name: item for name, item in vars(value).items() if name not in _OWN}
        data = vars(value).get("_pytree__nodes", {})
        return {
            "class": encoder.name(type(value)),
            "attributes": {
                name: encoder.encode(item, f".{name}") for name, item in attributes.items()
            },
            "data": sorted(name for name in attributes if data.get(name)),
        }

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """An object with these attributes; its `__init__` does not run."""
        cls = decoder.named_class(node, _is_object_class, "a class of NNX")
        attributes = decoder.decode(decoder.get(node, "attributes", dict), ".attributes")
        data = decoder.get(node, "data", list)
        value = _empty(cls)
        for name, item in attributes.items():
            if name in _OWN or name.startswith("__"):
                raise decoder.failure(f"has an attribute {name!r:.80}, which is Python's or Flax's")
            mark = getattr(nnx, "data", None) if name in data else None
            setattr(value, name, mark(item) if mark else item)
        return value


class VariableRule(Rule):
    """Variables: type and metadata, and shape and dtype in place of an array."""

    tag = "flax.nnx.variable"
    has_identity = True

    def matches(self, value: Any) -> bool:
        """Whether it is one."""
        return isinstance(value, nnx.Variable) and not isinstance(value, keras.Variable)

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Class, metadata, and what the value is like."""
        metadata = {k: v for k, v in value.get_metadata().items() if k not in _WAYS}
        return {
            "class": encoder.name(type(value)),
            "metadata": encoder.encode(metadata, ".metadata"),
            "value": _encoded(raw(value), encoder),
        }

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A variable of zeros, or of the value that is no array."""
        cls = decoder.named_class(node, lambda c: issubclass(c, nnx.Variable), "a variable of NNX")
        metadata = decoder.decode(decoder.get(node, "metadata", dict), ".metadata")
        value = _decoded(decoder.get(node, "value", dict), decoder)
        with unsharded():
            return cls(value, **metadata)


class MetadataRule(Rule):
    """Initialisers with metadata, as `nnx.with_partitioning` makes them."""

    tag = "flax.nnx.with_metadata"

    def matches(self, value: Any) -> bool:
        """Whether it is what `nnx.with_metadata` returned."""
        code = getattr(value, "__code__", None)
        wraps = getattr(code, "co_qualname", "") == "with_metadata.<locals>.wrapper"
        return wraps and value.__globals__.get("__name__") == nnx.with_metadata.__module__

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """The initialiser, and what it was given."""
        inside = dict(inspect.getclosurevars(value).nonlocals)
        initializer, metadata = inside.pop("initializer"), inside.pop("metadata")
        hooks = {name: item for name, item in inside.items() if item}
        return {
            "initializer": encoder.encode(initializer, ".initializer"),
            "metadata": encoder.encode({**hooks, **metadata}, ".metadata"),
        }

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """The same initialiser with the same metadata."""
        initializer = decoder.decode(decoder.get(node, "initializer", dict), ".initializer")
        metadata = decoder.decode(decoder.get(node, "metadata", dict), ".metadata")
        return nnx.with_metadata(initializer, **metadata)


def _encoded(value: Any, encoder: Encoder) -> Node:
    if not isinstance(value, jax.Array) and not hasattr(value, "dtype"):
        return {"is": encoder.encode(value, ".value")}
    is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    return {"shape": list(value.shape), "dtype": "key" if is_key else value.dtype.name}


def _decoded(value: Node, decoder: Decoder) -> Any:
    if "is" in value:
        return decoder.decode(value["is"], ".value")
    shape = decoder.get(value, "shape", list)
    if not all(type(size) is int and size >= 0 for size in shape):
        raise decoder.failure(f"has {shape!r:.80} for a shape")
    name = decoder.get(value, "dtype", str)
    if name == "key":
        data = jax.random.key_data(jax.random.key(0))
        spec = ArraySpec((*shape, *data.shape), data.dtype)
        memory.check_fits("A key of an NNX module", [spec])
        return jax.random.wrap_key_data(jnp.broadcast_to(data, spec.shape))
    try:
        spec = ArraySpec(tuple(shape), jnp.dtype(name))
    except TypeError as error:
        raise decoder.failure(f"has {name!r:.80} for a dtype", error) from error
    memory.check_fits("A variable of an NNX module", [spec])
    return jnp.zeros(spec.shape, spec.dtype)


def _is_object_class(cls: type) -> bool:
    # With NNX enabled, Keras' objects are, too.
    other = keras.layers.Layer | keras.Variable | nnx.Variable
    return issubclass(cls, _BASE) and not issubclass(cls, other)


def _empty(cls: Any) -> Any:
    """An object of a class without attributes but those of Flax, which its metaclass sets."""
    value = _without_init(cls)()
    value.__class__ = cls
    return value


@functools.cache
def _without_init(cls: Any) -> Any:
    namespace = {"__init__": lambda self: None, "__module__": cls.__module__}
    return type(cls)(cls.__name__, (cls,), namespace)


add_rule(ObjectRule())
add_rule(VariableRule())
add_rule(MetadataRule())
list_names(
    {"flax.nnx"},
    names={"flax.nnx.nn.recurrent._concatenate"},  # of nnx.Bidirectional
    outside={
        "flax.nnx.compat",
        "flax.nnx.display",
        "flax.nnx.graph",
        "flax.nnx.graphlib",
        "flax.nnx.proxy_caller",
        "flax.nnx.register_data_type",
        "flax.nnx.register_variable_name",
        "flax.nnx.reprlib",
        "flax.nnx.scripts",
        "flax.nnx.set_graph_mode",
        "flax.nnx.set_graph_updates",
        "flax.nnx.summary",
        "flax.nnx.tabulate",
        "flax.nnx.training",
        "flax.nnx.use_eager_sharding",
        "flax.nnx.use_hijax",
        "flax.nnx.use_refs",
        "flax.nnx.var_defaults",
        "flax.nnx.variablelib.register_variable_name",
        "flax.nnx.variablelib.use_eager_sharding",
        "flax.nnx.variablelib.var_defaults",
        "flax.nnx.visualization",
    },
    makers={"flax.nnx.initializers"},
)
