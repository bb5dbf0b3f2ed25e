"""Files from attackers: nothing in them is run, and what is wrong is said.

All are loaded as a user loads a file, by `keras.models.load_model(path)`, in a process with little
memory that notices what it does (`hostile.Watch`).
"""

import json
import os
import pathlib
import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import keras
import numpy as np
import optax
import pytest
from flax import nnx

import jaxlayer
from jaxlayer_core import errors
from jaxlayer_optax import Matching, as_optimizer

from . import hostile_cases as cases
from .hostile import WEIGHTS, Archive

HERE = pathlib.Path(__file__).parent

BAIT = """
import dataclasses
open({marker!r}, "w")

def run(*args, **kwargs):
    open({marker!r}, "w")

@dataclasses.dataclass
class Data:
    x: int = 1

    def __post_init__(self):
        run()
"""


def small_models():
    initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    flax = nn.Sequential([nn.Dense(4, kernel_init=initializer), nn.relu, nn.Dense(2)])
    rules = {"regularizers": {"kernel": "l2"}, "constraints": {"bias": "non_neg"}}
    return {
        "flax": jaxlayer.FlaxLayer(
            flax, seed=1, training_arg=(), keep_float32=["bias"], name="flax_layer", **rules
        ),
        "haiku": jaxlayer.HaikuLayer(hk.nets.MLP, [4, 2], name="haiku_layer"),
        "program": jaxlayer.HaikuLayer(lambda x: hk.nets.MLP([4, 2])(x), name="program_layer"),
        "nnx": jaxlayer.FlaxLayer(nnx_module(), name="nnx_layer"),
        "equinox": jaxlayer.EquinoxLayer(equinox_module(), name="equinox_layer"),
    }


def nnx_module():
    rngs = nnx.Rngs(0)
    first = nnx.Linear(3, 4, kernel_init=nnx.initializers.normal(0.1), rngs=rngs)
    return nnx.Sequential(first, nnx.Dropout(0.5, rngs=rngs))


def equinox_module():
    linear = eqx.nn.Linear(3, 4, key=jax.random.key(0))
    norm = eqx.nn.BatchNorm(4, "batch", mode="batch")
    return eqx.nn.Sequential([linear, norm, eqx.nn.Lambda(jax.nn.relu), eqx.nn.Dropout(0.5)])


def with_optimizer():
    """A trained model of Keras' own layers, whose optimizer is ours."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    tx = optax.masked(optax.adamw(1e-2, mu_dtype="float32"), Matching("kernel"))
    model.compile(as_optimizer(tx, clipnorm=1.0, name="optax_layer"), "mse")
    model.train_on_batch(np.ones((2, 3)), np.ones((2, 2)))
    return model


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Saved models, by kind."""
    folder, found = tmp_path_factory.mktemp("bases"), {}
    for kind, layer in small_models().items():
        model = keras.Sequential([keras.Input((3,)), layer])
        model(np.ones((2, 3)))
        model.save(folder / f"{kind}.keras")
        found[kind] = Archive.read(folder / f"{kind}.keras")
    with_optimizer().save(folder / "optax.keras")
    place = ("compile_config", "optimizer")
    return {**found, "optax": Archive.read(folder / "optax.keras", place)}


@pytest.fixture
def load(tmp_path, bases):
    """Loads hostile files in one other process; gives what came of each, by name."""
    marker = tmp_path / "executed"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{cases.BAIT}.py").write_text(BAIT.format(marker=str(marker)))

    def run(files, suffix=".keras", kinds=("flax", "haiku", "program")):
        folder, temporary = tmp_path / "files", tmp_path / "temporary"
        folder.mkdir()
        temporary.mkdir()
        names = {}
        for kind in kinds:
            bases[kind].write(folder / f"good-{kind}.keras")
        for number, (name, file) in enumerate(files.items()):
            names[f"{number:05}"] = name
            path = folder / f"{number:05}{suffix}"
            path.write_bytes(file) if isinstance(file, bytes) else file.write(path)
        around = set(tmp_path.rglob("*"))
        environment = os.environ | {"TMPDIR": str(temporary), "KERAS_BACKEND": "jax"}
        environment |= {"PYTHONPATH": str(tmp_path / "path"), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, HERE / "hostile.py", folder],
            capture_output=True,
            text=True,
            env=environment,
            timeout=900,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        begun = [names.get(line["begins"][:5]) for line in lines if "begins" in line]
        assert done.returncode == 0, f"the process died of {begun[-1:]}:\n{done.stderr[-3000:]}"
        outcomes = {names.get(o["name"], o["name"]): o for o in lines if "name" in o}
        assert set(outcomes) == {*files, *(f"good-{kind}" for kind in kinds)}
        assert not marker.exists(), "something was executed"
        assert set(tmp_path.rglob("*")) == around
        for kind in kinds:
            assert outcomes[f"good-{kind}"]["loaded"]
        return outcomes

    return run


