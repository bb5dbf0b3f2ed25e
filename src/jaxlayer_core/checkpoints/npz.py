"""npz: a zip file of NumPy arrays, each under its path.

NumPy cannot write down the dtypes that JAX adds to its own, such as bfloat16 and the 8-bit floats.
They are stored as unsigned integers of the same size, and one more array `__dtypes__` has a row
`[name, dtype]` for each of them:

    >>> import numpy as np
    >>> stored = {"kernel": np.ones(2, "uint16"), "__dtypes__": np.array([["kernel", "bfloat16"]])}
    >>> {name: stored[name].view(dtype) for name, dtype in stored["__dtypes__"]}["kernel"].dtype
    dtype(bfloat16)
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlayer_core.checkpoints.format import Contents, Format, Source
from jaxlayer_core.errors import CheckpointError
from jaxlayer_core.specs import ArraySpec, is_numeric

_DTYPES = "__dtypes__"
_SUFFIX = ".npy"
_BLOCK = 1 << 20
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpzFormat(Format):
    """What `np.savez` and `np.savez_compressed` write, and `np.load` reads."""

    label = "npz"

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[Source]:
        """Reads the arrays' headers."""
        with zipfile.ZipFile(path) as archive:
            yield NpzSource(archive)

    def write(self, path: Path, contents: Contents) -> None:
        """Writes one array after the other."""
        added: list[tuple[str, str]] = []
        with zipfile.ZipFile(path, "w") as archive:
            for name, value in contents.named.items():
                if name == _DTYPES:
                    raise CheckpointError(
                        f"npz cannot hold a variable called `{name}`, which says what dtypes the "
                        "others have. Choose another format."
                    )
                array = np.asarray(value)
                if array.dtype.isbuiltin != 1:
                    added.append((name, array.dtype.name))
                    array = array.view(f"u{array.dtype.itemsize}")
                _add(archive, name, array)
            if added:
                _add(archive, _DTYPES, np.array(added))


class NpzSource(Source):
    """The arrays of a zip file that is open."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        names = (n.removesuffix(_SUFFIX) for n in archive.namelist() if n.endswith(_SUFFIX))
        self._names = [name for name in names if name != _DTYPES]
        self._dtypes = self._stored_dtypes()
        self._specs = dict(self._read_specs())

    @property
    def specs(self) -> Mapping[str, ArraySpec]:
        """Shapes and dtypes by name."""
        return self._specs

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[tuple[str, Any]]:
        """Checks the sums of all that is wanted, then reads array by array."""
        for name in wanted:
            with self._archive.open(name + _SUFFIX) as member:
                while member.read(_BLOCK):
                    pass
        for name in wanted:
            with self._archive.open(name + _SUFFIX) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
            yield name, array.view(self._dtypes[name]) if name in self._dtypes else array

    def _stored_dtypes(self) -> dict[str, np.dtype[Any]]:
        if _DTYPES + _SUFFIX not in self._archive.namelist():
            return {}
        with self._archive.open(_DTYPES + _SUFFIX) as member:
            rows = np.lib.format.read_array(member, allow_pickle=False)
        return {str(name): jax.numpy.dtype(str(dtype)) for name, dtype in rows}

    def _read_specs(self) -> Iterator[tuple[str, ArraySpec]]:
        for name in self._names:
            shape, stored = self._header(name)
            if stored.hasobject:
                raise CheckpointError(
                    f"The array `{name}` of {self._archive.filename} has Python objects in it, "
                    "which are pickled: reading them would run code. Save the arrays one by one: "
                    "np.savez(path, **{name: array})."
                )
            if stored == np.dtype("V2"):  # how NumPy writes down the only such dtype of two bytes
                self._dtypes.setdefault(name, jax.numpy.dtype("bfloat16"))
            dtype = self._dtypes.get(name, stored)
            if dtype.itemsize != stored.itemsize:
                raise CheckpointError(
                    f"The array `{name}` of {self._archive.filename} is said to be {dtype}, and "
                    f"is stored as {stored}."
                )
            if is_numeric(dtype):
                yield name, ArraySpec(shape, jax.dtypes.canonicalize_dtype(dtype))

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with self._archive.open(name + _SUFFIX) as member:
            version = np.lib.format.read_magic(member)
            if version not in _READERS:
                raise CheckpointError(f"The array `{name}` is of the unknown version {version}.")
            shape, _, dtype = _READERS[version](member)
        return shape, dtype


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray[Any, Any]) -> None:
    with archive.open(name + _SUFFIX, "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)
