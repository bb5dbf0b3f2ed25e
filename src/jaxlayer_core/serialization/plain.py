"""Rules for numbers, bytes, arrays, dtypes and containers."""

from __future__ import annotations

import base64
import functools
import math
import types
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlayer_core import rng, specs
from jaxlayer_core.serialization.decoder import Decoder
from jaxlayer_core.serialization.encoder import Encoder
from jaxlayer_core.serialization.rules import Node, Rule


class NumberRule(Rule):
    """Numbers that JSON has no word for."""

    tag = "number"

    def matches(self, value: Any) -> bool:
        """Whether it is a complex number, an infinity or not a number."""
        return type(value) in (complex, float)

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Python's own notation."""
        parts = [value.real, value.imag] if isinstance(value, complex) else [value]
        return {"parts": [repr(float(part)) for part in parts]}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A float, or a complex of two."""
        parts = [float(str(part)) for part in decoder.get(node, "parts", list)]
        return parts[0] if len(parts) == 1 else complex(*parts)


class ItemsRule(Rule):
    """Containers of a built-in type, and dicts whose keys JSON does not take."""

    tag = "items"
    _types: Mapping[str, Any] = types.MappingProxyType(
        {kind.__name__: kind for kind in (tuple, set, frozenset, dict)}
    )

    def matches(self, value: Any) -> bool:
        """Whether its type is exactly one of these."""
        return type(value) in self._types.values()

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """The items in order; of sets, in the order of their data."""
        items: Iterable[Any] = value
        if isinstance(value, dict):
            items = [list(pair) for pair in value.items()]
        data = [encoder.encode(item, f"[{i}]") for i, item in enumerate(items)]
        return {"type": type(value).__name__, "items": _sorted(data, value)}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A new container."""
        kind = self._types.get(decoder.get(node, "type", str))
        if kind is None:
            raise decoder.failure("is a container of an unknown type")
        return kind(decoder.decode(decoder.get(node, "items", list), ".items"))


def _sorted(data: list[Any], value: Any) -> list[Any]:
    return sorted(data, key=repr) if isinstance(value, set | frozenset) else data


class BytesRule(Rule):
    """Bytes."""

    tag = "bytes"

    def matches(self, value: Any) -> bool:
        """Whether it is of the type itself."""
        return type(value) is bytes

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """In base64."""
        return {"base64": base64.b64encode(value).decode("ascii")}

    def decode(self, node: Node, decoder: Decoder) -> bytes:
        """From base64."""
        return base64.b64decode(decoder.get(node, "base64", str), validate=True)


class RangeRule(Rule):
    """Slices and ranges."""

    tag = "range"

    def matches(self, value: Any) -> bool:
        """Whether it is one of these."""
        return type(value) in (slice, range)

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Start, stop and step."""
        bounds = [value.start, value.stop, value.step]
        return {"type": type(value).__name__, "bounds": [encoder.encode(bound) for bound in bounds]}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A new one."""
        bounds = decoder.decode(decoder.get(node, "bounds", list))
        if decoder.get(node, "type", str) == "slice":
            return slice(*bounds)
        value = range(*bounds)
        decoder.grow(len(value))
        return value


class EllipsisRule(Rule):
    """`...`."""

    tag = "ellipsis"

    def matches(self, value: Any) -> bool:
        """Whether it is that."""
        return value is ...

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Nothing more to say."""
        return {}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """The only one."""
        return ...


class DtypeRule(Rule):
    """Dtypes: `np.dtype` objects, NumPy's types and JAX's."""

    tag = "dtype"

    def matches(self, value: Any) -> bool:
        """Whether it is one."""
        return _dtype_kind(value) is not None

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """The name, and what kind of object it is."""
        return {"name": jnp.dtype(value).name, "kind": _dtype_kind(value)}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """The same object."""
        dtype = _dtype(decoder.get(node, "name", str), decoder)
        kind = decoder.get(node, "kind", str)
        return {"dtype": dtype, "numpy": dtype.type, "jax": getattr(jnp, dtype.name, None)}[kind]


def _dtype(name: str, decoder: Decoder) -> np.dtype[Any]:
    dtype = np.dtype(jnp.dtype(name))
    if dtype.hasobject or dtype.names is not None or dtype.kind in "OSUMm":
        raise decoder.failure(f"has the dtype {name!r}, which is none of numbers")
    return dtype


@functools.cache
def _jax_scalar_type() -> type:
    return type(jnp.float32)


def _dtype_kind(value: Any) -> str | None:
    if isinstance(value, np.dtype):
        return "dtype" if specs.is_numeric(value) else None
    if isinstance(value, _jax_scalar_type()):
        return "jax"
    is_type = isinstance(value, type) and issubclass(value, np.generic)
    return "numpy" if is_type and specs.is_numeric(jnp.dtype(value)) else None


class ArrayRule(Rule):
    """Arrays and array scalars of numbers, and typed PRNG keys."""

    tag = "array"

    def matches(self, value: Any) -> bool:
        """Whether it is one that has data."""
        if isinstance(value, np.ndarray | np.generic):
            return specs.is_numeric(value.dtype)
        return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Bytes in base64, little-endian, with shape and dtype."""
        kind = "jax" if isinstance(value, jax.Array) else "numpy"
        node: Node = {"kind": "scalar" if isinstance(value, np.generic) else kind}
        if rng.is_key(value):
            node["key"] = str(jax.random.key_impl(value))
            value = jax.random.key_data(value)
        array = np.asarray(value)
        raw = np.ascontiguousarray(array).tobytes()
        return {
            **node,
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "base64": base64.b64encode(raw).decode("ascii"),
        }

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A new array."""
        dtype = _dtype(decoder.get(node, "dtype", str), decoder)
        shape = decoder.get(node, "shape", list)
        raw = base64.b64decode(decoder.get(node, "base64", str), validate=True)
        if not all(type(size) is int and size >= 0 for size in shape) or (
            math.prod(shape) * dtype.itemsize != len(raw)
        ):
            raise decoder.failure(f"has {len(raw)} bytes for the shape {shape!r:.80}")
        array = np.frombuffer(raw, dtype).reshape(shape).copy()
        if "key" in node:
            return jax.random.wrap_key_data(jnp.asarray(array), impl=decoder.get(node, "key", str))
        kind = decoder.get(node, "kind", str)
        if kind == "scalar":
            return array[()]
        return jnp.asarray(array) if kind == "jax" else array
