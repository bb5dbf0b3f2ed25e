"""What may import what: measured in new processes, and drawn from the code."""

import ast
import graphlib
from pathlib import Path

import pytest

import jaxlayer_core

SOURCE = Path(jaxlayer_core.__file__).resolve().parent.parent
FRAMEWORKS = ("equinox", "flax", "haiku", "tensorflow", "torch")


def loaded_by(run_python, code, path=()):
    """Which frameworks are loaded after running `code`."""
    printed = run_python(
        f"{code}\nimport sys\nprint(*[n for n in {FRAMEWORKS} if n in sys.modules])", path=path
    )
    return set(printed.split())


def test_the_core_imports_no_framework(run_python, poison):
    code = "import jaxlayer, jaxlayer_core"
    assert loaded_by(run_python, code, path=[poison(*FRAMEWORKS)]) == set()


FIT = """
import numpy as np, keras
x = np.ones((8, 4), "float32")
def train(layer):
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("adam", "mse")
    model.fit(x, np.ones((8, 2)), verbose=0)
    model.evaluate(x, np.ones((8, 2)), verbose=0)
    model.predict(x, verbose=0)
"""


@pytest.mark.parametrize(
    ("code", "framework", "others"),
    [
        (
            "import flax.linen as nn; from jaxlayer import FlaxLayer, as_layer\n"
            "train(FlaxLayer(nn.Dense(2))); train(as_layer(nn.Dense(2)))",
            "flax",
            ("haiku", "tensorflow", "torch"),
        ),
        (
            "import haiku as hk; from jaxlayer import HaikuLayer, as_layer\n"
            "f = hk.transform(lambda x: hk.Linear(2)(x))\n"
            "train(HaikuLayer(f)); train(as_layer(f))",
            "haiku",
            ("tensorflow", "torch"),  # Haiku itself imports flax where it is installed
        ),
        (
            "import equinox as eqx, jax; from jaxlayer import EquinoxLayer, as_layer\n"
            "net = eqx.nn.Linear(4, 2, key=jax.random.key(0))\n"
            "train(EquinoxLayer(net)); train(as_layer(net))",
            "equinox",
            ("flax", "haiku", "tensorflow", "torch"),
        ),
        (
            "from jaxlayer import JaxLayer\n"
            "train(JaxLayer(lambda params, inputs: inputs @ params, "
            "lambda inputs: np.ones((4, 2))))",
            None,
            FRAMEWORKS,
        ),
    ],
    ids=["flax", "haiku", "equinox", "functions"],
)
def test_training_imports_no_other_framework(run_python, poison, code, framework, others):
    loaded = loaded_by(run_python, FIT + code, path=[poison(*others)])
    assert loaded - {"flax"} == {framework} - {None, "flax"}
    if framework == "flax":
        assert "flax" in loaded


def test_poison_works(run_python, poison):
    """The tests above would notice."""
    with pytest.raises(AssertionError, match="tensorflow was imported"):
        run_python("import tensorflow", path=[poison("tensorflow")])


# Floors: a file imports only from its own floor and those below, and never in a circle.

