"""Structures of pytrees in a form that needs none of the classes they were made of.

What JAX calls the parts of a node decides what it becomes. Parts called by keys make a dict,
numbered ones a list or tuple, and attributes a named tuple of the same name and fields, made
on the spot: so a `flax.struct` dataclass and the output class of a package that is not
installed can still be read as `output.logits`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import keyword
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.tree_util import DictKey, GetAttrKey

from jaxlayer_core import rng
from jaxlayer_core.errors import ConfigError
from jaxlayer_core.paths import Path
from jaxlayer_core.program.reading import Reader, broken
from jaxlayer_core.serialization import decode, encode
from jaxlayer_core.structure import is_array

_LEAVES = ("array", "key", "static", "none")
"""Kinds that have nothing inside; JAX counts all but the last as leaves."""
_SEQUENCES = ("list", "tuple")
_MAPPINGS = ("dict", "named")
_DEEPEST = 64
"""How deep a tree may be nested; those of models are not, and Python's stack has an end."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A pytree without its arrays.

    Attributes:
        kind: `"array"`; `"key"` for a typed PRNG key, which travels as its data; `"static"` for
            any other leaf; `"none"`; `"list"`, `"tuple"`, `"dict"`, or `"named"`.
        label: the key's implementation, the static value as JSON, the named tuple's name.
        names: keys of a dict as JSON, fields of a named tuple.
        children: nodes inside, in the order of JAX.
    """

    kind: str
    label: str = ""
    names: tuple[str, ...] = ()
    children: tuple[Node, ...] = ()

    def walk(self, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """The nodes that have nothing inside, with their paths."""
        if not self.children:
            yield path, self
        for segment, child in zip(self._segments, self.children, strict=True):
            yield from child.walk((*path, segment))

    @property
    def _segments(self) -> Sequence[str]:
        if self.kind == "dict":
            return [str(_value(name)) for name in self.names]
        return self.names or [str(index) for index in range(len(self.children))]

    def has_names(self, *names: str) -> bool:
        """Whether the tree is a dict with just these keys, in this order."""
        return self.kind == "dict" and list(self._segments) == list(names)

    @property
    def leaves(self) -> list[tuple[Path, Node]]:
        """What JAX calls the leaves, with their paths, in order."""
        return [(path, node) for path, node in self.walk() if node.kind in _LEAVES[:3]]

    @property
    def arrays(self) -> list[Path]:
        """Paths of the arrays and keys, in order."""
        return [path for path, node in self.walk() if node.kind in ("array", "key")]

    @property
    def contents(self) -> frozenset[tuple[Path, str, str]]:
        """What is in the tree at which path, whatever the containers around it are."""
        return frozenset(
            (path, node.kind if node.kind in _LEAVES else "empty", _content(node))
            for path, node in self.walk()
        )

    def join(self, arrays: Iterator[Any]) -> Any:
        """The tree, with the next `arrays` in their places."""
        if self.kind == "array":
            return next(arrays)
        if self.kind == "key":
            return jax.random.wrap_key_data(next(arrays), impl=self.label)
        if self.kind == "static":
            return _value(self.label)
        if self.kind == "none":
            return None
        inside = [child.join(arrays) for child in self.children]
        if self.kind == "list":
            return inside
        if self.kind == "tuple":
            return tuple(inside)
        if self.kind == "dict":
            return dict(zip(map(_value, self.names), inside, strict=True))
        return named_tuple(self.label, self.names)(*inside)

    def get_config(self) -> list[Any]:
        """The tree as JSON data."""
        own: list[Any] = [self.kind, self.label] if self.label else [self.kind]
        if self.kind in _LEAVES:
            return own
        children = [child.get_config() for child in self.children]
        if self.kind in _SEQUENCES:
            return [*own, children]
        return [*own, [[name, child] for name, child in zip(self.names, children, strict=True)]]

    @classmethod
    def from_config(cls, data: Any, where: str, depth: int = 0) -> Node:
        """The tree of `get_config()`.

        Raises:
            ProgramError: the data are broken.
        """
        if depth > _DEEPEST:
            raise broken(where, "is nested too deeply")
        if not isinstance(data, list) or not data or not isinstance(data[0], str):
            raise broken(where, "is no tree")
        kind, *rest = data
        has_label = kind in ("key", "static", "named")
        is_leaf = kind in _LEAVES
        if kind not in (*_LEAVES, *_SEQUENCES, *_MAPPINGS):
            raise broken(where, f"is of the unknown kind {kind!r:.40}")
        if len(rest) != has_label + (not is_leaf) or (has_label and not isinstance(rest[0], str)):
            raise broken(where, "is no tree")
        label = rest[0] if has_label else ""
        _check_label(kind, label, where)
        if is_leaf:
            return cls(kind, label)
        if not isinstance(rest[-1], list):
            raise broken(where, "has no list of what is inside")
        if kind in _SEQUENCES:
            names: list[str] = []
            inside = rest[-1]
        else:
            names, inside = _pairs(rest[-1], where)
        if kind == "dict":
            _check_keys(names, where)
        elif kind == "named" and not _are_fields(label, names):
            raise broken(where, "has names that are no names of fields")
        children = (cls.from_config(item, where, depth + 1) for item in inside)
        return cls(kind, label, tuple(names), tuple(children))

    @classmethod
    def read(cls, reader: Reader, key: str) -> Node:
        """An entry that is the config of a tree."""
        return cls.from_config(reader.items(key), f"{reader.where}.{key}")


def split(tree: Any, *, numbers: bool) -> tuple[list[Any], Node]:
    """Takes the arrays out of a pytree.

    Args:
        tree: the pytree.
        numbers: whether Python numbers are arrays, as in params and results.

    Returns:
        The arrays, keys as their data, and the structure that puts them back.

    Raises:
        NotExpressibleError: a leaf is no array, and no data can express it.

    Example:
        >>> arrays, node = split({"x": 1.5, "mode": "fast"}, numbers=True)
        >>> arrays, node.join(iter([2.5]))
        ([1.5], {'mode': 'fast', 'x': 2.5})
    """
    arrays: list[Any] = []
    return arrays, _split(tree, arrays, numbers)


def _split(tree: Any, arrays: list[Any], numbers: bool) -> Node:
    if tree is None:
        return Node("none")
    inside, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    if jax.tree_util.all_leaves([tree]):
        return _leaf(tree, arrays, numbers)
    keys = [path[0] for path, _ in inside]
    children = tuple(_split(child, arrays, numbers) for _, child in inside)
    if (keys and all(isinstance(key, DictKey) for key in keys)) or isinstance(tree, dict):
        return Node("dict", names=tuple(_json(key.key) for key in keys), children=children)
    if keys and all(isinstance(key, GetAttrKey) for key in keys):
        fields, name = [key.name for key in keys], type(tree).__name__
        if _are_fields(name, fields):
            return Node("named", name, tuple(fields), children)
        return Node("dict", names=tuple(map(_json, fields)), children=children)
    return Node("list" if isinstance(tree, list) else "tuple", children=children)


def _leaf(value: Any, arrays: list[Any], numbers: bool) -> Node:
    if rng.is_key(value):
        arrays.append(jax.random.key_data(value))
        return Node("key", str(jax.random.key_impl(value)))
    if is_array(value) or (numbers and isinstance(value, bool | int | float | complex)):
        arrays.append(value)
        return Node("array")
    return Node("static", _json(value))


def _json(value: Any) -> str:
    return json.dumps(encode(value).data, sort_keys=True)


def _value(text: str) -> Any:
    return decode(json.loads(text))


def _content(node: Node) -> str:
    return node.label if node.kind in _LEAVES else ""


def _check_label(kind: str, label: str, where: str) -> None:
    if kind == "static":
        _check_json(label, where)
    if kind == "key":
        try:
            jax.eval_shape(lambda: jax.random.key(0, impl=label))
        except Exception as error:
            raise broken(where, f"has keys of the unknown kind {label!r:.40}", error) from error


def _check_json(text: str, where: str) -> None:
    try:
        _value(text)
    except ConfigError:
        raise  # it says what may not be had
    except (ValueError, RecursionError) as error:
        raise broken(where, "has a value that is no JSON", error) from error


def _check_keys(names: Sequence[str], where: str) -> None:
    for name in names:
        _check_json(name, where)
    try:
        keys = sorted(map(_value, names))  # as JAX does
        distinct = len(set(keys))
    except TypeError as error:
        raise broken(where, "has keys that no dict of JAX can have", error) from error
    if distinct < len(names):
        raise broken(where, "has a key twice")


def _pairs(items: list[Any], where: str) -> tuple[list[str], list[Any]]:
    for item in items:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], str):
            raise broken(where, "has no list of names and what they stand for")
    return [name for name, _ in items], [item for _, item in items]


def _are_fields(name: str, fields: Sequence[str]) -> bool:
    """Whether these can be the names of a named tuple."""
    words = [name, *fields]
    usable = all(word.isidentifier() and not keyword.iskeyword(word) for word in words)
    return usable and len({*fields}) == len(fields) and not any(f[:1] == "_" for f in fields)


@functools.cache
def named_tuple(name: str, fields: tuple[str, ...]) -> type[Any]:
    """The class that stands for one of this name with these attributes."""
    return collections.namedtuple(name, fields)
