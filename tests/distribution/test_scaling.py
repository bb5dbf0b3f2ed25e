"""The formulas of docs/scaling.md, and models that are laid out without being there."""

import json
import os
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import haiku as hk
import jax
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer
from jaxlayer_core import BuildError

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [
    pytest.mark.xdist_group("several devices"),
    pytest.mark.without("KERAS_NNX_ENABLED=true"),
]


sys.path += [str(ROOT / "benchmarks"), str(ROOT / "examples")]  # they import each other
import compiling  # noqa: E402
import scaling  # noqa: E402


def check(row):
    """Not in the formulas: the loss, the metrics, and what XLA saves on a small mesh."""
    ours, formula, native = row["ours"], row["formula"], row["native"]
    assert ours["state"] == pytest.approx(formula["state"], rel=0.02), row
    # Split over two devices, the gradients of the embedding's table are not added up by XLA.
    is_smallest = row["mode"] == "sharded" and row["devices"] == 2
    near = pytest.approx(formula["communicated"], rel=0.06 if is_smallest else 0.02)
    assert ours["communicated"] == near, row
    # What the block needs that the backward pass is at is an estimate.
    assert ours["between"] == pytest.approx(formula["between"], rel=0.25), row
    # Keras' metrics are all that comes on top of a step by hand.
    assert ours["kinds"].keys() == native["kinds"].keys(), row
    added = ours["communicated"] - native["communicated"]
    assert 0 <= added <= 0.002 * native["communicated"], row
    assert ours["between"] == pytest.approx(native["between"], rel=0.05), row


def test_formulas_are_what_the_table_has():
    """Of every row that `benchmarks/scaling.py` wrote into the document."""
    for row in json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text()):
        check(row)


@pytest.mark.slow
def test_formulas_are_what_xla_says():
    """Of the step in which everything is split that can be."""
    (row,) = scaling.run([scaling.Case("sharded", 4)])
    check(row)
    assert {"all-reduce", "all-gather"} <= row["ours"]["kinds"].keys()


@pytest.mark.slow
def test_formulas_are_what_xla_says_of_other_steps():
    wanted = scaling.cases(remat=[True])
    for row in scaling.run([*wanted, scaling.Case("tensor", 8, False)]):
        check(row)


HLO = """
%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = f32[8]{0} all-gather(%p), dimensions={0}
}

%inner.1 (p: f32[8]) -> f32[8] {
  %r = f32[4]{0} reduce-scatter(%p), dimensions={0}
}

ENTRY %main (x: f32[4,8]) -> f32[8] {
  %a = f32[4,8]{1,0} all-reduce(%x), replica_groups={{0,1}}
  %b = (f32[2]{0}, /*index=1*/bf16[3]{0}) all-reduce-start(%y, %z)
  %w = (s32[], f32[8]{0}) while(%t), condition=%c, body=%body.1, known_trip_count={"n":"3"}
  %i = f32[4]{0} call(%a), to_apply=%inner.1
  ROOT %c = f32[8]{0} add(%a, %b)
}
"""


def test_collectives_are_counted():
    found = compiling.collective_bytes(HLO)
    assert found == {"all-reduce": 142, "all-gather": 96, "reduce-scatter": 16}


def test_a_loop_of_unknown_length_is_not_guessed():
    with pytest.raises(ValueError, match=r"how often this loop runs: %w = "):
        compiling.collective_bytes(HLO.replace("known_trip_count", "something"))


def seven_billion(*arguments):
    """The rows of its table: what the formula says and what XLA does, in MiB."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "seven_billion.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=256"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"^│ ([^│]+?) +│ +(\d*) │ +(\d+) │$", done.stdout, re.M)
    return {name: (float(formula or 0), float(found)) for name, formula, found in rows}


def check_seven_billion(*arguments):
    state, between, communicated, (_, peak) = seven_billion(*arguments).values()
    assert state[1] == pytest.approx(state[0], rel=0.02, abs=1)
    assert between[1] == pytest.approx(between[0], rel=0.25)
    assert communicated[1] == pytest.approx(communicated[0], rel=0.02)
    assert peak < 3000
    return state[0], between[1]


def test_a_model_that_is_larger_than_this_machine():
    """Of two layers: with their slots 7.4 GiB, of which nothing is allocated."""
    check_seven_billion("--layers", 2)


@pytest.mark.slow
def test_seven_billion_params_on_256_devices():
    state, between = check_seven_billion()
    assert state * 256 > 75 * 1024
    # With remat, a layer more is one residual stream and the gradients of its params.
    two = seven_billion("--layers", 2)["between arguments and results"][1]
    assert (between - two) / 30 == pytest.approx(128 + 3, rel=0.01)
    for mesh in ((64, 4), (32, 8)):
        check_seven_billion("--mesh", *mesh)


@pytest.mark.slow
def test_seven_billion_params_without_remat():
    _, between = check_seven_billion("--no-remat")
    assert between > 40 * 1024


# The mechanism.


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


MAKERS = {
    "flax": lambda **options: FlaxLayer(Net(), seed=1, **options),
    "haiku": lambda **options: HaikuLayer(hk.nets.MLP, [4, 2], seed=1, **options),
}


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}], ids=["float32", "bfloat16"])
def test_it_is_what_the_built_layer_has(make, options):
    x = np.ones((2, 3), "float32")
    planned = make(**options).to_abstract(jax.ShapeDtypeStruct((2, 3), "float32"))
    layer = make(**options)
    layer(x)
    built = layer.to_pure()
    for before, after in zip(planned[1:], built[1:], strict=True):
        assert shapes(before) == shapes(after)
    again = layer.to_abstract()
    assert shapes(again.params) == shapes(built.params)
    key = jax.random.key(0)
    outputs = jax.eval_shape(planned.call_fn, planned.params, planned.state, key, x)
    assert shapes(outputs) == shapes(built.call_fn(built.params, built.state, key, x))


def test_nothing_is_allocated():
    """A kernel of 4 EiB."""
    layer = FlaxLayer(nn.Dense(2**30))
    _, params, _ = layer.to_abstract(jax.ShapeDtypeStruct((1, 2**30), "float32"))
    assert params["params"]["kernel"].shape == (2**30, 2**30)
    assert not layer.built
    assert not layer.weights


def test_inputs_are_needed():
    with pytest.raises(BuildError, match=r"dense are not known before .* jax.ShapeDtypeStruct"):
        FlaxLayer(nn.Dense(2), name="dense").to_abstract()


def test_symbolic_inputs():
    layer = FlaxLayer(nn.Dense(2))
    _, params, _ = layer.to_abstract(keras.Input((3,)))
    assert params["params"]["kernel"].shape == (3, 2)
