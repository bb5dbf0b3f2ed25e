"""msgpack: what `flax.serialization` writes and reads."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import flax.serialization
import jax
import msgpack
import numpy as np

from jaxlayer_core import paths
from jaxlayer_core.checkpoints import Contents, Format, Source
from jaxlayer_core.leaves import is_array
from jaxlayer_core.specs import ArraySpec

_CHUNKED = "__msgpack_chunked_array__"
"""A key of the dict that Flax writes in place of an array too big for msgpack."""


@dataclasses.dataclass(frozen=True)
class Span:
    """Where in a file the bytes of one leaf are."""

    start: int
    end: int


class MsgpackFormat(Format):
    """What `flax.serialization.to_bytes` and `msgpack_serialize` make.

    Flax's functions take the whole file as bytes. This one goes through the file leaf by leaf and
    hands them each leaf alone; the bytes are the same. The format has no checksums: where a bit
    of an array has flipped, nobody can tell.
    """

    label = "msgpack"

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[Source]:
        """Decodes every leaf once, to know that the file is whole."""
        with path.open("rb") as file:
            yield MsgpackSource(file)

    def write(self, path: Path, contents: Contents) -> None:
        """Writes `to_bytes(tree)`."""
        with path.open("wb") as file:
            for part in _encoded(flax.serialization.to_state_dict(contents.tree)):
                file.write(part)


class MsgpackSource(Source):
    """The leaves of a file that is open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        tree = _find_spans(file)
        named, _ = paths.flatten(tree, is_leaf=lambda node: isinstance(node, Span))
        self._spans = {"/".join(path): span for path, span in named}
        self._specs = dict(self._read_specs())

    @property
    def specs(self) -> Mapping[str, ArraySpec]:
        """Shapes and dtypes by path."""
        return self._specs

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[tuple[str, Any]]:
        """Decodes leaf by leaf."""
        for name in wanted:
            yield name, np.asarray(self._decode(self._spans[name]))

    def _read_specs(self) -> Iterator[tuple[str, ArraySpec]]:
        for name, span in self._spans.items():
            leaf = self._decode(span)
            if is_array(leaf):
                yield name, ArraySpec.of(np.asarray(leaf))

    def _decode(self, span: Span) -> Any:
        self._file.seek(span.start)
        return flax.serialization.msgpack_restore(self._file.read(span.end - span.start))


def _find_spans(file: BinaryIO) -> Any:
    """The tree in a file, with a `Span` for each leaf.

    Raises:
        ValueError: the file is not one whole tree.
    """
    file.seek(0)
    skeleton = _unpacker(file).unpack()
    file.seek(0)
    unpacker = _unpacker(file)
    spans = _spans(unpacker, skeleton)
    if (end := unpacker.tell()) != file.seek(0, 2):
        raise ValueError(f"there is something behind the tree, which ends at byte {end}")
    return spans


def _unpacker(file: BinaryIO) -> Any:
    return msgpack.Unpacker(
        file, ext_hook=lambda code, data: None, strict_map_key=False, max_buffer_size=0
    )


def _spans(unpacker: Any, node: Any) -> Any:
    """Goes through the bytes of `node` once more, to learn where its leaves are."""
    if isinstance(node, dict) and _CHUNKED not in node:
        if unpacker.read_map_header() != len(node):
            raise ValueError("two entries of a dict have the same key")
        return {unpacker.unpack(): _spans(unpacker, child) for child in node.values()}
    if isinstance(node, list):
        unpacker.read_array_header()
        return [_spans(unpacker, child) for child in node]
    start = unpacker.tell()
    unpacker.skip()
    return Span(start, unpacker.tell())


def _encoded(node: Any) -> Iterator[bytes]:
    """The bytes of `msgpack_serialize(node)`, one leaf at a time."""
    if isinstance(node, dict):
        yield msgpack.Packer().pack_map_header(len(node))
        for key, child in node.items():
            yield msgpack.packb(key)
            yield from _encoded(child)
    else:
        yield flax.serialization.msgpack_serialize(node)
