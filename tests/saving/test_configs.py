"""Whole models to files and back: `.keras`, JSON, clones, copies, callbacks, new processes."""

import copy
import json

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import jaxlayer
from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer
from jaxlayer_core import errors
from jaxlayer_core.serialization import trusting

from . import importable

HERE = importable.__name__
X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
Y = np.zeros((4, 2), "float32")

LAYERS = {
    "linen": lambda: FlaxLayer(
        importable.Block(
            importable.Config(importable.Size.LARGE),
            activation=importable.squared_relu,
            kernel_init=nn.initializers.normal(0.1),
        )
    ),
    "linen method": lambda: FlaxLayer(importable.Block(), method=importable.Block.features),
    "haiku function": lambda: HaikuLayer(importable.forward),
    "haiku class": lambda: HaikuLayer(importable.Net, 5, activation=jax.nn.gelu),
    "haiku transform": lambda: HaikuLayer(hk.transform(importable.plain_forward)),
    "haiku multi-transform": lambda: HaikuLayer(
        hk.multi_transform(importable.autoencoder), method="0"
    ),
    "functions": lambda: JaxLayer(importable.call_fn, importable.init_fn),
    "functions, given": lambda: JaxLayer(importable.call_fn, params={"w": np.ones((3, 2), "f4")}),
    "functions of haiku": lambda: JaxLayer(
        with_inputs(hk.transform(importable.plain_forward).apply),
        hk.transform(named_inputs).init,
    ),
}


def named_inputs(inputs):
    return importable.plain_forward(inputs)


def with_inputs(apply):
    return hk.transform(named_inputs).apply


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def model(request):
    """A trained functional model with one of the layers."""
    inputs = keras.Input((3,))
    hidden = request.param()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    model.compile("adam", "mse")
    model.fit(X, Y, epochs=2, verbose=0)
    return model


def assert_alike(loaded, model):
    """Asserts that two models predict the same, and go on training to the same weights."""
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    for one in (loaded, model):
        one.fit(X, Y, shuffle=False, verbose=0)
    for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_comes_back_from_a_file(model, tmp_path):
    model.save(tmp_path / "model.keras")
    with trusting(HERE, __name__):
        assert_alike(keras.models.load_model(tmp_path / "model.keras"), model)


def test_a_model_comes_back_from_a_folder(model, tmp_path):
    keras.saving.save_model(model, tmp_path / "model", zipped=False)
    with trusting(HERE, __name__):
        assert_alike(keras.models.load_model(tmp_path / "model"), model)


@pytest.mark.without("KERAS_NNX_ENABLED=true")  # Keras' own layers cannot be copied then
def test_a_copy_is_the_model(model):
    assert_alike(copy.deepcopy(model), model)


def test_a_clone_is_the_model_with_new_weights(model):
    clone = keras.models.clone_model(model)
    assert [w.shape for w in clone.weights] == [w.shape for w in model.weights]
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone.predict(X, verbose=0), model.predict(X, verbose=0))


def test_a_model_comes_back_from_json(model):
    text = model.to_json()
    with trusting(HERE, __name__):
        again = keras.models.model_from_json(text)
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))


def test_the_config_of_a_layer_is_json_and_makes_the_layer(model):
    layer = model.layers[1]
    config = layer.get_config()
    json.dumps(config)
    assert type(layer).from_config(config).get_config() == config
    with trusting(HERE, __name__):
        again = type(layer).from_config(json.loads(json.dumps(config)))
    assert json.loads(json.dumps(again.get_config())) == json.loads(json.dumps(config))


def test_nobody_is_trusted_by_default(model, tmp_path):
    """Not even in the process that saved the model; the error says what to type."""
    model.save(tmp_path / "model.keras")
    with pytest.raises(errors.TrustError, match=rf"jaxlayer.trust\('{HERE.split('.')[0]}'\)"):
        keras.models.load_model(tmp_path / "model.keras")
    assert_alike(keras.models.load_model(tmp_path / "model.keras", safe_mode=False), model)


def test_objects_may_be_given(tmp_path):
    layer = FlaxLayer(importable.Block())
    model = keras.Sequential([keras.Input((3,)), layer])
    model.save(tmp_path / "model.keras")
    given = {"Block": importable.Block, "Config": importable.Config, "Size": importable.Size}
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects=given)
    assert loaded.layers[0].module == layer.module


