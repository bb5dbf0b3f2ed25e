"""What a layer expects against what a source has, by path."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxlayer_core.matching import compare, fits
from jaxlayer_core.specs import ArraySpec


def spec(*shape, dtype="float32"):
    return ArraySpec(shape, np.dtype(dtype))


LAYER = {
    "params/hidden/bias": spec(3),
    "params/hidden/kernel": spec(2, 3),
    "params/out/bias": spec(1),
    "state/count": spec(dtype="int32"),
}


def test_equal_leaves_fit_in_any_order():
    mismatch = compare(LAYER, dict(reversed(LAYER.items())))
    assert not mismatch
    assert mismatch.matched == list(LAYER)
    assert mismatch.describe() == ""


def test_all_differences_are_found_together():
    found = {
        "params/hidden/bias": spec(3, dtype="bfloat16"),
        "params/hidden/kernel": spec(3, 2),
        "state/count": spec(dtype="float32"),
        "state/mean": spec(7),
    }
    mismatch = compare(LAYER, found)
    assert mismatch
    assert mismatch.matched == ["params/hidden/bias"]
    assert mismatch.missing == {"params/out/bias": spec(1)}
    assert mismatch.unexpected == {"state/mean": spec(7)}
    assert mismatch.misshapen == {
        "params/hidden/kernel": (spec(2, 3), spec(3, 2)),
        "state/count": (spec(dtype="int32"), spec(dtype="float32")),
    }
    assert mismatch.describe("the tree").splitlines() == [
        "Missing from the tree (1):",
        "  params/out/bias: float32[1]",
        "In the tree, but not in the layer (1):",
        "  state/mean: float32[7]",
        "Of another shape or kind of dtype (2):",
        "  params/hidden/kernel: expected float32[2,3], got float32[3,2]",
        "  state/count: expected int32[], got float32[]",
    ]


@pytest.mark.parametrize(
    ("expected", "found", "fit"),
    [
        ("float32", "bfloat16", True),
        ("bfloat16", "float64", True),
        ("float8_e4m3fn", "float32", True),
        ("int8", "int64", True),
        ("uint32", "int32", True),
        ("float32", "int32", False),
        ("int32", "float32", False),
        ("int32", "bool", False),
        ("float32", "complex64", False),
        ("float32", "<U3", False),
        ("float32", "V4", False),
        ("float32", "O", False),
        ("float32", "M8[s]", False),
    ],
)
def test_width_is_no_difference_and_kind_is(expected, found, fit):
    assert fits(spec(2, dtype=expected), spec(2, dtype=found)) is fit
    assert not fits(spec(2, dtype=expected), spec(3, dtype=found))


@pytest.mark.parametrize("name", ["float8_e5m2", "float4_e2m1fn", "int4", "uint2", "bfloat16"])
def test_small_dtypes_have_a_kind(name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    other = "int32" if jnp.issubdtype(dtype, np.integer) else "float32"
    assert fits(ArraySpec((2,), dtype), spec(2, dtype=other))


def test_a_renamed_part_is_recognised():
    found = {p.replace("hidden", "Dense_0"): s for p, s in LAYER.items()}
    mismatch = compare(LAYER, found)
    assert mismatch.renames() == {
        "params/Dense_0/bias": "params/hidden/bias",
        "params/Dense_0/kernel": "params/hidden/kernel",
    }
    assert "  params/Dense_0/kernel -> params/hidden/kernel" in mismatch.describe().splitlines()


def test_each_leaf_is_renamed_once_to_the_most_alike():
    """Twelve layers of one shape get a prefix; `layer_1` is also much like `layer_10`."""
    old = {f"params/layer_{i}/kernel": spec(4, 4) for i in range(12)}
    new = {f"params/body/layer_{i}/kernel": spec(4, 4) for i in range(12)}
    renames = compare(new, old).renames()
    assert len(renames) == 10, "of the first ten"
    assert renames == {p: p.replace("params", "params/body") for p in renames}


def test_nothing_else_is_called_a_rename():
    """Not another shape, not another dtype, and not a path that is not alike."""
    one = {"params/Dense_0/kernel": spec(2, 3)}
    for path, other in [
        ("params/Dense_1/kernel", spec(3, 2)),
        ("params/Dense_1/kernel", spec(2, 3, dtype="float16")),
        ("q", spec(2, 3)),
    ]:
        assert compare(one, {path: other}).renames() == {}


def test_long_lists_are_cut():
    text = compare({f"params/{i:03}": spec(2) for i in range(500)}, {}).describe()
    assert text.splitlines()[0] == "Missing from the file (500):"
    assert text.splitlines()[-1] == "  … and 490 more"
    assert len(text.splitlines()) == 12
