"""How a property is searched: a few fixed examples always, many random ones in the slow run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

_COMMON = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "report_multiple_bugs": False,  # one at a time shrinks faster
}


def searched(*, few: int, many: int, **strategies: st.SearchStrategy) -> Callable[..., Any]:
    """Makes a test of a property: `few` examples, the same in every run, and, slow, `many`.

    Only the slow run shrinks what it finds, which takes minutes.

    Args:
        few: number of examples of the normal run.
        many: number of examples of the slow run.
        **strategies: one for each argument of the property.
    """

    def decorate(prop: Callable[..., None]) -> Callable[..., None]:
        quick = settings(max_examples=few, derandomize=True, phases=[Phase.generate], **_COMMON)
        whole = settings(max_examples=many, **_COMMON)
        efforts = [
            pytest.param(quick, id="few"),
            pytest.param(whole, id="many", marks=pytest.mark.slow),
        ]

        @pytest.mark.parametrize("effort", efforts)
        def test(effort: settings) -> None:
            effort(given(**strategies)(prop))()

        test.__doc__ = prop.__doc__
        test.__name__ = prop.__name__
        test.__module__ = prop.__module__
        return test

    return decorate


def as_arrays(tree: Any) -> Any:
    """The tree as JAX holds it: Python numbers and NumPy arrays become JAX arrays."""
    return jax.tree.map(lambda leaf: jax.numpy.asarray(leaf) if is_number(leaf) else leaf, tree)


def is_number(leaf: Any) -> bool:
    """Whether a leaf is an array or a Python number, and no key."""
    if isinstance(leaf, jax.Array):
        return not is_key(leaf)
    return isinstance(leaf, np.ndarray | np.generic | bool | int | float | complex)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed PRNG keys."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def values(tree: Any) -> Any:
    """The tree with arrays in place of Keras variables."""

    def is_variable(leaf: Any) -> bool:
        return isinstance(leaf, keras.Variable)

    return jax.tree.map(lambda v: v.value if is_variable(v) else v, tree, is_leaf=is_variable)


def bits(leaf: Any) -> Any:
    """What must be equal of two leaves: shape, dtype and bytes; of a static one, itself."""
    if is_key(leaf):
        return leaf.shape, str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes()
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        array = np.asarray(leaf)
        return array.shape, array.dtype.name, array.tobytes()
    return type(leaf), repr(leaf)


def assert_bits(got: Any, expected: Any) -> None:
    """Asserts equal structures (types of nodes included) and equal bits of all leaves."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True)
    for (path, one), other in pairs:
        assert bits(one) == bits(other), (
            f"at {jax.tree_util.keystr(path)}: got {one!r}, expected {other!r}"
        )
