"""Comparing trees leaf by leaf, with errors that say what, where, expected and got.

Plain `assert` says nothing in installed packages, whose code pytest does not rewrite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import keras
import numpy as np

Tolerance = Mapping[str, Mapping[str, float]]
"""By dtype what `np.isclose` takes; every other dtype is compared exactly."""

EXACT: Tolerance = {}


def require(condition: Any, message: str) -> None:
    """Raises an AssertionError unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def is_variable(leaf: Any) -> bool:
    """Whether a leaf is a Keras variable; with NNX enabled JAX would look inside."""
    return isinstance(leaf, keras.Variable)


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by path, as NumPy arrays; PRNG keys as their data.

    Paths, unlike treedefs, do not compare what a node keeps as metadata.

    Example:
        >>> leaves({"a": [1, 2.5]})
        {"['a'][0]": array(1), "['a'][1]": array(2.5)}
    """
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)
    return {jax.tree_util.keystr(path): _plain(leaf) for path, leaf in pairs}


def _plain(leaf: Any) -> np.ndarray:
    value = leaf.value if is_variable(leaf) else leaf
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def is_same(one: Any, other: Any) -> bool:
    """Whether two trees have the same paths, shapes, dtypes and values."""
    try:
        assert_same(one, other, "")
    except AssertionError:
        return False
    return True


def assert_same(got: Any, expected: Any, what: str, tolerance: Tolerance = EXACT) -> None:
    """Asserts the same paths, shapes, dtypes and values.

    Args:
        got: a tree; its leaves may be Keras variables.
        expected: another.
        what: what is compared, for the error.
        tolerance: what may differ.

    Raises:
        AssertionError: the first leaf that differs is named, or the paths that only one has.
    """
    have, want = leaves(got), leaves(expected)
    missing, extra = sorted(set(want) - set(have)), sorted(set(have) - set(want))
    require(
        not missing and not extra,
        f"{what}: the trees differ. Missing: {missing or 'none'}; not expected: "
        f"{extra or 'none'}. (An empty path is the whole value.)",
    )
    for path, value in want.items():
        _assert_leaf(have[path], value, f"{what}, leaf `{path}`" if path else what, tolerance)


def _assert_leaf(got: np.ndarray, expected: np.ndarray, what: str, tolerance: Tolerance) -> None:
    for aspect in ("shape", "dtype"):
        have, want = getattr(got, aspect), getattr(expected, aspect)
        require(have == want, f"{what}: expected {aspect} {want}, got {have}.")
    allowed = tolerance.get(expected.dtype.name)
    if allowed is None:
        same = (got == expected) | ((got != got) & (expected != expected))  # NaN is NaN
        rule = "exactly"
    else:
        one, other = (
            a.astype("float64") if a.dtype.kind not in "c" else a for a in (got, expected)
        )
        same = np.isclose(one, other, equal_nan=True, **allowed)
        rule = f"up to {dict(allowed)}"
    if np.all(same):
        return
    first = tuple(map(int, np.argwhere(~np.atleast_1d(same))[0])) if got.shape else ()
    raise AssertionError(
        f"{what}: {int(np.sum(~same))} of {got.size} values differ, which should be equal {rule}. "
        f"The first is at {list(first)}: expected {expected[first]!r}, got {got[first]!r}."
    )
