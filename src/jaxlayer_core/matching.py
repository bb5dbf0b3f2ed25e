"""What a layer has and what a source has, compared leaf by leaf: a file, or a tree.

Leaves are told apart by their paths, such as `params/Dense_0/kernel`; order never decides.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxlayer_core.specs import ArraySpec, kind

_SHOWN = 10  # lines of each list in a message
_ALIKE = 0.5  # how alike two paths must be to be called a rename


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """How the leaves of a source differ from those that a layer expects.

    True where there is any difference.

    Attributes:
        matched: paths of the leaves that fit.
        missing: leaves that the layer expects and the source has not, with what is expected.
        unexpected: leaves that only the source has, with what is there.
        misshapen: leaves of another shape or kind of dtype, with what is expected and what is
            there. A floating dtype of another width fits; an integer where a floating number
            is expected does not.
    """

    matched: list[str]
    missing: dict[str, ArraySpec]
    unexpected: dict[str, ArraySpec]
    misshapen: dict[str, tuple[ArraySpec, ArraySpec]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def renames(self) -> dict[str, str]:
        """Likely renames among the first missing leaves: path in the source to path in the layer.

        Two leaves are paired if shape and dtype are equal and their paths are alike, the most
        alike first.
        """
        pairs = [
            (difflib.SequenceMatcher(None, old, new).ratio(), old, new)
            for new in sorted(self.missing)[:_SHOWN]
            for old, spec in self.unexpected.items()
            if spec == self.missing[new]
        ]
        found: dict[str, str] = {}
        for ratio, old, new in sorted(pairs, key=lambda pair: (-pair[0], *pair[1:])):
            if ratio >= _ALIKE and old not in found and new not in found.values():
                found[old] = new
        return dict(sorted(found.items()))

    def describe(self, source: str = "the file") -> str:
        """All differences as text, a line for each leaf, long lists cut.

        Args:
            source: what the leaves come from, in words.

        Example:
            >>> import jax.numpy as jnp
            >>> kernel = ArraySpec((3, 2), jnp.dtype("float32"))
            >>> print(compare({"params/b/kernel": kernel}, {"params/a/kernel": kernel}).describe())
            Missing from the file (1):
              params/b/kernel: float32[3,2]
            In the file, but not in the layer (1):
              params/a/kernel: float32[3,2]
            Perhaps renamed:
              params/a/kernel -> params/b/kernel
        """
        misshapen = (
            f"{path}: expected {show(expected)}, got {show(got)}"
            for path, (expected, got) in sorted(self.misshapen.items())
        )
        renames = (f"{old} -> {new}" for old, new in self.renames().items())
        return "\n".join(
            [
                *_section(f"Missing from {source}", _lines(self.missing)),
                *_section(f"In {source}, but not in the layer", _lines(self.unexpected)),
                *_section("Of another shape or kind of dtype", list(misshapen)),
                *_section("Perhaps renamed", list(renames), counted=False),
            ]
        )


def compare(expected: Mapping[str, ArraySpec], found: Mapping[str, ArraySpec]) -> Mismatch:
    """Compares leaves by their paths, in whatever order they come.

    Args:
        expected: the leaves of the layer, by path.
        found: the leaves of the source, by path.
    """
    common = [path for path in expected if path in found]
    misshapen = {p: (expected[p], found[p]) for p in common if not fits(expected[p], found[p])}
    return Mismatch(
        matched=[path for path in common if path not in misshapen],
        missing={path: spec for path, spec in expected.items() if path not in found},
        unexpected={path: spec for path, spec in found.items() if path not in expected},
        misshapen=misshapen,
    )


def fits(expected: ArraySpec, found: ArraySpec) -> bool:
    """Whether a leaf can be loaded: of equal shape, and of the same kind of dtype."""
    if expected.shape != found.shape:
        return False
    return expected.dtype == found.dtype or (
        is_number(found.dtype) and kind(expected.dtype) == kind(found.dtype)
    )


def is_number(dtype: Any) -> bool:
    """Whether a dtype is of numbers or booleans: not of text, and not of mere bytes."""
    return any(jax.numpy.issubdtype(dtype, k) for k in (np.bool_, np.number))


def show(spec: ArraySpec) -> str:
    """A spec as text: `float32[3,2]`."""
    return f"{spec.dtype}[{','.join(map(str, spec.shape))}]"


def _lines(specs: Mapping[str, ArraySpec]) -> Sequence[str]:
    return [f"{path}: {show(spec)}" for path, spec in sorted(specs.items())]


def _section(title: str, lines: Sequence[str], counted: bool = True) -> Iterable[str]:
    if not lines:
        return
    yield f"{title} ({len(lines)}):" if counted else f"{title}:"
    yield from cut(lines)


def cut(lines: Sequence[str]) -> list[str]:
    """The first lines of a list, indented, and how many more there are."""
    more = [f"  … and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [f"  {line}" for line in lines[:_SHOWN]] + more
