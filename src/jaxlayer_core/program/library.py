"""The blobs of a program, each read and checked before it is used."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from jaxlayer_core.errors import ProgramError
from jaxlayer_core.program import checking, trial
from jaxlayer_core.program.arrays import Form
from jaxlayer_core.program.blobs import LARGEST, Blob
from jaxlayer_core.program.calls import Call
from jaxlayer_core.program.reading import Reader, broken
from jaxlayer_core.program.versions import Versions

KEY_DATA = jax.ShapeDtypeStruct((2,), np.dtype("uint32"))
"""Spec of the data of the key that a call draws from."""


@dataclasses.dataclass(frozen=True, eq=False)
class Library:
    """Blobs by digest.

    Attributes:
        owner: the model's name, for errors.
        blobs: the blobs.
        versions: what they were made with.
    """

    owner: str
    blobs: Mapping[str, Blob]
    versions: Versions

    @functools.cached_property
    def _known(self) -> dict[str, export.Exported]:
        return {}

    def exported(self, digest: str) -> export.Exported:
        """A blob as JAX can call it.

        Raises:
            ProgramError: it is broken, or may not be called.
        """
        if digest not in self._known:
            self._known[digest] = self._load(digest)
        return self._known[digest]

    def _load(self, digest: str) -> export.Exported:
        where = f"the blob {digest:.12}"
        if digest not in self.blobs:
            raise broken(where, "is missing")
        self._try_all()
        content = self.blobs[digest].unpack()
        try:
            exported: export.Exported = export.deserialize(bytearray(content))
            checking.check(exported, f"The saved program of {self.owner}")
        except ProgramError:
            raise
        except Exception as error:
            what = f"cannot be read: {type(error).__name__}: {error}. {self.versions}"
            raise broken(where, what, error) from error
        return exported

    def _try_all(self) -> None:
        """Sees that no blob does harm to who reads it; all at once, before the first is read."""
        unknown = [d for d in self.blobs if not trial.is_known(d)]
        trial.read({d: self.blobs[d].unpack() for d in unknown}, self.owner)

    def verify(self, call: Call, own: Sequence[Form], where: str) -> None:
        """Checks that a call's blob takes and gives what the call says.

        Args:
            call: the call.
            own: what it takes besides a key and its inputs.
            where: where it stands, for errors.

        Raises:
            ProgramError: it does not.
        """
        exported = self.exported(call.blob)
        reads = zip(call.inputs, call.reads, strict=True)
        takes = [*own, *([Form.of(KEY_DATA)] * call.draws), *(form for form, read in reads if read)]
        gives = len(call.results.arrays)
        if list(map(Form.of, exported.in_avals)) != takes or not _is_flat(exported.in_tree, takes):
            raise broken(where, "has a blob that takes something else")
        if not _is_tree(exported.out_tree, [0] * gives):
            raise broken(where, "has a blob that gives something else")
        if tuple(exported.platforms) != call.platforms:
            raise broken(where, "has a blob for other platforms")
        if call.no_gradient is None:
            _verify_gradient(exported, where)
        self._verify_widths(exported)

    def _verify_widths(self, exported: export.Exported) -> None:
        dtypes = {aval.dtype for aval in (*exported.in_avals, *exported.out_avals)}
        wide = [str(dtype) for dtype in dtypes if jax.dtypes.canonicalize_dtype(dtype) != dtype]
        if wide:
            raise ProgramError(
                f"The saved program of {self.owner} takes or gives {', '.join(sorted(wide))}, "
                "which JAX does not use here. Set JAX_ENABLE_X64=true, as it was when it was saved."
            )

    def get_config(self) -> dict[str, Any]:
        """The blobs as JSON data."""
        return {digest: blob.get_config() for digest, blob in self.blobs.items()}

    @classmethod
    def read(cls, reader: Reader, key: str, owner: str, versions: Versions) -> Library:
        """The blobs of `get_config()`."""
        table = reader.reader(key)
        blobs = {digest: Blob.read(digest, table.reader(digest)) for digest in reader.table(key)}
        if sum(blob.size for blob in blobs.values()) > LARGEST:
            raise broken(table.where, f"are said to have more than {LARGEST} bytes together")
        return cls(owner, blobs, versions)


def _verify_gradient(exported: export.Exported, where: str) -> None:
    if not exported.has_vjp():
        raise broken(where, "has a blob without a gradient")
    gradient = exported.vjp()
    takes, gives = _shapes(exported.in_avals), _shapes(exported.out_avals)
    is_one = _shapes(gradient.in_avals) == takes + gives and _shapes(gradient.out_avals) == takes
    if not is_one or not _is_flat(gradient.in_tree, gradient.in_avals):
        raise broken(where, "has a blob with the gradient of something else")


def _shapes(avals: Sequence[Any]) -> list[str]:
    # As text, since JAX cannot compare symbols of two programs.
    return [str(aval.shape) for aval in avals]


def _is_flat(tree: Any, arguments: Sequence[Any]) -> bool:
    return _is_tree(tree, ((0,) * len(arguments), {}))


def _is_tree(treedef: Any, example: Any) -> bool:
    return bool(treedef == jax.tree_util.tree_structure(example))
