"""NNX modules in other processes: saved models, and several devices."""

import json

import numpy as np
import pytest

SAVE = """
import json, keras, numpy as np
from flax import nnx
import functools
from jaxlayer import FlaxLayer
from importable import Block, annotated

x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
made = {
    "class": functools.partial(Block, 3),
    "instance": Block(3, rngs=nnx.Rngs(0)),
    "listed": nnx.Sequential(nnx.relu, Block(3, rngs=nnx.Rngs(1))),
    "lambda": nnx.Sequential(Block(3, rngs=nnx.Rngs(0)), lambda x: x * 2),
}
results = {}
for name, module in made.items():
    model = keras.Sequential([keras.Input((3,)), FlaxLayer(module)])
    model.compile("sgd", "mse")
    model.fit(x, x, verbose=0)
    model.save(f"{PATH}/{name}.keras")
    results[name] = np.asarray(model.predict(x, verbose=0)).tolist()
print(json.dumps(results))
"""

LOAD = """
import json, keras, numpy as np
import jaxlayer

jaxlayer.trust("importable")
x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
results = {}
for name in NAMES:
    model = keras.models.load_model(f"{PATH}/{name}.keras")
    kind = type(model.layers[0]).__module__
    model.fit(x, x, verbose=0)
    model = keras.models.load_model(f"{PATH}/{name}.keras")
    results[name] = [kind, np.asarray(model.predict(x, verbose=0)).tolist()]
print(json.dumps(results))
"""

FLAX, PROGRAM = "jaxlayer_flax.layer", "jaxlayer_core.program_layer"


@pytest.mark.slow
def test_saved_models_in_another_process(run_python, tmp_path, request):
    """By name with their arguments, by their attributes, or, with a lambda inside, as programs."""
    here = request.path.parent
    saved = json.loads(run_python(f"PATH = {str(tmp_path)!r}" + SAVE, path=[here]).splitlines()[-1])
    code = f"PATH, NAMES = {str(tmp_path)!r}, {list(saved)!r}" + LOAD
    loaded = json.loads(run_python(code, path=[here]).splitlines()[-1])
    kinds = {name: kind for name, (kind, _) in loaded.items()}
    assert kinds == {"class": FLAX, "instance": FLAX, "listed": FLAX, "lambda": PROGRAM}
    for name, expected in saved.items():
        np.testing.assert_allclose(loaded[name][1], expected, rtol=1e-5, atol=1e-6)


SHARDED = """
import json, jax, keras, numpy as np
from keras import distribution as kd
from jaxlayer import FlaxLayer
from importable import annotated

alone = FlaxLayer(annotated, seed=0)
alone.build((None, 4))
mesh = kd.DeviceMesh((2, 4), ["batch", "model"])
kd.set_distribution(kd.ModelParallel(layout_map=kd.LayoutMap(mesh), batch_dim_name="batch"))
layer = FlaxLayer(annotated, seed=0)
layer.build((None, 4))
kernel = layer.params["params"]["kernel"].value
equal = bool(np.array_equal(kernel, alone.params["params"]["kernel"].value))
spec = [str(axis) for axis in kernel.sharding.spec]
model = keras.Sequential([keras.Input((4,)), layer])
model.compile("sgd", "mse")
model.fit(np.ones((8, 4)), np.ones((8, 8)), batch_size=8, verbose=0)
print(json.dumps({
    "spec": spec,
    "equal": equal,
    "after": [str(a) for a in layer.params["params"]["kernel"].value.sharding.spec],
}))
"""


@pytest.mark.slow
@pytest.mark.without("KERAS_NNX_ENABLED=true")  # Keras' trainer takes no shardings then
def test_metadata_places_variables(run_python, request):
    """A class is initialised in shards, where its metadata says, with the bits of one device."""
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    printed = run_python(SHARDED, path=[request.path.parent], env=env).splitlines()[-1]
    placed = ["None", "model"]
    assert json.loads(printed) == {"spec": placed, "equal": True, "after": placed}


ENABLED = """
import json, keras, numpy as np
from flax import nnx
from jaxlayer import FlaxLayer

x = np.ones((2, 3), "float32")
layer = FlaxLayer(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
before = np.asarray(layer(x))
names = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(layer))]
again = nnx.merge(*nnx.split(layer))
print(json.dumps([names, bool(np.array_equal(nnx.jit(lambda m, x: m(x))(again, x), before))]))
"""


@pytest.mark.slow
def test_a_layer_is_an_nnx_module_itself(run_python):
    """With NNX enabled; the module given is no part of it, only the layer's variables are."""
    printed = run_python(ENABLED, env={"KERAS_NNX_ENABLED": "true"}).splitlines()[-1]
    names, is_equal = json.loads(printed)
    assert is_equal
    assert not any(name.startswith("module") for name in names)
