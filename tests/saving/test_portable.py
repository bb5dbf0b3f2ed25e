"""Models that no config can express, as files: closures, lambdas, what a notebook defines."""

import copy
import os
import pathlib
import warnings

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer
from jaxlayer_core import ProgramLayer, errors

from . import importable

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
Y = np.zeros((4, 2), "float32")


def haiku_lambda():
    return HaikuLayer(lambda x: hk.nets.MLP([4, 2])(x), seed=1)


def haiku_closure():
    width = 4

    def forward(x, is_training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(width)(x), is_training)
        return hk.dropout(hk.next_rng_key(), 0.3, x) if is_training else x

    return HaikuLayer(forward, seed=1)


def local_module():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic=True):
            x = nn.BatchNorm(use_running_average=deterministic)(nn.Dense(4)(x))
            return nn.Dropout(0.3, deterministic=deterministic)(x)

    return FlaxLayer(Net(), seed=1)


def lambda_in_a_module():
    return FlaxLayer(nn.Sequential([nn.Dense(4), lambda x: x * 2]), seed=1)


def functions_of_jax():
    def call_fn(params, state, rng, inputs, training):
        noise = jax.random.normal(rng, inputs.shape) if training else 0
        return (inputs + noise) @ params["w"], {"calls": state["calls"] + training}

    def init_fn(rng, inputs):
        return {"w": jax.random.normal(rng, (inputs.shape[-1], 2))}, {"calls": jnp.zeros((), int)}

    return JaxLayer(call_fn, init_fn, seed=1)


def given_params():
    return JaxLayer(lambda params, inputs: inputs @ params, params=np.ones((3, 2), "float32"))


MODELS = (
    haiku_lambda, haiku_closure, local_module, lambda_in_a_module, functions_of_jax, given_params,
)  # fmt: skip


def trained(layer):
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(2)])
    # Not Adam, which makes whole steps of gradients that are only rounding.
    model.compile(keras.optimizers.SGD(0.01), "mse")
    model.fit(X, Y, shuffle=False, verbose=0)
    return model


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def model(request):
    return trained(request.param())


NO_FRAMEWORK = """
import importlib.abc, sys

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flax", "haiku"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nothing())
"""

LOAD = """
import keras, jaxlayer
import numpy as np

model = keras.models.load_model(PATH)
data = np.load(DATA)
np.testing.assert_array_equal(model.predict(data["x"], verbose=0), data["predicted"])
np.testing.assert_allclose(
    model.predict(np.repeat(data["x"], 3, 0), verbose=0)[::3], data["predicted"], rtol=1e-5
)
model.fit(data["x"], data["y"], shuffle=False, verbose=0, epochs=3)
for i, weight in enumerate(model.get_weights()):
    np.testing.assert_allclose(weight, data[f"w{i}"], rtol=1e-5, atol=1e-6)
model.save(PATH)  # it can be saved again ...
again = keras.models.load_model(PATH)  # ... and loaded
x = np.ones((5, 3), "float32")
np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
print(type(model.layers[0]).__mro__[1].__name__)
"""


@pytest.fixture
def load_elsewhere(run_python, tmp_path):
    """Loads a model in a process without Flax and Haiku, and fine-tunes it."""

    def load(model):
        path, data = str(tmp_path / "model.keras"), str(tmp_path / "data.npz")
        model.save(path)
        predicted = model.predict(X, verbose=0)
        model.fit(X, Y, shuffle=False, verbose=0, epochs=3)
        weights = {f"w{i}": w for i, w in enumerate(model.get_weights())}
        np.savez(data, x=X, y=Y, predicted=predicted, **weights)
        code = LOAD.replace("PATH", repr(path)).replace("DATA", repr(data))
        return run_python(NO_FRAMEWORK + code).strip()

    return load


@pytest.mark.without("KERAS_NNX_ENABLED=true")  # Keras itself then needs Flax
def test_it_is_fine_tuned_where_neither_its_source_nor_its_framework_is(model, load_elsewhere):
    """The steps are compiled from another program, so XLA may round them otherwise."""
    assert load_elsewhere(model) == "ProgramLayer"


