"""A short search for configs that do harm (`fuzzing.py` makes long ones), and what was found."""

import json
import os
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import keras
import numpy as np
import pytest

import jaxlayer
from jaxlayer_core import effort, errors, serialization
from jaxlayer_core.patterns import matches
from jaxlayer_core.program.reading import Reader
from jaxlayer_core.program.signatures import read_policy

from .hostile_cases import EXPONENTIAL, POLYNOMIAL, dense, made, name, partial

FUZZER = pathlib.Path(__file__).parent / "fuzzing.py"


def fuzz(tmp_path, *arguments):
    done = subprocess.run(
        [sys.executable, FUZZER, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=900,
    )
    last = "".join(path.read_text() for path in tmp_path.glob("fuzzed-*.json"))
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}\n{last}"
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("trust", [[], ["--trusting"]], ids=["untrusted", "trusted"])
def test_nothing_is_found_in_a_short_time(tmp_path, trust):
    found = fuzz(tmp_path, "--minutes", "0.1", "--seed", "0", *trust)
    assert found["cases"] > 0
    assert any(outcome.startswith("refused") for outcome in found["outcomes"])
    assert "loaded" in found["outcomes"]


# What was found by it, and by reading.


def refused(data, match):
    with pytest.raises(errors.ConfigError, match=match):
        serialization.decode(data, root="the model")


def test_only_functions_that_make_functions_are_called():
    refused(made("jax.numpy", "zeros", shape=3), "not known to make functions")
    refused(made("jax.nn.initializers", "zeros", key=0, shape=[3]), "not known to make functions")
    loop = {"lower": 0, "upper": 0, "body_fun": name("jax.nn", "relu"), "init_val": 1.0}
    refused(made("jax.lax", "fori_loop", **loop), "not known to make functions")


def test_a_class_is_only_called_if_it_says_how():
    data = {"$": "constructed", "class": {"module": "builtins", "name": "list"}, "args": [[1]]}
    refused({**data, "kwargs": {}, "attributes": {}}, "says how its objects are made")


def test_methods_of_what_is_the_same_for_all_are_not_had():
    for module, owner, method in (
        ("jax.nn", "relu", "defjvp"),
        ("haiku", "RNNCore", "register"),
        ("jax.lax", "add_p", "def_impl"),
    ):
        refused({"$": "method", "of": name(module, owner), "method": method}, "the model")


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("keras.utils", "plot_model"),
        ("keras.config", "set_floatx"),
        ("keras.datasets.mnist", "load_data"),
    ],
)
def test_functions_of_keras_that_do_not_compute_are_refused(module, function):
    """Keras itself gives them; a partial would call them with what a file says."""
    data = {"class_name": "function", "config": function, "module": module}
    data["registered_name"] = function
    assert callable(keras.saving.deserialize_keras_object(data))
    refused(partial({"$": "keras", "keras": data}), "no model is made of")


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("flax.linen", "enable_named_call"),
        ("flax.linen.module", "override_named_call"),
        ("flax.linen", "set_logical_axis_rules"),
        ("flax.struct", "dataclass"),
        ("jax.sharding", "set_mesh"),
    ],
)
def test_what_changes_a_process_may_not_be_named(module, function):
    refused(name(module, function), "If you trust it")


def test_what_is_short_may_not_become_endless():
    items = [{"$": "items", "type": "tuple", "items": [1, 1], "id": 0}]
    for number in range(60):
        twice = [{"$": "same", "id": number}] * 2
        items.append({"$": "items", "type": "tuple", "items": twice, "id": number + 1})
    refused(items, "more than 1000000 parts")
    refused({"$": "range", "type": "range", "bounds": [0, 10**9, 1]}, "more than 1000000 parts")


def test_a_shared_module_may_be_met_often():
    shared = {**dense(), "id": 0}
    same = {"$": "same", "id": 0}
    assert len(serialization.decode([shared, *[same] * 1000])) == 1001


@pytest.fixture
def flax_config():
    layer = jaxlayer.FlaxLayer(nn.Dense(2))
    layer.build((None, 3))
    return keras.saving.serialize_keras_object(layer)


