"""The state that a model returns must be like the one it was given; how it is not, in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxlayer_core import paths
from jaxlayer_core.errors import StructureError
from jaxlayer_core.paths import Path
from jaxlayer_core.pure import PyTree
from jaxlayer_core.specs import kind


@dataclasses.dataclass(frozen=True)
class Shown:
    """A stand-in leaf that prints as shape and dtype inside an error."""

    spec: Any

    @property
    def shape(self) -> Any:
        """Of the array it stands for."""
        return self.spec.shape

    @property
    def dtype(self) -> Any:
        """Of the array it stands for."""
        return self.spec.dtype

    def __repr__(self) -> str:
        return f"{self.spec.dtype}{list(self.spec.shape)}"


def structure_error(owner: str, initial: PyTree, returned: PyTree) -> StructureError:
    """Says where two trees differ, by leaf and in the words of JAX."""
    before = {paths.show(p) for p, _ in paths.flatten(initial)[0]}
    after = {paths.show(p) for p, _ in paths.flatten(returned)[0]}
    parts = []
    if gone := sorted(before - after):
        parts.append(f"leaves that it was initialised with and did not return: {gone[:5]}")
    if new := sorted(after - before):
        parts.append(f"leaves that it returned and was not initialised with: {new[:5]}")
    try:
        structure: Any = jax.tree.structure(returned)
        structure.flatten_up_to(initial)
        detail = "a leaf was returned where a subtree was expected"
    except ValueError as error:
        detail = str(error)
    parts.append(f"comparing what it returned with the initial state: {detail.rstrip('.')}")
    return StructureError(
        f"Structure mismatch: {owner} returned a state whose structure is not that of the "
        f"initial state; {'; '.join(parts)}. Return the state with the structure that "
        "`init_fn` (or the `state` argument) gave it."
    )


def check_kind(owner: str, path: Path, dtype: str, is_key: bool, leaf: Any) -> None:
    """Refuses a value that the variable could only hold with loss.

    Args:
        owner: the model's name.
        path: of the leaf.
        dtype: of the variable.
        is_key: whether the variable holds the data of a typed PRNG key.
        leaf: what came back.
    """
    returned = getattr(leaf, "dtype", None)
    if returned is None:  # a Python number
        return
    expected = -1 if is_key else kind(dtype)
    got = kind(returned)
    if (got < 0) != (expected < 0) or got > expected:
        raise StructureError(
            f"Structure mismatch: {owner} returned state whose leaf `{paths.show(path)}` has "
            f"dtype {returned}, but it was initialised as "
            f"{'a PRNG key' if is_key else dtype}. State must keep its dtype."
        )


def check_shape(owner: str, path: Path, expected: tuple[int, ...], value: Any) -> None:
    """Refuses a value of another shape."""
    shape = tuple(np.shape(value))
    if shape != expected:
        raise StructureError(
            f"Structure mismatch: {owner} returned state whose leaf `{paths.show(path)}` has "
            f"shape {shape}, but it was initialised with shape {expected}. State must keep its "
            "shape."
        )


def check_static(owner: str, path: Path, expected: Any, leaf: Any) -> None:
    """Refuses another value for a leaf that was never an array."""
    is_array = isinstance(leaf, jax.Array | bool | int | float | complex)
    if is_array or not _is_same(leaf, expected):
        raise StructureError(
            f"Structure mismatch: {owner} returned {leaf!r} for the leaf `{paths.show(path)}`, "
            f"which is not an array but the fixed value {expected!r}. Only arrays can change "
            "from call to call."
        )


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):  # of text, say
        return np.array_equal(one, other)
    return bool(one == other)