FLOORS = {
    # what everything stands on
    "jaxlayer_core.default_backend": 1,
    "jaxlayer_core.dependencies": 1,
    "jaxlayer_core.effort": 1,
    "jaxlayer_core.errors": 1,
    "jaxlayer_core.files": 1,
    "jaxlayer_core.keras_bridge": 1,
    "jaxlayer_core.layouts": 1,
    "jaxlayer_core.memory": 1,
    "jaxlayer_core.operations": 1,
    "jaxlayer_core.paths": 1,
    "jaxlayer_core.patterns": 1,
    "jaxlayer_core.placing": 1,
    "jaxlayer_core.pure": 1,
    "jaxlayer_core.remat": 1,
    "jaxlayer_core.rng": 1,
    "jaxlayer_core.roles": 1,
    "jaxlayer_core.signature": 1,
    "jaxlayer_core.specs": 1,
    # the parts of a layer, and of a plug-in
    "jaxlayer_core.adapter": 2,
    "jaxlayer_core.backends": 2,
    "jaxlayer_core.backends.jax": 2,
    "jaxlayer_core.backends.sharded": 2,
    "jaxlayer_core.beside": 2,
    "jaxlayer_core.calls": 2,
    "jaxlayer_core.capturing": 2,
    "jaxlayer_core.eager": 2,
    "jaxlayer_core.freezing": 2,
    "jaxlayer_core.init_apply": 2,
    "jaxlayer_core.init_apply_parameters": 2,
    "jaxlayer_core.initialization": 2,
    "jaxlayer_core.leaf_rules": 2,
    "jaxlayer_core.leaves": 2,
    "jaxlayer_core.leaving": 2,
    "jaxlayer_core.loading": 2,
    "jaxlayer_core.matching": 2,
    "jaxlayer_core.methods": 2,
    "jaxlayer_core.metrics": 2,
    "jaxlayer_core.options": 2,
    "jaxlayer_core.program": 2,
    "jaxlayer_core.program.answering": 2,
    "jaxlayer_core.program.arrays": 2,
    "jaxlayer_core.program.blobs": 2,
    "jaxlayer_core.program.calls": 2,
    "jaxlayer_core.program.checking": 2,
    "jaxlayer_core.program.exporting": 2,
    "jaxlayer_core.program.flattening": 2,
    "jaxlayer_core.program.initializing": 2,
    "jaxlayer_core.program.kinds": 2,
    "jaxlayer_core.program.library": 2,
    "jaxlayer_core.program.method": 2,
    "jaxlayer_core.program.owned": 2,
    "jaxlayer_core.program.program": 2,
    "jaxlayer_core.program.reading": 2,
    "jaxlayer_core.program.recording": 2,
    "jaxlayer_core.program.running": 2,
    "jaxlayer_core.program.shortcomings": 2,
    "jaxlayer_core.program.signatures": 2,
    "jaxlayer_core.program.trees": 2,
    "jaxlayer_core.program.trial": 2,
    "jaxlayer_core.program.versions": 2,
    "jaxlayer_core.packed": 2,
    "jaxlayer_core.recorded_calls": 2,
    "jaxlayer_core.returned_state": 2,
    "jaxlayer_core.runner": 2,
    "jaxlayer_core.seeds": 2,
    "jaxlayer_core.serialization": 2,
    "jaxlayer_core.serialization.decoder": 2,
    "jaxlayer_core.serialization.encoder": 2,
    "jaxlayer_core.serialization.introductions": 2,
    "jaxlayer_core.serialization.names": 2,
    "jaxlayer_core.serialization.objects": 2,
    "jaxlayer_core.serialization.plain": 2,
    "jaxlayer_core.serialization.references": 2,
    "jaxlayer_core.serialization.rules": 2,
    "jaxlayer_core.serialization.stand_ins": 2,
    "jaxlayer_core.serialization.trust": 2,
    "jaxlayer_core.source": 2,
    "jaxlayer_core.structure": 2,
    "jaxlayer_core.summary": 2,
    "jaxlayer_core.variables": 2,
    "jaxlayer_core.weight_index": 2,
    "jaxlayer_core.weight_sources": 2,
    "jaxlayer_core.weights": 2,
    # the layer, and who adapts a model
    "jaxlayer_core.building": 3,
    "jaxlayer_core.checkpoints": 3,
    "jaxlayer_core.checkpoints.format": 3,
    "jaxlayer_core.checkpoints.installed": 3,
    "jaxlayer_core.checkpoints.loading": 3,
    "jaxlayer_core.checkpoints.naming": 3,
    "jaxlayer_core.checkpoints.npz": 3,
    "jaxlayer_core.checkpoints.orbax": 3,
    "jaxlayer_core.checkpoints.safetensors": 3,
    "jaxlayer_core.checkpoints.saving": 3,
    "jaxlayer_core.checkpoints.trees": 3,
    "jaxlayer_core.layer": 3,
    "jaxlayer_core.layout_rules": 3,
    "jaxlayer_core.processes": 2,
    "jaxlayer_core.scanned_steps": 3,
    "jaxlayer_core.leaving_layer": 3,
    "jaxlayer_core.registry": 3,
    "jaxlayer_core.storing": 3,
    "jaxlayer_core.tree_layer": 3,
    # what users and plug-ins import
    "jaxlayer": 4,
    "jaxlayer.__main__": 4,
    "jaxlayer_core": 4,
    "jaxlayer_core.functions": 4,
    "jaxlayer_core.homes": 4,
    "jaxlayer_core.model_config": 4,
    "jaxlayer_core.program_layer": 4,
    "jaxlayer_core.module_layer": 4,
    # what authors of plug-ins test with
    "jaxlayer_core.testing": 5,
    "jaxlayer_core.testing.adapting": 5,
    "jaxlayer_core.testing.base": 5,
    "jaxlayer_core.testing.calling": 5,
    "jaxlayer_core.testing.cases": 5,
    "jaxlayer_core.testing.comparing": 5,
    "jaxlayer_core.testing.conformance": 5,
    "jaxlayer_core.testing.drawing": 5,
    "jaxlayer_core.testing.native": 5,
    "jaxlayer_core.testing.owning": 5,
    "jaxlayer_core.testing.running": 5,
    "jaxlayer_core.testing.subject": 5,
    "jaxlayer_core.testing.training": 5,
    "jaxlayer_core.testing.trees": 5,
    # one package per framework
    "jaxlayer_equinox": 5,
    "jaxlayer_equinox.adapter": 5,
    "jaxlayer_equinox.batching": 5,
    "jaxlayer_equinox.calling": 5,
    "jaxlayer_equinox.layer": 5,
    "jaxlayer_equinox.models": 5,
    "jaxlayer_equinox.serialization": 5,
    "jaxlayer_equinox.states": 5,
    "jaxlayer_equinox.trees": 5,
    "jaxlayer_flax": 5,
    "jaxlayer_flax.adapting": 5,
    "jaxlayer_flax.capturing": 5,
    "jaxlayer_flax.layer": 5,
    "jaxlayer_flax.linen": 5,
    "jaxlayer_flax.linen_bridge": 5,
    "jaxlayer_flax.model": 5,
    "jaxlayer_flax.modes": 5,
    "jaxlayer_flax.msgpack": 5,
    "jaxlayer_flax.nnx": 5,
    "jaxlayer_flax.nnx_bridge": 5,
    "jaxlayer_flax.nnx_capturing": 5,
    "jaxlayer_flax.nnx_leaves": 5,
    "jaxlayer_flax.nnx_model": 5,
    "jaxlayer_flax.nnx_modes": 5,
    "jaxlayer_flax.nnx_rngs": 5,
    "jaxlayer_flax.nnx_serialization": 5,
    "jaxlayer_flax.nnx_sources": 5,
    "jaxlayer_flax.nnx_trees": 5,
    "jaxlayer_flax.nnx_writes": 5,
    "jaxlayer_flax.roles": 5,
    "jaxlayer_flax.serialization": 5,
    "jaxlayer_flax.trees": 5,
    "jaxlayer_haiku": 5,
    "jaxlayer_haiku.adapter": 5,
    "jaxlayer_haiku.capturing": 5,
    "jaxlayer_haiku.layer": 5,
    "jaxlayer_haiku.pickled": 5,
    "jaxlayer_haiku.serialization": 5,
    "jaxlayer_haiku.transforms": 5,
    "jaxlayer_optax": 5,
    "jaxlayer_optax.choosing": 5,
    "jaxlayer_optax.source": 5,
    "jaxlayer_optax.errors": 5,
    "jaxlayer_optax.extra_args": 5,
    "jaxlayer_optax.optimizer": 5,
    "jaxlayer_optax.rates": 5,
    "jaxlayer_optax.serialization": 5,
    "jaxlayer_optax.stateful": 5,
    "jaxlayer_optax.states": 5,
    "jaxlayer_optax.stored": 5,
    "jaxlayer_optax.swapping": 5,
    "jaxlayer_optax.train_step": 5,
    "jaxlayer_optax.transformation": 5,
    "jaxlayer_optax.updating": 5,
    "jaxlayer_optax.weights": 5,
}