@pytest.mark.without("KERAS_NNX_ENABLED=true")  # Keras itself then needs Flax
def test_any_model_is_stored_so_on_request(load_elsewhere):
    layer = FlaxLayer(nn.Dense(4), save_program=True, seed=1)
    assert load_elsewhere(trained(layer)) == "ProgramLayer"


@pytest.mark.without("KERAS_NNX_ENABLED=true")  # Keras itself then needs Flax
def test_without_a_program_a_missing_framework_is_named(run_python, tmp_path):
    trained(FlaxLayer(nn.Dense(4))).save(tmp_path / "model.keras")
    code = f"""
try:
    keras.models.load_model({str(tmp_path / "model.keras")!r})
except jaxlayer.JaxLayerError as error:
    print(error)
"""
    printed = run_python(NO_FRAMEWORK + "import keras, jaxlayer" + code)
    assert "pip install 'jaxlayer[flax]'" in printed


@pytest.mark.without("KERAS_NNX_ENABLED=true")  # Keras itself then needs Flax
def test_a_notebooks_own_functions_are_stored_as_a_program(run_python, tmp_path):
    numpy = f"import numpy as np\nx = np.array({X.tolist()}, 'float32')\n"
    predict = "print(*model.predict(x, verbose=0).ravel())"
    path = str(tmp_path / "model.keras")
    save = f"""
import flax.linen as nn, haiku as hk, keras
from jaxlayer import FlaxLayer, HaikuLayer

def forward(x):
    return hk.Linear(3)(x)

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)

model = keras.Sequential([keras.Input((3,)), HaikuLayer(forward), FlaxLayer(Net())])
model.save({path!r})
"""
    load = f"import keras, jaxlayer\nmodel = keras.models.load_model({path!r})\n"
    expected = run_python(numpy + save + predict)
    assert run_python(NO_FRAMEWORK + numpy + load + predict) == expected


# In the process that made the model, copies have the model itself.


def test_copies_made_here_have_the_very_functions(model, tmp_path):
    model.save(tmp_path / "model.keras")
    copies = {
        "clone": keras.models.clone_model(model),
        "file": keras.models.load_model(tmp_path / "model.keras"),
    }
    if os.environ.get("KERAS_NNX_ENABLED") != "true":  # Keras' own layers cannot be copied then
        copies["copy"] = copy.deepcopy(model)
    for name, other in copies.items():
        one, layer = other.layers[0], model.layers[0]
        assert type(one) is type(layer), name
        kept = "call_fn" if isinstance(layer, JaxLayer) else "module"
        assert getattr(one, kept) is getattr(layer, kept), name
        if name != "clone":
            np.testing.assert_array_equal(other.predict(X, verbose=0), model.predict(X, verbose=0))


def test_a_file_does_not_find_what_is_gone(tmp_path):
    import gc

    model = trained(haiku_lambda())
    expected = model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    del model
    keras.backend.clear_session()
    gc.collect()
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.layers[0], ProgramLayer)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)


def test_cloning_exports_nothing(monkeypatch):
    layer = haiku_lambda()
    layer(X)
    monkeypatch.setattr(type(layer), "to_program", lambda self: 1 / 0)
    assert type(layer).from_config(layer.get_config()).module is layer.module


def test_a_program_is_exported_once(monkeypatch, tmp_path):
    model = trained(haiku_lambda())
    first = model.layers[0].to_program()
    model.save(tmp_path / "model.keras")
    assert model.layers[0].to_program() is first
    model.layers[0](X[:, None])  # another kind of call
    assert model.layers[0].to_program() is not first


def test_a_given_object_comes_before_the_program(tmp_path):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x)

    trained(FlaxLayer(Net())).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Net": Net})
    assert type(loaded.layers[0].module) is Net


def test_a_program_in_place_of_a_model_that_could_be_had_is_said(tmp_path):
    trained(FlaxLayer(importable.Block(), save_program=True)).save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match=r"loaded as the program .* jaxlayer.trust"):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.layers[0], ProgramLayer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    assert isinstance(loaded.layers[0], FlaxLayer)