@pytest.mark.parametrize("flag", ["autocast", "unpack_inputs", "save_program", "has_policy"])
@pytest.mark.parametrize("value", [None, 1, "no", [], {}])
def test_a_flag_is_true_or_false(flax_config, flag, value):
    flax_config["config"][flag] = value
    with pytest.raises(errors.ConfigError, match=f"FlaxLayer is broken: '{flag}' is .* True or"):
        keras.saving.deserialize_keras_object(flax_config)


@pytest.mark.parametrize("config", [[1], "text", 3.5])
def test_a_build_config_is_a_dict(flax_config, config):
    flax_config["build_config"] = config
    with pytest.raises(errors.ConfigError, match="flax_layer is to be built by"):
        keras.saving.deserialize_keras_object(flax_config)


@pytest.mark.parametrize("dtype", [True, 3, "text"])
def test_a_dtype_of_a_call_is_one(flax_config, dtype):
    flax_config["build_config"]["call"]["arrays"][0]["dtype"] = dtype
    with pytest.raises(errors.ConfigError, match="config of a call is broken"):
        keras.saving.deserialize_keras_object(flax_config)


@pytest.mark.parametrize("step", [{"melt": "kernel"}, {"freeze": 3}, {"freeze": {"a": 1}}])
def test_a_step_of_freezing_is_one(flax_config, step):
    flax_config["config"]["freezing"] = [step]
    with pytest.raises(errors.PatternError, match="can freeze and unfreeze"):
        keras.saving.deserialize_keras_object(flax_config)


# Patterns that take for ever.

LONG = "a" * 60


@pytest.mark.parametrize("pattern", EXPONENTIAL + POLYNOMIAL)
def test_a_pattern_out_of_a_file_is_not_matched_if_that_could_take_for_ever(pattern):
    re.compile(pattern)
    with pytest.raises(errors.TrustError, match="could take for ever"):
        matches(effort.Stored(pattern), LONG)
    policy = read_policy(Reader({"table": {pattern: "drop"}, "default": "state"}, "policy"))
    with pytest.raises(errors.TrustError, match="could take for ever"):
        policy.role((LONG,))


@pytest.mark.parametrize(
    "pattern",
    [
        "kernel",
        r"^params/layer\.0/kernel\Z",
        r".*/layers_\d+/.*kernel",
        "(query|key|value)/kernel$",
        r"block_(\d{1,3})/.*",
        "[^/]*_axes",
        r"(a|b)*c",
    ],
)
def test_usual_patterns_are_matched(pattern):
    name = "params/encoder/layers_11/attention/query/kernel"
    assert matches(effort.Stored(pattern), name) == bool(re.search(pattern, name))


def test_a_users_own_patterns_are_not_looked_at():
    assert matches("(a+)+", LONG)
    layer = jaxlayer.FlaxLayer(nn.Dense(2), regularizers={"(k|ke)*rnel": "l2"})
    layer.build((None, 3))
    clone = keras.models.clone_model(keras.Sequential([keras.Input((3,)), layer]))
    assert clone.layers[0].params["params"]["kernel"].regularizer is not None


def test_patterns_that_a_user_trusts_are_matched(tmp_path):
    pattern = "(?:p|pa|par)*(?:ams/)*(?:k|ke|ker)*nel"
    layer = jaxlayer.FlaxLayer(nn.Dense(2), regularizers={pattern: "l2"})
    model = keras.Sequential([keras.Input((3,)), layer])
    model.save(tmp_path / "model.keras")
    with pytest.raises(errors.TrustError, match="safe_mode=False"):
        keras.models.load_model(tmp_path / "model.keras")
    trusted = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(trusted(x), model(x))


def test_the_number_of_ways_is_not_less_than_there_are():
    assert effort.ways("a*a*b", 10) >= 10 * 11 / 2
    assert effort.ways("(?:a|b|c)x", 10) >= 10
    assert effort.ways("(?:ab|cd){3}", 100) >= 2**3
    assert effort.ways("(?=a*b)", 10) >= 10
    assert effort.ways("(a)?(?(1)b*|c)", 10) >= 10
    assert effort.ways("(?>a*)b", 10) >= 10