def hostile_only(outcomes):
    return {name: o for name, o in outcomes.items() if not name.startswith("good-")}


def is_ours(outcome):
    """Whether the error is ours, or Keras' own around one of ours, which names the layer."""
    return "JaxLayerError" in outcome["kinds"] or "_layer" in outcome["message"]


OBJECTS = ("the model", "the call", "a call", "_layer", "the layer", "config", "saved program")
OBJECTS += ("variables", "Layer", "capture: ", "the Flax module")
"""What a message is about."""


WORDS = {
    "ValueError": (
        *("accessible `.keras` zip file", "Expected object to be an instance of `KerasSaveable`"),
        *("Expected a model.weights.h5", "Exceeds the limit (4300 digits)"),
    ),
    "BadZipFile": ("Bad CRC-32 for file", "Bad magic number", "File name in directory"),
    "NotImplementedError": ("compression method is not supported", "zip file version"),
    "OSError": ("file signature not found",),
    "JSONDecodeError": ("Expecting ",),
    "UnicodeDecodeError": ("can't decode byte",),
    "RecursionError": ("while decoding a JSON",),
}
"""What is wrong with a file that is no archive, as Keras, zipfile, json and HDF5 say it."""


SLOW = {"zips", "programs", "wrong types", "flipped"}
"""Groups of many files, or of large ones."""


def is_clear(outcome):
    """Whether the error is ours, or says what is wrong with the file as Keras or a library does."""
    words = WORDS.get(outcome["error"], ())
    is_known = is_ours(outcome) or any(word in outcome["message"] for word in words)
    return is_known and outcome["message"].strip() != ""


def assert_is_nothing_built(outcome, name):
    """Where a config is broken, or not trusted; what is captured is only seen in a call."""
    if "ConfigError" in outcome["kinds"] and not name.startswith("capture "):
        assert outcome["built"] == [], name


@pytest.mark.parametrize(
    "group", [pytest.param(g, marks=[pytest.mark.slow] if g in SLOW else []) for g in cases.GROUPS]
)
def test_hostile_archives(group, bases, load):
    kinds = {"kinds": bases} if group in OF_ALL_KINDS else {}
    outcomes = load(cases.GROUPS[group](bases), **kinds)
    answers = [o["answer"] for name, o in outcomes.items() if name.startswith("good-")]
    for name, outcome in hostile_only(outcomes).items():
        assert outcome["events"] == [], name
        if outcome["loaded"]:
            assert group in MAY_MEAN_THE_SAME, name
            assert outcome["answer"] in answers, name
            continue
        assert is_clear(outcome), (name, outcome["error"], outcome["message"][-500:])
        assert_is_nothing_built(outcome, name)
        assert outcome["built"] or group != "weights", "they are read last, so built would show"
        if group in OF_OUR_LAYERS:
            assert is_ours(outcome), (name, outcome["error"], outcome["message"][-500:])
            assert any(word in outcome["message"] for word in OBJECTS), (name, outcome["message"])


OF_ALL_KINDS = {"truncated", "flipped"}

OF_OUR_LAYERS = {
    *("naming", "elsewhere", "tricks", "patterns", "sizes", "programs", "wrong types"),
}
"""Where our code is asked; the rest is refused by Keras, zipfile, json or HDF5, as they word it."""

MAY_MEAN_THE_SAME = {
    "wrong types",  # an option that is optional, or that does not matter to an answer
    "sizes",  # of a batch
    "flipped",  # bits that nobody reads: dates, permissions, and gaps
    "zips",  # members that nobody asks for are not unpacked
}