# What is refused, and when.


def test_a_model_that_was_never_called_cannot_be_a_program(tmp_path):
    model = keras.Sequential([haiku_lambda()])
    with (
        pytest.warns(UserWarning, match="not yet been built"),
        pytest.raises(
            errors.ProgramError,
            match=r"(?s)haiku_layer.* cannot be saved before it is built.*lambda",
        ),
    ):
        model.save(tmp_path / "model.keras")


def calls_python(x):
    return jax.pure_callback(lambda v: np.asarray(v), jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def test_saving_refuses_what_could_not_be_loaded(tmp_path):
    model = keras.Sequential([keras.Input((3,)), HaikuLayer(lambda x: calls_python(x))])
    with pytest.raises(
        errors.ProgramError, match=r"(?s)cannot be saved.*lambda.*calls back into Python"
    ):
        model.save(tmp_path / "model.keras")


def test_a_class_with_a_name_may_be_given_when_it_cannot_be_exported(tmp_path):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return calls_python(nn.Dense(2)(x))

    model = keras.Sequential([keras.Input((3,)), FlaxLayer(Net())])
    with pytest.warns(UserWarning, match="only be loaded with custom_objects"):
        model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Net": Net})
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))


def loaded_program(layer, tmp_path):
    """What is loaded of a layer where its model is not known."""
    keras.Sequential([keras.Input((3,)), layer]).save(tmp_path / "model.keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxlayer_core.source._LIVE", {})
        return keras.models.load_model(tmp_path / "model.keras").layers[0]


def test_what_a_program_cannot_do_is_a_clear_error(tmp_path):
    class Net(nn.Module):
        def setup(self):
            self.dense = nn.Dense(1)

        def __call__(self, x, scale=1.0):
            return jnp.sin(self.dense(x)) * scale

        def encode(self, x):
            return self.dense(x)

    layer = loaded_program(FlaxLayer(Net()), tmp_path)
    assert layer(X).shape == (4, 1)
    with pytest.raises(errors.SignatureError, match="encode"):
        layer(X, method="encode")
    with pytest.raises(errors.SignatureError, match="scale"):
        layer(X, scale=2.0)
    with pytest.raises(errors.SignatureError, match=r"float32\[None, 3\]"):
        layer(X[:, :2])
    call_fn, params, state = layer.to_pure()

    def loss(x):
        return call_fn(params, state, jax.random.key(0), x)[0].sum()

    assert jax.grad(loss)(X).shape == X.shape
    with pytest.raises(errors.JaxLayerError, match="differentiated once"):
        jax.grad(lambda x: jax.grad(loss)(x).sum())(X)
    with pytest.raises(TypeError, match="forward-mode"):  # of JAX, and as clear as ours could be
        jax.jvp(loss, (X,), (X,))
    np.testing.assert_allclose(jax.vmap(loss)(X[:, None]), layer(X)[:, 0], rtol=1e-6)


def test_other_methods_that_were_called_are_in_the_program(tmp_path):
    class Net(nn.Module):
        def setup(self):
            self.dense = nn.Dense(2)

        def __call__(self, x):
            return jnp.sin(self.dense(x))

        def encode(self, x):
            return self.dense(x)

    original = FlaxLayer(Net())
    original(X)
    expected = original(X, method="encode")
    layer = loaded_program(original, tmp_path)
    np.testing.assert_allclose(layer(X, method="encode"), expected, rtol=1e-6)


def test_this_file_is_no_place_to_import_from():
    """The tests above rest on it: their models are closures."""
    assert "<locals>" in local_module().module.__class__.__qualname__
    assert pathlib.Path(__file__).name == "test_portable.py"


def test_what_a_program_lacks_is_said_when_it_is_saved(tmp_path):
    def forward(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 0, lambda x: x + 1, hk.Linear(2)(x))

    model = keras.Sequential([keras.Input((3,)), HaikuLayer(forward)])
    with pytest.warns(UserWarning, match=r"(?s)lacks something.*gradient"):
        model.save(tmp_path / "model.keras")
