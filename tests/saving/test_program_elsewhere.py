"""A program in another process, where neither the model nor its framework can be imported."""

import json

import jax
import keras
import numpy as np
import pytest

from jaxlayer_core.program import trees
from jaxlayer_core.program.blobs import Blob
from jaxlayer_core.program.reading import Reader

from . import program_exercise, program_models
from .program_models import example, stored

# With NNX enabled, Keras itself needs Flax.
pytestmark = [
    pytest.mark.without("KERAS_NNX_ENABLED=true"),
    pytest.mark.xdist_group("program elsewhere"),  # one process for all of these tests
]

# Exact means: the same operations on the same numbers. Where it is not, XLA compiles the
# backward pass together with a second forward pass, and fuses, and so rounds, differently.
ROUNDED = {
    ("haiku_lambda", "five_steps"): 1e-6,
    ("haiku_lambda", "fitted"): 1e-6,
    # XLA leaves out roundings to bfloat16 inside of what it fuses.
    ("half", "gradients"): 0.05,
    ("half", "five_steps"): 0.05,
}

ELSEWHERE = """
import importlib.abc, json, sys
import numpy as np

HIDDEN = ("flax", "haiku", "equinox", "program_models")

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in (*HIDDEN, "optax", "tests"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nothing())
for name in HIDDEN:
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is there")

import keras
import jaxlayer
import program_exercise
from jaxlayer_core.program.trees import Node
from jaxlayer_core.program_layer import ProgramLayer

folder = FOLDER

def arrays(name):
    with np.load(f"{folder}/{name}.npz") as file:
        return [file[str(i)] for i in range(len(file.files))]

def calls(name, described):
    found = []
    for i, node in enumerate(described):
        args, kwargs = Node.from_config(node, "call").join(iter(arrays(f"{name}-call{i}")))
        found.append((args, kwargs))
    return found

for name, case in json.load(open(f"{folder}/cases.json")).items():
    layer = ProgramLayer.from_config(case["config"])
    made = calls(name, case["calls"])
    layer(*made[0][0], **made[0][1])
    for variable, value in zip(
        (*layer.variables, layer.seed_generator.state), arrays(f"{name}-values"), strict=True
    ):
        variable.assign(value)
    for exercise in case["exercises"]:
        found = program_exercise.EXERCISES[exercise](layer, made)
        file = f"{folder}/{name}-{exercise}"
        json.dump([str(value.dtype) for value in found], open(f"{file}.json", "w"))
        found = {str(i): value.astype("float64") for i, value in enumerate(found)}
        np.savez(f"{file}.npz", **found)

model = keras.saving.load_model(f"{folder}/model.keras")
np.savez(f"{folder}/model.npz", **{"0": model.predict(arrays("model-x")[0], verbose=0)})
print(sorted(n for n in HIDDEN if n in sys.modules))
"""


def takes_one_array(name):
    args, kwargs = example(name)
    return len(args) == 1 and isinstance(args[0], np.ndarray) and not kwargs


def save(file, values):
    np.savez(file, **{str(i): value for i, value in enumerate(values)})


def read(file):
    with np.load(file) as stored:
        return [stored[str(i)] for i in range(len(stored.files))]


@pytest.fixture(scope="module")
def elsewhere(run_python, tmp_path_factory):
    """All models, exercised in a process that has none of them; expected results by name."""
    folder = tmp_path_factory.mktemp("programs")
    cases, expected = {}, {}
    for name, make in program_models.MODELS.items():
        keras.backend.clear_session(free_memory=False)
        layer, calls = make(), [example(name), example(name, 6)]
        layer(*calls[0][0], **calls[0][1])
        exercises = ["predictions", "gradients", "five_steps"]
        exercises += ["fitted"] if takes_one_array(name) else []
        described = []
        for i, call in enumerate(calls):
            arrays, node = trees.split(call, numbers=False)
            save(folder / f"{name}-call{i}.npz", arrays)
            described.append(node.get_config())
        save(folder / f"{name}-values.npz", program_exercise.values(layer))
        cases[name] = {"config": stored(layer), "calls": described, "exercises": exercises}
        expected[name] = {e: program_exercise.EXERCISES[e](layer, calls) for e in exercises}
    (folder / "cases.json").write_text(json.dumps(cases))
    x = example("cnn", 6)[0][0]
    model = keras.Sequential([keras.Input((8, 8, 2)), program_models.cnn()])
    save(folder / "model-x.npz", [x])
    expected["model"] = model.predict(x, verbose=0)
    model.save(folder / "model.keras")
    code = ELSEWHERE.replace("FOLDER", repr(str(folder)))
    printed = run_python(code, path=[str(program_exercise.__file__).rpartition("/")[0]])
    return folder, expected, printed


def test_it_was_elsewhere(elsewhere):
    assert elsewhere[2].strip() == "[]"


@pytest.mark.parametrize("name", program_models.MODELS)
def test_it_does_what_the_model_does(elsewhere, name):
    folder, expected, _ = elsewhere
    for exercise, values in expected[name].items():
        dtypes = json.loads((folder / f"{name}-{exercise}.json").read_text())
        assert dtypes == [str(value.dtype) for value in values]
        tolerance = ROUNDED.get((name, exercise), 0)
        for got, value in zip(read(folder / f"{name}-{exercise}.npz"), values, strict=True):
            np.testing.assert_allclose(
                got, value.astype("float64"), rtol=tolerance, atol=tolerance, err_msg=exercise
            )


def test_a_saved_model_is_loaded(elsewhere):
    folder, expected, _ = elsewhere
    np.testing.assert_array_equal(read(folder / "model.npz")[0], expected["model"])


@pytest.mark.parametrize("name", program_models.MODELS)
def test_it_is_for_all_platforms(elsewhere, name):
    """The stored bytes themselves are, whatever is written beside them."""
    cases = json.loads((elsewhere[0] / "cases.json").read_text())
    program = cases[name]["config"]["program"]
    for digest, blob in program["blobs"].items():
        content = Blob.read(digest, Reader(blob, "blob")).unpack()
        assert set(jax.export.deserialize(bytearray(content)).platforms) == {"cpu", "cuda", "tpu"}
