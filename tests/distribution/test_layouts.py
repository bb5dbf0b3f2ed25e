"""Variables over several devices: data parallel, model parallel, annotations, checkpoints."""

import itertools
import os

import flax.linen as nn
import pytest

from jaxlayer_core.layout_rules import to_mesh_axes

from .devices import checks_of, run_on

MODULE = "layout_checks"
pytestmark = [
    pytest.mark.xdist_group("several devices"),
    # Keras' JAX trainer with NNX enabled does not take shardings of variables.
    pytest.mark.without("KERAS_NNX_ENABLED=true"),
]


@pytest.fixture(scope="module")
def outcomes():
    return run_on(8, MODULE)


@pytest.mark.parametrize("check", checks_of(MODULE))
def test_on_eight_devices(check, outcomes):
    assert "failure" not in outcomes[check], outcomes[check]["failure"]


MESSAGES = {
    "axis": ["LayoutError", "'mlp'", "'modle'", "no axis of the mesh", "'batch', 'model'"],
    "two axes": ["LayoutError", "('batch', 'model')", "one axis"],
    "path axis": ["LayoutError", "`dense/params/kernel` of shape (16, 6)", "'modle'"],
    "too many": ["LayoutError", "`dense/params/bias` of shape (6,)", "2 axes", "1 dimensions"],
    "a string": ["LayoutError", "'bias'", "('model',)"],
    "division": ["LayoutError", "`dense/params/kernel`", "dimension 1 has size 6", "4 devices"],
    "no expression": ["PatternError", "'('", "not a regular expression"],
    "no inputs": ["BuildError", "dense", "jax.ShapeDtypeStruct"],
    "built": ["LayoutError", "`dense/params/kernel` of shape (16, 6)", "do not divide"],
    "by itself": ["layer dense", "'dense/params/kernl'", "Near it are: dense/params/kernel"],
    "asked": ["dense", "'dense/params/kernl'", "'other_layer/kernl'", "dense/params/kernel"],
    "rules": ["'mlp' names no dimension", "There are none", "'kernell'", "params/kernel"],
    "names": ["'mpl'", "Near it are: mlp"],
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(case, outcomes):
    text = outcomes["check_messages"]["result"][case]
    for part in MESSAGES[case]:
        assert part in text, text
    assert "unused" not in text


def test_rules_mean_what_they_mean_in_flax():
    """All sets of three rules, in every order, for two names and two axes."""
    rules = list(itertools.product(("one", "two"), ("x", "y", None)))
    names = [n for r in range(4) for n in itertools.permutations(("one", "two", None), r)]
    for chosen in itertools.product(rules, repeat=3):
        for name in names:
            ours = to_mesh_axes(name, chosen, ("x", "y"))
            assert ours == tuple(nn.logical_to_mesh_axes(name, chosen)), (name, chosen)


def test_a_name_without_a_rule_may_be_an_axis():
    assert to_mesh_axes(("x", "one"), [("one", "y")], ("x", "y")) == ("x", "y")
    assert to_mesh_axes(("x", "one"), [("one", "x")], ("x", "y")) == (None, "x")
    assert to_mesh_axes(("x", "one"), [("x", None)], ("x", "y")) == (None, None)


@pytest.fixture(scope="module")
def creation():
    outcomes = run_on(8, "creation")
    for outcome in outcomes.values():
        assert "result" in outcome, outcome["failure"]
    return {check: outcome["result"] for check, outcome in outcomes.items()}


def test_no_device_holds_a_leaf_that_is_made_in_shards(creation):
    """Nor does any step of its making take as much on one device; the native init does."""
    ours, native = creation["check_sharded"], creation["check_whole"]
    assert ours["array"] == 1 / 8
    assert ours["steps"] > 1
    assert ours["step"] <= native["step"] / 8 + 0.01
    assert ours["step"] < 1 < native["step"]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="measured on Linux")
def test_no_device_holds_a_leaf_that_is_given(creation):
    """The shards themselves are one leaf; a whole one on the way would be another."""
    assert creation["check_given"]["peak"] < 1.6