def test_callbacks_save_the_best_model(model, tmp_path):
    path = tmp_path / "{epoch}.keras"
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[keras.callbacks.ModelCheckpoint(path)])
    with trusting(HERE, __name__):
        assert_alike(keras.models.load_model(tmp_path / "2.keras"), model)


class Holder(keras.Model):
    """A subclassed model, with a call that no graph records."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.inner = layer
        self.head = keras.layers.Dense(2)

    def call(self, x, training=None):
        return self.head(self.inner(x, training=training))

    def get_config(self):
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_a_subclassed_model_comes_back(make, tmp_path):
    model = Holder(make())
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    with trusting(HERE, __name__):
        loaded = keras.models.load_model(
            tmp_path / "model.keras", custom_objects={"Holder": Holder}
        )
    assert_alike(loaded, model)


@pytest.mark.without("KERAS_NNX_ENABLED=true")  # Keras' own layers cannot be copied then
def test_a_layer_copies_itself():
    layer = FlaxLayer(nn.Dense(2), seed=1)
    outputs = layer(X)
    np.testing.assert_array_equal(copy.deepcopy(layer)(X), outputs)


def test_every_option_is_in_the_config():
    layer = FlaxLayer(
        importable.Block(),
        seed=3,
        training_arg="train",
        rngs=("noise",),
        capture="Dense_0",
        state_policy={"batch_stats/.*mean": "metric"},
        regularizers={"kernel": keras.regularizers.L2(0.1)},
        constraints={"bias": "non_neg"},
        keep_float32="BatchNorm",
        remat="dots_saveable",
        dtype="mixed_bfloat16",
        unpack_inputs=True,
        non_array_outputs="drop",
        save_program=False,
    )
    layer.freeze("Dense_0/kernel")
    layer(X)
    with trusting(HERE):
        again = FlaxLayer.from_config(json.loads(json.dumps(layer.get_config())))
    assert again.get_config() == layer.get_config()
    np.testing.assert_array_equal(*(one(X)[1]["Dense_0"] for one in (again, layer)))
    frozen = [v.path for v in again.variables if "kernel" in v.path and not v.trainable]
    assert len(frozen) == 1


# Calls that a functional model has recorded.


class Masked(nn.Module):
    @nn.compact
    def __call__(self, pair, *, mask=None, mode="sum"):
        x = nn.Dense(2)(pair.left) + pair.right
        x = x if mask is None else jnp.where(mask, x, 0)
        return {"sum": x, "twice": 2 * x}[mode]


def test_calls_with_containers_and_static_arguments_come_back(tmp_path):
    left, right, mask = keras.Input((3,)), keras.Input((2,)), keras.Input((2,), dtype="bool")
    outputs = FlaxLayer(Masked())(importable.Pair(left, right), mask=mask, mode="twice")
    model = keras.Model([left, right, mask], outputs)
    model.save(tmp_path / "model.keras")
    with trusting(HERE, __name__):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    arrays = [X, Y + 1, Y > -1]
    np.testing.assert_array_equal(*(m.predict(arrays, verbose=0) for m in (loaded, model)))


def test_a_typed_key_is_an_argument_of_a_recorded_call(tmp_path):
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, key):
            return nn.Dense(2)(x) + jax.random.normal(key)

    layer = FlaxLayer(Noisy())
    expected = layer(X, jax.random.key(0))
    config = json.loads(json.dumps(layer.get_build_config()))
    again = FlaxLayer(layer.module)
    again.build_from_config(config)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(X, jax.random.key(0)), expected)


# Other processes.

IN_A_NEW_PROCESS = """
import sys, keras, numpy as np
{before}
model = keras.models.load_model({path!r})
data = np.load({data!r})
np.testing.assert_array_equal(model.predict(data["x"], verbose=0), data["predicted"])
model.fit(data["x"], data["y"], shuffle=False, verbose=0)
for i, weight in enumerate(model.get_weights()):
    np.testing.assert_array_equal(weight, data[f"w{{i}}"])
