"""Random pytrees: all kinds of nodes, all dtypes, odd names."""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st


class Pair(NamedTuple):
    one: Any
    two: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    data: Any
    more: Any
    kind: str = dataclasses.field(default="plain", metadata={"static": True})


@flax.struct.dataclass
class Struct:
    data: Any
    more: Any
    kind: str = flax.struct.field(pytree_node=False, default="plain")


@jax.tree_util.register_pytree_node_class
class Unkeyed:
    """A node that gives JAX no names for its children."""

    def __init__(self, *children: Any) -> None:
        self.children = children

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        return self.children, None

    @classmethod
    def tree_unflatten(cls, aux: None, children: Any) -> Unkeyed:
        return cls(*children)


# Of the dtypes that a Keras variable can have. The others (int4, more kinds of float8) are
# refused by `keras.backend.standardize_dtype`, so neither a variable nor a tensor can hold them.
FLOATS = ["float32", "float16", "bfloat16", "complex64", "float64"]
FLOAT8 = ["float8_e4m3fn", "float8_e5m2"]
INTEGERS = ["int8", "int16", "int32", "uint8", "uint16", "uint32", "bool", "int64"]
DTYPES = [*FLOATS, *FLOAT8, *INTEGERS]
SHAPES = [(), (1,), (3,), (2, 2), (0,), (2, 0, 3)]
KEYS = ["threefry2x32", "rbg", "unsafe_rbg"]


def _array(dtype: str, shape: tuple[int, ...], seed: int, wrap: bool) -> Any:
    """Random bits: NaN of all kinds, infinities, negative zeros and subnormal numbers."""
    if dtype in ("float64", "int64"):
        # JAX narrows it, whoever hands it over; NumPy warns of what does not fit.
        return np.full(shape, seed, dtype)
    kind = jnp.dtype(dtype)
    raw = np.random.default_rng(seed).bytes(int(np.prod(shape)) * kind.itemsize)
    if dtype == "bool":
        array = np.frombuffer(raw, "uint8").reshape(shape) % 2 == 1
    else:
        array = np.frombuffer(raw, kind).reshape(shape)
    return jnp.asarray(array) if wrap else np.array(array)


def arrays(shapes: Any = SHAPES, dtypes: Any = DTYPES) -> st.SearchStrategy[Any]:
    """JAX and NumPy arrays."""
    shape, dtype = st.sampled_from(shapes), st.sampled_from(dtypes)
    return st.builds(_array, dtype, shape, st.integers(0, 999), st.booleans())


def keys() -> st.SearchStrategy[jax.Array]:
    """Typed PRNG keys, single ones and arrays of them."""

    def make(seed: int, shape: tuple[int, ...], impl: str) -> jax.Array:
        key = jax.random.key(seed, impl=impl)
        return key if shape == () else jax.random.split(key, shape)

    return st.builds(make, st.integers(0, 99), st.sampled_from(SHAPES[:4]), st.sampled_from(KEYS))


def numbers() -> st.SearchStrategy[Any]:
    """Python numbers, which count as arrays."""
    return st.sampled_from([True, False, 0, -3, 2.5, -0.0, float("inf"), 1 + 2j])


def statics() -> st.SearchStrategy[Any]:
    """Leaves that are no arrays: handed on as they are."""
    return st.sampled_from(["text", "", len, np.float32, frozenset({1}), b"bytes"])


_ODD = ["", "/", "a/b", "a", "b", "a.b", "a%b", "a%2Eb", "a%25", ".", "..", "%", " ", "a ", "ä"]
_ODD += ["A", "_", "__", "a_1", "_1", "a/b_1", "~", "日本", "🙂", "a\n", "a\\b", "a[0]", "^a$", "0"]
_OWN = ["params", "state", "vars", "seed_generator", "value", "layers", "metrics", "name"]
_LONG = ["x" * 300, "x" * 299 + "/", "y/" * 200 + "y"]


def names() -> st.SearchStrategy[str]:
    """Keys of dicts, many of which differ by one odd character only."""
    odd = st.sampled_from(_ODD + _OWN + _LONG)
    # No surrogates, which are not text that any file format could hold.
    letters = st.characters(exclude_categories=["Cs"])
    return odd | st.text(letters, max_size=4) | st.text("ab/._% ", max_size=4)


ANYTHING = arrays() | keys() | numbers() | statics() | st.none()
NODES = ["leaf", "dict", "dict by number", "dict by tuple", "OrderedDict", "defaultdict"]
NODES += ["FrozenDict", "list", "tuple", "NamedTuple", "dataclass", "struct", "unkeyed"]
LABELS = {
    "dict by number": st.integers(-2, 12),
    "dict by tuple": st.tuples(st.integers(0, 2), st.text("a/", max_size=1)),
}
MAKE = {
    "list": list,
    "tuple": tuple,
    "unkeyed": lambda children: Unkeyed(*children),
    "NamedTuple": lambda children: Pair(*children),
    "dataclass": lambda children: Registered(*children),
    "struct": lambda children: Struct(*children, kind="other"),
    "OrderedDict": collections.OrderedDict,
    "defaultdict": functools.partial(collections.defaultdict, list),
    "FrozenDict": lambda items: flax.core.FrozenDict(dict(items)),
}


@st.composite
def pytrees(draw: Any, leaves: st.SearchStrategy[Any] = ANYTHING, depth: int = 3) -> Any:
    """Trees of all kinds of nodes.

    Args:
        draw: given by hypothesis.
        leaves: what the leaves are.
        depth: how deep the tree may be.
    """
    node = draw(st.sampled_from(NODES)) if depth else "leaf"
    if node == "leaf":
        return draw(leaves)
    pair = node in ("NamedTuple", "dataclass", "struct")
    count = 2 if pair else draw(st.integers(0, 3))
    children = [draw(pytrees(leaves, depth - 1)) for _ in range(count)]
    if pair or node in ("list", "tuple", "unkeyed"):
        return MAKE[node](children)
    label = LABELS.get(node, names())
    labels = draw(st.lists(label, min_size=count, max_size=count, unique=True))
    return MAKE.get(node, dict)(zip(labels, children, strict=True))
