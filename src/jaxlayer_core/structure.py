"""Arrays apart from everything else, so that the rest can be a static part of a program.

Arguments mix arrays with strings, numbers and options; results sometimes do too. JAX
compiles functions of arrays. `CallStructure` is what is left of a call when its arrays are
taken out; `packed` has the same for results.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import keras
import numpy as np

from jaxlayer_core import keras_bridge, rng, serialization
from jaxlayer_core.errors import ConfigError
from jaxlayer_core.pure import Arguments
from jaxlayer_core.specs import is_numeric


class Static:
    """A value compared as a cache key must compare: `True`, `1` and `1.0` all differ."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def is_hashable(self) -> bool:
        """Whether equal values can be told; one that cannot may change between two calls."""
        try:
            hash(self.value)
        except TypeError:
            return False
        return True

    def _key(self) -> Any:
        value = self.value
        if not self.is_hashable:
            return type(value), id(value)
        return type(value), repr(value) if isinstance(value, float | complex) else value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return repr(self.value)


def is_array(value: Any) -> bool:
    """Whether a value travels as an array: it has a shape and a dtype, and is no container."""
    if isinstance(value, jax.Array | keras.KerasTensor):
        return True
    if isinstance(value, np.ndarray):
        return is_numeric(value.dtype)
    looks_like_one = hasattr(value, "shape") and hasattr(value, "dtype")
    return looks_like_one and not isinstance(value, type) and jax.tree_util.all_leaves([value])


def is_plain(value: Any) -> bool:
    """Whether a value is a nest of arrays as Keras' own layers take and return them.

    That is lists, tuples and dicts of arrays; no None, no node types of JAX, and no classes
    derived from dict, such as the outputs of transformers.
    """
    if type(value) in (dict, collections.OrderedDict):
        return bool(value) and all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return bool(value) and all(map(is_plain, value))
    return is_array(value)


@dataclasses.dataclass(frozen=True)
class KeyData:
    """Marks an array that is a typed PRNG key, which Keras cannot carry, as its data."""

    impl: Any


@dataclasses.dataclass(frozen=True)
class Place:
    """Stands for an array in the config of a call.

    Attributes:
        key: the implementation, if the array is a typed PRNG key.
    """

    key: str | None


class PlaceRule(serialization.Rule):
    """Data of a `Place`."""

    tag = "place"

    def matches(self, value: Any) -> bool:
        """Whether it is one."""
        return isinstance(value, Place)

    def encode(self, value: Any, encoder: serialization.Encoder) -> serialization.Node:
        """What kind of array goes there."""
        return {"key": value.key}

    def decode(self, node: serialization.Node, decoder: serialization.Decoder) -> Place:
        """The place."""
        return Place(decoder.get(node, "key", str) if node.get("key") else None)


serialization.add_rule(PlaceRule())


def _leaf(value: Any) -> Static | KeyData | None:
    if not isinstance(value, Place):
        return Static(value)
    return None if value.key is None else KeyData(value.key)


@keras.saving.register_keras_serializable(package="jaxlayer")
@dataclasses.dataclass(frozen=True)
class CallStructure:
    """A call without its arrays.

    Attributes:
        treedef: structure of `(args, kwargs)`.
        leaves: per leaf None for an array, `KeyData` for a key, `Static` for the rest.
        method: which method of the model is called; None for the layer's own.
    """

    treedef: Any
    leaves: tuple[Static | KeyData | None, ...]
    method: str | None = None

    @classmethod
    def of(
        cls, args: tuple[Any, ...], kwargs: dict[str, Any], method: str | None = None
    ) -> tuple[list[Any], CallStructure]:
        """Takes the arrays out of a call.

        Returns:
            The arrays, and the structure that puts them back.
        """
        values, treedef = jax.tree_util.tree_flatten((args, kwargs))
        arrays: list[Any] = []
        leaves: list[Static | KeyData | None] = []
        for value in values:
            if not is_array(value):
                leaves.append(Static(value))
            elif rng.is_key(value):
                leaves.append(KeyData(jax.random.key_impl(value)))
                arrays.append(jax.random.key_data(value))
            else:
                leaves.append(None)
                arrays.append(value)
        return arrays, cls(treedef, tuple(leaves), method)

    def get_config(self) -> dict[str, Any]:
        """The call as data, with places for its arrays.

        Raises:
            NotExpressibleError: one of its arguments has no name, such as a lambda.
        """
        places = [
            leaf.value if isinstance(leaf, Static) else Place(str(leaf.impl) if leaf else None)
            for leaf in self.leaves
        ]
        args, kwargs = jax.tree_util.tree_unflatten(self.treedef, places)
        encoded = serialization.encode({"args": list(args), "kwargs": kwargs}, "the call")
        return {"call": encoded.data, "method": self.method}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CallStructure:
        """The structure of `get_config()`.

        Raises:
            ConfigError: the config is broken, or names what may not be had.
        """
        safe = keras_bridge.is_safe_mode()
        call = serialization.decode(config.get("call"), safe=safe, root="the call", stand_ins=True)
        method = config.get("method")
        if not (
            isinstance(call, dict)
            and isinstance(call.get("args"), list)
            and isinstance(call.get("kwargs"), dict)
            and isinstance(method, str | None)
        ):
            raise ConfigError(f"The config of a call is broken: {config!r:.200}.")
        values, treedef = jax.tree_util.tree_flatten((tuple(call["args"]), call["kwargs"]))
        return cls(treedef, tuple(map(_leaf, values)), method)

    @property
    def is_arrays_only(self) -> bool:
        """Whether all leaves are arrays that Keras can carry."""
        return all(leaf is None for leaf in self.leaves)

    @property
    def is_cacheable(self) -> bool:
        """Whether equal structures mean equal calls, so that a program can be kept."""
        return all(leaf.is_hashable for leaf in self.leaves if isinstance(leaf, Static))

    @property
    def is_single(self) -> bool:
        """Whether the call is one positional array."""
        return self.leaves == (None,) and self.treedef == _SINGLE and self.method is None

    def restore(self, arrays: Sequence[Any]) -> Arguments:
        """The arguments, with `arrays` in their places."""
        remaining = iter(arrays)
        values: list[Any] = []
        for leaf in self.leaves:
            if isinstance(leaf, Static):
                values.append(leaf.value)
            elif isinstance(leaf, KeyData):
                values.append(jax.random.wrap_key_data(next(remaining), impl=leaf.impl))
            else:
                values.append(next(remaining))
        args, kwargs = jax.tree_util.tree_unflatten(self.treedef, values)
        return Arguments(tuple(args), dict(kwargs))


_SINGLE = jax.tree_util.tree_structure(((0,), {}))
