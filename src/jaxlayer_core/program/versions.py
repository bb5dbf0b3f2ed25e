"""What a program was made with, to say so when it cannot be read."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxlayer_core.program.reading import Reader

FORMAT = 1
"""The version of the config. A newer one than this cannot be read."""


@dataclasses.dataclass(frozen=True)
class Versions:
    """Versions.

    Attributes:
        format: of the config.
        jax: of JAX, which has a calling convention of its own inside the blobs.
    """

    format: int
    jax: str

    @classmethod
    def current(cls) -> Versions:
        """Those of this process."""
        return cls(FORMAT, jax.__version__)

    def __str__(self) -> str:
        return f"It was made with JAX {self.jax}; this is JAX {jax.__version__}"

    def get_config(self) -> dict[str, Any]:
        """The versions as JSON data."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, reader: Reader) -> Versions:
        """The versions of `get_config()`."""
        return cls(reader.number("format", least=1, most=FORMAT), reader.text("jax"))