MEANINGS = ("captures", "training_arg", "eps")
"""What is a part of the answer."""


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        *(("flax", 840), ("haiku", 840), ("program", 840), ("optax", 840)),
        *(("equinox", 560), ("nnx", 100)),  # which take longer to load
    ],
)
@pytest.mark.slow
def test_wrong_types_everywhere(kind, most, bases, load):
    files = cases.spread(cases.wrong_types(bases[kind]), most)
    outcomes = load(files, kinds=[kind])
    for name, outcome in hostile_only(outcomes).items():
        assert outcome["events"] == [], name
        if outcome["loaded"]:
            means_more = any(word in name for word in MEANINGS)
            assert means_more or outcome["answer"] == outcomes[f"good-{kind}"]["answer"], name
            continue
        assert is_ours(outcome), (name, outcome["message"][-500:])
        assert_is_nothing_built(outcome, name)


@pytest.mark.slow
def test_flipped_bits_in_a_file_of_weights(bases, load):
    """What is loaded is what was saved; what is not leaves the model as it was."""
    whole = bases["flax"].members[WEIGHTS]
    files = {"whole": whole, **cases.flipped(whole, 400, seed=1)}
    files |= {f"cut at {end}": whole[:end] for end in range(0, len(whole), 500)}
    outcomes = hostile_only(load(files, suffix=".weights.h5"))
    expected = outcomes["whole"]["answer"]
    assert outcomes["whole"]["loaded"]
    failed = [outcome for outcome in outcomes.values() if not outcome["loaded"]]
    assert len(failed) > 50
    for name, outcome in outcomes.items():
        assert outcome["events"] == [], name
        if outcome["loaded"]:
            assert outcome["answer"] == expected, name


def test_changed_weights_leave_a_model_as_it_was(bases, load):
    files = {
        name: bases["flax"].with_weights(change).members[WEIGHTS]
        for name, change in cases.WEIGHT_CHANGES.items()
    }
    files["of another model"] = bases["haiku"].members[WEIGHTS]
    for name, outcome in hostile_only(load(files, suffix=".weights.h5")).items():
        assert outcome["events"] == [], name
        assert not outcome["loaded"], name
        assert is_ours(outcome), outcome["message"]


def test_a_store_that_fails_leaves_the_layer_as_it_was(assert_same, values):
    """Also where the last of its leaves is the one that is damaged."""
    layer = small_models()["flax"]
    layer.build((None, 3))
    store = {}
    layer.save_own_variables(store)
    for variable in layer.variables:
        variable.assign(variable.value + 1)
    before = [values(variable) for variable in layer.variables]
    for name in store:
        broken = {**store, name: np.zeros(3, "float32")}
        with pytest.raises(errors.StructureError, match="flax_layer"):
            layer.load_own_variables(broken)
    with pytest.raises(errors.StructureError):
        layer.load_variables({"params": {"layers_0": {"kernel": np.zeros((3, 4))}}})
    assert_same([values(variable) for variable in layer.variables], before)


# The tests above would notice.


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "eval('1 + 1')",
        "exec('x = 1')",
        "open({path!r}, 'w').close()",
        "import os; os.mkdir({path!r})",
        "import socket; socket.socket().close()",
        "import this_module_is_new",
        "import pickle; pickle.loads(pickle.dumps(print))",
    ],
)
def test_the_watch_notices(code, run_python, tmp_path):
    (tmp_path / "this_module_is_new.py").touch()
    script = f"""
    import os, socket, subprocess, pickle, sys
    sys.path.insert(0, {str(HERE)!r})
    from hostile import Watch
    watch = Watch()
    with watch:
        pass
    assert watch.events == []
    with watch:
        {code.format(path=str(tmp_path / "new"))}
    print(watch.events)
    """
    assert run_python(script, path=[tmp_path]).strip() != "[]"


def test_a_class_with_fields_is_no_event(run_python):
    script = f"""
    import collections, dataclasses, sys
    sys.path.insert(0, {str(HERE)!r})
    from hostile import Watch
    watch = Watch()
    with watch:
        collections.namedtuple("Pair", "a b")
        dataclasses.make_dataclass("Point", ["x"])
    print(watch.events)
    """
    assert run_python(script).strip() == "[]"
