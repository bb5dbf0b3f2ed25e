"""Haiku in configs: what of it may be named, and its multi-transforms."""

from __future__ import annotations

import inspect
import types
from typing import Any

import haiku as hk

from jaxlayer_core.serialization import Decoder, Encoder, Node, Rule, add_rule
from jaxlayer_core.serialization.trust import is_of_framework, list_names
from jaxlayer_haiku.transforms import MULTI


class MultiTransformRule(Rule):
    """Multi-transforms. The functions that they are made of are those of local functions."""

    tag = "haiku.multi_transform"

    def matches(self, value: Any) -> bool:
        """Whether it is one, made of a function that can be found."""
        return isinstance(value, MULTI) and _original(value.init) is not None

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """The function that was transformed."""
        function = encoder.encode(_original(value.init), ".init")
        return {"function": function, "with_state": isinstance(value, hk.MultiTransformedWithState)}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """The transform of the function."""
        function = decoder.decode(decoder.get(node, "function", dict), ".function")
        # It is called at once. What the frameworks have, or a partial of it, is no model.
        is_model = isinstance(function, types.FunctionType)
        if not is_model or (decoder.is_safe and is_of_framework(function.__module__)):
            raise decoder.failure(f"transforms {function!r:.80}, which is no function of a model")
        with_state = decoder.get(node, "with_state", bool)
        return (hk.multi_transform_with_state if with_state else hk.multi_transform)(function)


def _original(init: Any) -> Any:
    """The function that a multi-transform's `init` was made of, or None.

    All the transforms around each other close over what they were made of, by the name `f`.
    """
    inside = inspect.getclosurevars(getattr(init, "_original_fn", init)).nonlocals.get("f")
    if isinstance(inside, hk.MultiTransformedWithState):
        return _original(inside.init)
    return inside if isinstance(inside, types.FunctionType) else None


add_rule(MultiTransformRule())
list_names(
    {"haiku"},
    outside={"haiku.config", "haiku.experimental", "haiku.mixed_precision", "haiku.testing"},
    makers={
        "haiku.transform",
        "haiku.transform_with_state",
        "haiku.with_empty_state",
        "haiku.without_apply_rng",
        "haiku.without_state",
    },
)
