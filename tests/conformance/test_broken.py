"""Each property can fail: for each there is an adapter with a fault that it finds."""

import jax
import numpy as np
import pytest

from jaxlayer_core.testing import AdapterConformance, ConformanceCase, comparing

from . import toy
from .faults import FAULTS


def test_every_property_has_a_broken_adapter():
    assert AdapterConformance.properties() == sorted(FAULTS)


def suite(adapter, *cases):
    """A conformance class as an author writes it."""
    attributes = {"adapter": adapter, "cases": cases}
    return type("Suite", (AdapterConformance,), attributes)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name):
    """`test_toy.py` shows that the sound adapter passes with the same cases."""
    case, adapter = FAULTS[name]
    with pytest.raises(AssertionError) as caught:
        getattr(suite(adapter, case)(), name)(case)
    # A property that fails without a word would be as bad as none.
    assert len(str(caught.value)) > 30


def test_check_needs_no_pytest():
    """With an instance of the adapter, which is as good as its class."""
    suite(toy.ToyAdapter(), toy.LINEAR).check()


def test_check_finds_faults():
    case, adapter = FAULTS["test_adapter_is_found"]
    with pytest.raises(AssertionError, match="does not accept the model of <Conformance"):
        suite(adapter, case).check()


def test_every_property_has_a_docstring():
    for name in AdapterConformance.properties():
        assert getattr(AdapterConformance, name).__doc__, name


@pytest.mark.parametrize(
    ("adapter", "cases", "message"),
    [
        (toy.ToyAdapter, (), "Suite.cases is empty: nothing would be tested"),
        (None, (toy.LINEAR,), "Suite.adapter must be an Adapter or its class, got None"),
        (toy.Linear, (toy.LINEAR,), "must be an Adapter or its class"),
        (toy.ToyAdapter, (toy.LINEAR, toy.LINEAR), "names are not unique"),
    ],
    ids=["no cases", "no adapter", "wrong adapter", "two of one name"],
)
def test_a_class_that_would_test_nothing_is_refused(adapter, cases, message):
    with pytest.raises(AssertionError, match=message):
        suite(adapter, *cases).check()
    with pytest.raises(AssertionError, match=message):
        suite(adapter, *cases)().pytest_generate_tests(None)


def wrong(**functions):
    """A case whose author made a mistake."""
    sound = {
        "arguments": lambda: ((toy.X,), {}),
        "init": toy.native_init,
        "apply": toy.native_apply,
    }
    return ConformanceCase("wrong", lambda: toy.Linear(2), **{**sound, **functions})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (wrong(arguments=lambda: (toy.X,)), "must return a tuple of args and a dict of kwargs"),
        (wrong(init=lambda *_: {}), "`init` must return params and state, got {}"),
        (wrong(apply=lambda *_: toy.X), "`apply` must return outputs, state and perhaps losses"),
    ],
    ids=["arguments", "init", "apply"],
)
def test_a_mistake_in_a_case_is_explained(case, message):
    with pytest.raises(AssertionError, match=message):
        suite(toy.ToyAdapter, case)().test_initial_values(case)


ONES = np.ones((2, 3), "float32")


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        ({"a": ONES}, {"b": ONES}, r"this: the trees differ. Missing: \[\"\['b'\]\"\]; not ex"),
        ({"a": ONES[:1]}, {"a": ONES}, r"this, leaf `\['a'\]`: expected shape \(2, 3\), got"),
        (ONES.astype("int32"), ONES, "this: expected dtype float32, got int32"),
        (
            ONES + np.eye(2, 3, 1, "float32"),
            ONES,
            r"2 of 6 values differ.*at \[0, 1\]: expected.*1",
        ),
        (np.float32(np.nan), np.float32(1), r"1 of 1 values differ.*exactly.*at \[\]"),
    ],
    ids=["paths", "shape", "dtype", "values", "scalar"],
)
def test_comparing_says_what_differs(got, expected, message):
    with pytest.raises(AssertionError, match=message):
        comparing.assert_same(got, expected, "this")
    comparing.assert_same(got, got, "this")


def test_comparing_with_a_tolerance():
    near = ONES * np.float32(1 + 1e-6)
    tolerance = {"float32": {"rtol": 1e-5, "atol": 0.0}}
    comparing.assert_same(near, ONES, "this", tolerance)
    with pytest.raises(AssertionError, match=r"up to \{'rtol': 1e-05"):
        comparing.assert_same(near + 1, ONES, "this", tolerance)
    with pytest.raises(AssertionError, match="exactly"):
        comparing.assert_same(near.astype("float64"), ONES.astype("float64"), "this", tolerance)


def test_comparing_keys():
    comparing.assert_same(jax.random.key(1), jax.random.key(1), "keys")
    assert not comparing.is_same(jax.random.key(1), jax.random.key(2))
