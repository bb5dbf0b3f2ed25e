"""safetensors: a header that says where each array is, and the arrays.

The format has no checksums. Ours are in the header's metadata, under `crc32`, where other readers
pass them by: a JSON object from name to the CRC-32 of the array's bytes.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlayer_core.checkpoints import installed
from jaxlayer_core.checkpoints.format import Contents, Format, Source
from jaxlayer_core.errors import CheckpointError
from jaxlayer_core.specs import ArraySpec

_CODES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


class SafetensorsFormat(Format):
    """What the package `safetensors` writes and reads."""

    label = "safetensors"

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[Source]:
        """Lets the package check the header against the file, then reads it."""
        with installed.require("safetensors").safe_open(path, framework="numpy"):
            pass
        yield SafetensorsSource(path)

    def write(self, path: Path, contents: Contents) -> None:
        """Writes all arrays."""
        package = installed.require("safetensors.numpy")
        arrays = {n: np.ascontiguousarray(v) for n, v in contents.named.items()}
        # `ascontiguousarray` makes one dimension of none.
        arrays = {n: a.reshape(contents.named[n].shape) for n, a in arrays.items()}
        for name, array in arrays.items():
            if array.dtype.name not in _CODES.values():
                raise CheckpointError(
                    f"safetensors cannot hold the dtype {array.dtype} of `{name}`. npz can."
                )
        sums = {name: _checksum(array) for name, array in arrays.items()}
        package.save_file(arrays, path, metadata={"crc32": json.dumps(sums)})


class SafetensorsSource(Source):
    """The arrays of a file whose header the package has checked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        metadata = header.pop("__metadata__", {})
        self._sums: dict[str, int] = json.loads(metadata.get("crc32", "{}"))
        self._entries: dict[str, Any] = header
        self._start = 8 + size

    @property
    def specs(self) -> Mapping[str, ArraySpec]:
        """Shapes and dtypes by name; dtypes that JAX has not are left out."""
        return {
            name: ArraySpec(
                tuple(entry["shape"]), jax.dtypes.canonicalize_dtype(_CODES[entry["dtype"]])
            )
            for name, entry in self._entries.items()
            if entry["dtype"] in _CODES
        }

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[tuple[str, Any]]:
        """Checks the sums of all that is wanted, if there are any, then reads array by array."""
        for name in wanted:
            if name in self._sums and _checksum(self._read(name)) != self._sums[name]:
                raise CheckpointError(
                    f"The array `{name}` of {self._path} is damaged: its checksum is another one."
                )
        for name in wanted:
            entry = self._entries[name]
            dtype = jax.numpy.dtype(_CODES[entry["dtype"]])
            yield name, self._read(name).view(dtype).reshape(entry["shape"])

    def _read(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        begin, end = self._entries[name]["data_offsets"]
        return np.fromfile(self._path, np.uint8, end - begin, offset=self._start + begin)


def _checksum(array: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)
