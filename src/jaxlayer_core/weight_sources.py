"""What a store of Keras holds of a layer, in each of the forms in which layers were written."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxlayer_core import weight_index
from jaxlayer_core.errors import StructureError
from jaxlayer_core.matching import cut, fits, show
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.weight_index import UnreadableError

SEED = "seed_generator"
"""Name of the state of a layer's seed."""

_ESCAPES = {"%": "%25", ".": "%2E", "\0": "%00", "/": "."}
_TABLE = {ord(character): escape for character, escape in _ESCAPES.items()}
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Source:
    """The leaves in a store.

    Attributes:
        specs: shapes and dtypes by path.
        read: gives the value at a path; raises UnreadableError if it is damaged.
        lacks: names that are never in a store of this form.
    """

    specs: Mapping[str, ArraySpec]
    read: Callable[[str], np.ndarray[Any, Any]]
    lacks: frozenset[str] = frozenset()


def entry(path: str) -> str:
    """The name in a store for a leaf, such as `params.Dense_0.kernel`.

    A `/` would nest in an HDF5 file. Dots inside a path, and NUL, where HDF5 ends names, are
    escaped, so that names stay distinct.

    Example:
        >>> entry("params/layer.0/kernel")
        'params.layer%2E0.kernel'
    """
    return path.translate(_TABLE)


def _path(name: str) -> str:
    """The path for a name that `entry` gave."""
    for character, escape in reversed(_ESCAPES.items()):
        name = name.replace(escape, character)
    return name


def open_store(layer: str, expected: Mapping[str, ArraySpec], store: Any) -> Source:
    """Finds out in which form a store was written.

    Args:
        layer: the layer's name, for messages.
        expected: the leaves that the layer has, in its own order.
        store: Keras' store of the layer.

    Raises:
        StructureError: it is empty, or damaged beyond telling what is in it.
    """
    try:
        return _open(layer, expected, store)
    except UnreadableError as error:
        raise StructureError(
            f"The file's weights of the layer {layer!r} are damaged: {error}. Nothing was loaded. "
            "Take another copy of the file.",
            cause=error,
        ) from error


def _open(layer: str, expected: Mapping[str, ArraySpec], store: Any) -> Source:
    names = set(store.keys())
    weights = {path: spec for path, spec in expected.items() if path != SEED}
    if not names and weights:
        raise StructureError(
            f"The file holds nothing for the layer {layer!r} at its place in the model. Load it "
            "into a model of the same layers as the one that saved it."
        )
    if not names:  # as Keras' own layers leave it that have no weights
        return Source({}, lambda path: _array(store, path), frozenset({SEED}))
    if weight_index.ENTRY in names:
        return _indexed(layer, names, store)
    if names == set(map(str, range(len(names)))):
        return _numbered(layer, weights, store)
    return _named(store)


def _indexed(layer: str, names: set[str], store: Any) -> Source:
    """A store with an index."""
    records = weight_index.decode(layer, _array(store, weight_index.ENTRY))
    indexed = {entry(path) for path in records} | {weight_index.ENTRY}
    if wrong := sorted(names ^ indexed):
        raise StructureError(
            f"The index of the weights of the layer {layer!r} does not fit what is in the file: "
            f"only one of them has {', '.join(wrong[:_SHOWN])}. Nothing was loaded. Take "
            "another copy of the file."
        )
    return Source(
        specs={path: record.spec for path, record in records.items()},
        read=lambda path: weight_index.unpack(_array(store, entry(path)), records[path]),
    )


def _named(store: Any) -> Source:
    """A store of an earlier version: named leaves, without an index."""
    names = {_path(name): name for name in store.keys()}  # noqa: SIM118  # no store iterates
    return Source(
        specs={path: _spec(_array(store, name)) for path, name in names.items()},
        read=lambda path: _array(store, names[path]),
    )


def _numbered(layer: str, expected: Mapping[str, ArraySpec], store: Any) -> Source:
    """A store of Keras' own layers: leaves by number, params first, in the order of the trees."""
    numbers = {path: str(number) for number, path in enumerate(expected)}
    wrong = (
        []
        if len(store.keys()) == len(numbers)
        else [f"expected {len(numbers)} leaves, got {len(store.keys())}"]
    )
    for path, number in list(numbers.items())[: len(store.keys())]:
        found = _spec(_array(store, number))
        if not fits(expected[path], found):
            wrong.append(f"{number}: expected {show(expected[path])} ({path}), got {show(found)}")
    if wrong:
        raise StructureError(
            f"The file numbers the weights of the layer {layer!r}, as Keras' own layers do, and "
            "they are not those of this layer, params first, each in the order of the tree:\n"
            + "\n".join(cut(wrong))
            + "\nLoad it into the layer of Keras that saved it, and copy the variables by name."
        )
    warnings.warn(
        f"The file numbers the weights of the layer {layer!r}, as Keras' own layers do. They "
        "were taken as params first, then state, each in the order of the tree."
        + _doubt(expected)
        + " Save the weights again, and they are stored by name.",
        UserWarning,
        stacklevel=2,
    )
    return Source(
        specs=expected, read=lambda path: _array(store, numbers[path]), lacks=frozenset({SEED})
    )


def _doubt(expected: Mapping[str, ArraySpec]) -> str:
    """A sentence on leaves that numbers cannot tell apart, if there are any."""
    first: dict[ArraySpec, str] = {}
    for path, spec in expected.items():
        if spec in first:
            return (
                " Numbers cannot tell leaves of equal shape apart, such as "
                f"`{first[spec]}` and `{path}`: check that all parts of the model had the same "
                "names when the file was saved."
            )
        first[spec] = path
    return ""


def _array(store: Any, name: str) -> np.ndarray[Any, Any]:
    """One entry of a store. HDF5 and zip files have many ways to say that they are broken."""
    try:
        return np.asarray(store[name])
    except Exception as error:
        raise UnreadableError(
            f"`{_path(name)}` cannot be read ({type(error).__name__}: {error})"
        ) from error


def _spec(value: np.ndarray[Any, Any]) -> ArraySpec:
    return ArraySpec(value.shape, value.dtype)
