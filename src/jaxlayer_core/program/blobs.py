"""Bytes inside JSON: compressed, of a known size, with a checksum."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import zlib

from jaxlayer_core.program.reading import Reader, broken

LARGEST = 2**30
"""The largest number of bytes that a blob may say it has. Weights are not in it; what is, are
the constants that a model brings along."""


@dataclasses.dataclass(frozen=True)
class Blob:
    """Bytes.

    Attributes:
        digest: their SHA-256.
        size: how many they are.
        data: the bytes, compressed, as base64.
    """

    digest: str
    size: int
    data: str

    @classmethod
    def of(cls, content: bytes) -> Blob:
        """Packs bytes.

        Example:
            >>> Blob.of(bytes(1000)).unpack() == bytes(1000)
            True
        """
        data = base64.b64encode(zlib.compress(content, 9)).decode()
        return cls(hashlib.sha256(content).hexdigest(), len(content), data)

    def unpack(self) -> bytes:
        """The bytes.

        Raises:
            ProgramError: they are damaged, or more than they are said to be.
        """
        where = f"the blob {self.digest:.12}"
        try:
            # One byte more than announced is enough to see that there are more.
            stream = zlib.decompressobj()
            content = stream.decompress(base64.b64decode(self.data, validate=True), self.size + 1)
        except (binascii.Error, ValueError, zlib.error) as error:
            raise broken(where, "cannot be decompressed", error) from error
        if len(content) != self.size or not stream.eof:
            raise broken(where, f"has not the {self.size} bytes that it says it has")
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise broken(where, "has another checksum than it should; the file is damaged")
        return content

    def get_config(self) -> dict[str, str | int]:
        """The blob as JSON data, without the digest, which names it."""
        return {"size": self.size, "data": self.data}

    @classmethod
    def read(cls, digest: str, reader: Reader) -> Blob:
        """The blob of `get_config()`."""
        return cls(digest, reader.number("size", most=LARGEST), reader.text("data"))
