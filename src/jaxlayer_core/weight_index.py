"""The index of a layer's weights in a file: dtype, shape and checksum of each leaf.

Keras' stores hold arrays of NumPy's own dtypes. Others (bfloat16, 8-bit floats) are stored as
bytes, with one more axis, and the index tells what they are. With the checksums, damage is
found that HDF5 does not notice.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any, Never

import numpy as np

from jaxlayer_core.errors import StructureError
from jaxlayer_core.matching import is_number, show
from jaxlayer_core.specs import ArraySpec

ENTRY = "%index"
"""Name of the index in a store. No leaf's name has a `%` that a number does not follow."""

_VERSION = 1


class UnreadableError(ValueError):
    """An entry of a store cannot be read, or is not what was saved. Users meet a StructureError."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What the index says of one leaf.

    Attributes:
        spec: shape and dtype.
        checksum: CRC-32 of the bytes of the value.
    """

    spec: ArraySpec
    checksum: int

    @classmethod
    def of(cls, value: np.ndarray[Any, Any]) -> Record:
        """The record of a value."""
        return cls(ArraySpec(value.shape, value.dtype), zlib.crc32(_bytes(value).data))


def pack(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A value as stores can hold it.

    Returns:
        The value itself, or its bytes with one more axis where NumPy has no such dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> pack(np.ones((3,), jnp.bfloat16)).shape
        (3, 2)
    """
    return value if _is_own(value.dtype) else _bytes(value).reshape(_packed(value).shape)


def unpack(stored: np.ndarray[Any, Any], record: Record) -> np.ndarray[Any, Any]:
    """The value that `pack` gave.

    Raises:
        UnreadableError: it is not what the record says.
    """
    spec, got = _packed(record.spec), ArraySpec(stored.shape, stored.dtype)
    if got != spec:
        raise UnreadableError(f"stored as {show(got)}, expected {show(spec)}")
    if not _is_own(record.spec.dtype):
        stored = np.ascontiguousarray(stored).view(record.spec.dtype)[..., 0]
    if zlib.crc32(_bytes(stored).data) != record.checksum:
        raise UnreadableError("its bytes are not those that were saved")
    return stored


def encode(records: Mapping[str, Record]) -> np.ndarray[Any, Any]:
    """The index as an array of bytes, for a store."""
    leaves = {
        path: {
            "dtype": record.spec.dtype.name,
            "shape": record.spec.shape,
            "crc32": record.checksum,
        }
        for path, record in records.items()
    }
    text = json.dumps({"version": _VERSION, "leaves": leaves})
    return np.frombuffer(text.encode(), np.uint8)


def decode(layer: str, entry: np.ndarray[Any, Any]) -> dict[str, Record]:
    """The index in a store.

    Args:
        layer: the layer's name, for errors.
        entry: what `encode` made.

    Raises:
        StructureError: it is broken, or of a newer version.
    """

    def refuse(why: str, cause: Exception | None = None) -> Never:
        raise StructureError(
            f"The index of the weights of the layer {layer!r} in the file is broken: {why}. "
            "Nothing was loaded. Take another copy of the file.",
            cause=cause,
        ) from cause

    try:
        index = json.loads(entry.astype(np.uint8, casting="safe").tobytes())
    except (TypeError, ValueError, RecursionError) as error:
        refuse(f"it cannot be read ({error})", error)
    if not isinstance(index, dict) or not isinstance(index.get("version"), int):
        refuse("it has no version")
    if index["version"] > _VERSION:
        raise StructureError(
            f"The weights of the layer {layer!r} were saved by a newer jaxlayer, with an index of "
            f"version {index['version']}; this one knows up to {_VERSION}. Nothing was loaded. Get "
            "the newer one: pip install --upgrade jaxlayer"
        )
    if not isinstance(leaves := index.get("leaves"), dict):
        refuse("it has no leaves")
    records = {}
    for path, fields in leaves.items():
        try:
            records[path] = _record(fields)
        except (KeyError, TypeError, ValueError) as error:
            refuse(f"what it says of `{path}` means nothing ({error!r})", error)
    return records


def _record(fields: Any) -> Record:
    """A record out of JSON; raises KeyError, TypeError or ValueError where it is none."""
    dtype = np.dtype(str(fields["dtype"]))
    if dtype.name != fields["dtype"] or not is_number(dtype):
        raise ValueError(f"dtype {fields['dtype']!r}")
    shape, checksum = fields["shape"], fields["crc32"]
    if not isinstance(shape, list) or not all(type(d) is int and d >= 0 for d in shape):
        raise ValueError(f"shape {shape!r}")
    if math.prod(shape) * dtype.itemsize > np.iinfo(np.int64).max or type(checksum) is not int:
        raise ValueError(f"shape {shape!r}, checksum {checksum!r}")
    return Record(ArraySpec(tuple(shape), dtype), checksum)


def _is_own(dtype: np.dtype[Any]) -> bool:
    """Whether HDF5 and npz files hold a dtype as it is: NumPy's own, without complex numbers."""
    return dtype.isbuiltin == 1 and dtype.kind in "biuf"


def _packed(value: Any) -> ArraySpec:
    """How an array, or what has this spec, is stored."""
    if _is_own(value.dtype):
        return ArraySpec(value.shape, value.dtype)
    return ArraySpec((*value.shape, value.dtype.itemsize), np.dtype(np.uint8))


def _bytes(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bytes of a value, as a vector."""
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)