def parse(source):
    """Imports among the files of `source`: module to the modules it imports.

    Importing a name from a package counts as importing the module that defines it where that
    is a file of its own, and the package otherwise. Imports for type checkers do not count.
    """
    files = {}
    for file in sorted(source.rglob("*.py")):
        parts = file.relative_to(source).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    imports = {}
    for module, file in files.items():
        tree = ast.parse(file.read_text())
        skipped = {
            id(node)
            for test in ast.walk(tree)
            if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
            for node in ast.walk(test)
        }
        found = set()
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: imports are absolute"
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found.add(whole if whole in files else node.module)
        imports[module] = {name for name in found if name in files} - {module}
    return imports


def upward(imports, floors):
    """Imports that go up."""
    return [
        f"{module} (floor {floors[module]}) imports {name} (floor {floors[name]})"
        for module, names in imports.items()
        for name in sorted(names)
        if floors[name] > floors[module]
    ]


def sideways(imports):
    """Imports from one framework's package to another's."""
    return [
        f"{module} imports {name}"
        for module, names in imports.items()
        for name in sorted(names)
        if FLOORS[module] == FLOORS[name] == 5
        and module.partition(".")[0] != name.partition(".")[0]
    ]


@pytest.fixture(scope="module")
def imports():
    return parse(SOURCE)


def test_every_file_has_a_floor(imports):
    assert set(imports) == set(FLOORS), "a file was added or removed: change FLOORS"


def test_imports_go_down(imports):
    assert upward(imports, FLOORS) == []


def test_frameworks_do_not_import_each_other(imports):
    assert sideways(imports) == []


def test_there_are_no_circles(imports):
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError


FAKE = {
    "core/__init__.py": "from core.high import up\n",
    "core/low.py": "import os\nfrom core import high\n",
    "core/high.py": "from core.low import down\n\ndef up():\n    import core.lazy\n",
    "core/lazy.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from core.high import up\n"
    ),
}


def test_an_upward_arrow_and_a_circle_are_found(tmp_path):
    """The tests above would notice."""
    for name, code in FAKE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    found = parse(tmp_path)
    assert found == {
        "core": {"core.high"},
        "core.low": {"core.high"},
        "core.high": {"core.low", "core.lazy"},
        "core.lazy": set(),
    }
    floors = {"core.low": 1, "core.lazy": 1, "core.high": 2, "core": 3}
    assert upward(found, floors) == ["core.low (floor 1) imports core.high (floor 2)"]
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(found).prepare()