print(type(model.layers[1]).__name__, *sorted({{"flax", "haiku", "tensorflow"}} & set(sys.modules)))
"""


@pytest.fixture
def load_elsewhere(run_python, tmp_path):
    """Loads a model, and trains it on, in a process that has seen nothing of it."""

    def load(model, before):
        path, data = str(tmp_path / "model.keras"), str(tmp_path / "data.npz")
        model.save(path)
        predicted = model.predict(X, verbose=0)
        model.fit(X, Y, shuffle=False, verbose=0)
        weights = {f"w{i}": w for i, w in enumerate(model.get_weights())}
        np.savez(data, x=X, y=Y, predicted=predicted, **weights)
        tests = str(__import__("pathlib").Path(__file__).resolve().parent.parent)
        code = IN_A_NEW_PROCESS.format(before=before, path=path, data=data)
        return run_python(code, path=[tests]).split()

    return load


def test_a_new_process_needs_only_the_import_of_jaxlayer(load_elsewhere):
    model = keras.Sequential([keras.layers.Dense(4), FlaxLayer(nn.Dense(2), seed=1)])
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0)
    assert load_elsewhere(model, "import jaxlayer") == ["FlaxLayer", "flax"]


def test_a_new_process_trusts_what_it_is_told_to(load_elsewhere):
    model = keras.Sequential([keras.layers.Dense(3), HaikuLayer(importable.forward, seed=1)])
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0)
    name, *_ = load_elsewhere(model, f"import jaxlayer; jaxlayer.trust({HERE!r})")
    assert name == "HaikuLayer"


def test_trust_is_public():
    assert jaxlayer.trust.__module__ == "jaxlayer_core.serialization.trust"


# Subclasses of a user's own.


class Head(FlaxLayer):
    """Makes its model itself, as layers of Keras do."""

    def __init__(self, width=3, **kwargs):
        super().__init__(nn.Dense(width), **kwargs)
        self.width = width

    def get_config(self):
        return {**super().get_config(), "width": self.width}


class Bare(FlaxLayer):
    """Has a config of its own, whole."""

    def __init__(self, width=3, name=None):
        super().__init__(nn.Dense(width), name=name)
        self.width = width

    def get_config(self):
        return {"width": self.width, "name": self.name}


class Tripled(FlaxLayer):
    def call(self, *args, **kwargs):
        return super().call(*args, **kwargs) * 3


@pytest.mark.parametrize("cls", [Head, Bare])
def test_a_subclass_that_makes_its_model_comes_back(cls, tmp_path):
    model = keras.Sequential([keras.Input((3,)), cls(width=5)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={cls.__name__: cls})
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (loaded, clone):
        assert type(other.layers[0]) is cls
        np.testing.assert_array_equal(other.predict(X, verbose=0), model.predict(X, verbose=0))


def test_a_subclass_with_a_call_of_its_own_is_never_a_program_of_its_model(tmp_path):
    class Local(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x)

    model = keras.Sequential([keras.Input((3,)), Tripled(Local())])
    with pytest.warns(UserWarning, match=r"`call` of its own.*custom_objects"):
        model.save(tmp_path / "model.keras")
    given = {"Tripled": Tripled, "Local": Local}
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects=given)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))


def test_the_old_format_keeps_the_program(tmp_path):
    model = keras.Sequential([keras.Input((3,)), HaikuLayer(lambda x: hk.Linear(2)(x))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxlayer_core.source._LIVE", {})
        config = keras.saving.serialize_keras_object(model.layers[0])
        config["config"]["program"] = config["config"]["program"]["config"]  # as its reader does
        loaded = keras.saving.deserialize_keras_object(config)
    loaded.set_weights(model.layers[0].get_weights())
    np.testing.assert_allclose(loaded(X), model.layers[0](X), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_given_params_keep_their_dtype(dtype, tmp_path):
    layer = JaxLayer(importable.call_fn, params={"w": np.ones((3, 2), jnp.dtype(dtype))})
    model = keras.Sequential([keras.Input((3,)), layer])
    model.save(tmp_path / "model.keras")
    with trusting(HERE):
        (loaded,) = keras.models.load_model(tmp_path / "model.keras").layers
    assert loaded.params["w"].dtype == dtype
