"""Equinox in configs: modules by class and fields, with shapes in place of their arrays."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxlayer_core import rng
from jaxlayer_core.serialization import Decoder, Encoder, Node, Rule, add_rule
from jaxlayer_core.serialization.trust import list_names
from jaxlayer_equinox.states import is_index
from jaxlayer_equinox.trees import is_array


class ShapeRule(Rule):
    """What stands for an array of a module, whose values are among the weights."""

    tag = "equinox.array"

    def matches(self, value: Any) -> bool:
        """Whether it is that; keys have no dtype by name."""
        return isinstance(value, jax.ShapeDtypeStruct) and not rng.is_key(value)

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Shape and dtype."""
        return {"shape": list(value.shape), "dtype": encoder.encode(jnp.dtype(value.dtype))}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """The same."""
        shape = decoder.get(node, "shape", list)
        if not all(type(size) is int and size >= 0 for size in shape):
            raise decoder.failure(f"has the shape {shape!r:.80}")
        return jax.ShapeDtypeStruct(tuple(shape), decoder.decode(node.get("dtype")))


class ModuleRule(Rule):
    """Modules: class and fields, but for those that are as the class has them by default."""

    tag = "equinox.module"

    def matches(self, value: Any) -> bool:
        """Whether it is one."""
        return isinstance(value, eqx.Module) and not is_index(value)

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Class and fields."""
        defaults = _defaults(type(value))
        fields = {}
        for field in dataclasses.fields(value):
            if field.name not in vars(value):  # the class has it: __init__ has not set its own
                continue
            item = vars(value)[field.name]
            if item is None or item is not defaults.get(field.name):
                item = item if field.metadata.get("static") else _blank(item)
                fields[field.name] = encoder.encode(item, f".{field.name}")
        return {"class": encoder.name(type(value)), "fields": fields}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A module with these fields; its class runs nothing, as where JAX unflattens one."""
        cls = decoder.named_class(node, lambda c: issubclass(c, eqx.Module), "a module of Equinox")
        fields = decoder.decode(decoder.get(node, "fields", dict), ".fields")
        own = {field.name for field in dataclasses.fields(cls)}
        if unknown := fields.keys() - own:
            raise decoder.failure(f"has the fields {sorted(unknown)}, which {cls.__name__} has not")
        defaults = {k: v for k, v in _defaults(cls).items() if k in own and inspect.isroutine(v)}
        value = object.__new__(cls)
        for name, item in {**defaults, **fields}.items():
            object.__setattr__(value, name, item)
        return value


class StateIndexRule(Rule):
    """Where a module keeps state, and what that is at first."""

    tag = "equinox.state_index"

    def matches(self, value: Any) -> bool:
        """Whether it is one."""
        return is_index(value)

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """What it is made of."""
        return {"init": encoder.encode(_blank(value.init), ".init")}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A new one."""
        return eqx.nn.StateIndex(decoder.decode(node.get("init"), ".init"))


def _blank(tree: Any) -> Any:
    """A tree with shapes in place of its arrays."""

    def blank(leaf: Any) -> Any:
        if not is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jax.eval_shape(lambda: jnp.asarray(leaf))

    return jax.tree.map(blank, tree)


def _defaults(cls: type) -> dict[str, Any]:
    """The functions that the class's `__init__` has as defaults, such as a local `lambda x: x`."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if inspect.isroutine(p.default)}


add_rule(ShapeRule())
add_rule(ModuleRule())
add_rule(StateIndexRule())
# The latter is what eqx.nn.WeightNorm holds.
list_names({"equinox.nn"}, names={"equinox.nn._weight_norm._norm_except_axis"})
