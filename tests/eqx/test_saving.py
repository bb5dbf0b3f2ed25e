"""Equinox modules in Keras' files: by config where that can be, as a program otherwise."""

import json
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import jaxlayer
from jaxlayer import EquinoxLayer
from jaxlayer_core import ConfigError, ProgramLayer, TrustError, serialization, source

from .models import Kinds, Normed, X

KEY = jax.random.key(2)


def own():
    """A model of Equinox' own layers, all kinds of them."""
    one, two = jax.random.split(KEY)
    return eqx.nn.Sequential(
        [
            eqx.nn.MLP(3, 4, 5, 1, key=one),
            eqx.nn.BatchNorm(4, "batch", mode="ema"),
            eqx.nn.SpectralNorm(eqx.nn.Linear(4, 2, key=two), "weight", key=two),
            eqx.nn.WeightNorm(eqx.nn.Linear(2, 2, key=one)),
            eqx.nn.Lambda(jax.nn.gelu),
            eqx.nn.Dropout(0.25),
        ]
    )


def trained(layer):
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("sgd", "mse")
    model.fit(X, np.ones(model.output_shape[1:]) * np.ones((4, 1)), verbose=0)
    return model


def same(got, expected):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_a_module_of_equinox_own_layers_is_data(tmp_path):
    model = trained(EquinoxLayer(own(), seed=1))
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")  # in safe mode, trusting nobody
    assert type(again.layers[0]) is EquinoxLayer
    same([w.value for w in again.weights], [w.value for w in model.weights])
    same(again.predict(X, verbose=0), model.predict(X, verbose=0))
    same(again.layers[0](X, training=True), model.layers[0](X, training=True))


def test_the_config_has_no_values(tmp_path):
    trained(EquinoxLayer(eqx.nn.Linear(3, 500, key=KEY))).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        config = archive.read("config.json").decode()
    assert "equinox.array" in config
    assert len(config) < 10_000


@pytest.mark.parametrize(
    "make",
    [lambda: Normed, lambda: Normed(KEY), Kinds],
    ids=["a function", "an instance", "a class"],
)
def test_a_module_of_the_user_needs_trust(make, tmp_path):
    layer = EquinoxLayer(make(), seed=1)
    layer(X)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    package = Normed.__module__.partition(".")[0]
    with pytest.raises(TrustError, match=package):
        keras.saving.deserialize_keras_object(config)
    with jaxlayer.trusting(package):
        again = keras.saving.deserialize_keras_object(config)
    files = {}
    layer.save_own_variables(files)
    again.load_own_variables(files)
    same(again(X), layer(X))
    same(again(X, training=True), layer(X, training=True))


def test_a_copy_in_the_same_process_has_the_values_at_once():
    layer = EquinoxLayer(eqx.nn.Linear(3, 2, key=KEY))
    same(EquinoxLayer.from_config(layer.get_config())(X), layer(X))


def test_options_are_kept():
    options = {"batch_axis": {"x": 0, "shared": None}, "axis_name": "examples"}

    class Shared(eqx.Module):
        def __call__(self, x, shared):
            return jax.lax.pmean(x, "examples") + shared

    layer = EquinoxLayer(Shared(), **options)
    again = EquinoxLayer.from_config(layer.get_config())
    assert {name: again.get_config()[name] for name in options} == options
    same(again(X, X[0]), layer(X, X[0]))


def test_what_no_config_can_express_is_a_program(tmp_path, monkeypatch):
    layer = EquinoxLayer(eqx.nn.MLP(3, 2, 4, 1, activation=lambda x: jnp.sin(x), key=KEY), seed=1)
    model = trained(layer)
    model.save(tmp_path / "m.keras")
    monkeypatch.setattr(source, "_LIVE", {})  # as in another process
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert isinstance(again.layers[0], ProgramLayer)
    np.testing.assert_allclose(again.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-6)


def test_another_process_loads_it(tmp_path, run_python):
    """Before anything of Equinox is imported."""
    model = trained(EquinoxLayer(own(), seed=1))
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", X)
    printed = run_python(f"""
        import json, keras, numpy as np, jaxlayer, sys
        assert "equinox" not in sys.modules
        model = keras.saving.load_model({str(tmp_path / "m.keras")!r})
        out = model.predict(np.load({str(tmp_path / "x.npy")!r}), verbose=0)
        print(json.dumps([type(model.layers[0]).__name__, out.tolist()]))
    """)
    name, out = json.loads(printed)
    assert name == "EquinoxLayer"
    np.testing.assert_allclose(np.float32(out), model.predict(X, verbose=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda node: node["fields"].update(nope=1), r"has the fields \['nope'\], which Linear"),
        (lambda node: node["fields"]["weight"].update(shape=[-1]), r"has the shape \[-1\]"),
        (
            lambda node: node["class"].update(module="jax.numpy", name="ndarray"),
            "a module of Equinox",
        ),
        (lambda node: node["class"].update(module="equinox", name="filter_jit"), "equinox"),
    ],
    ids=["field", "shape", "class", "name outside of equinox.nn"],
)
def test_broken_configs(change, message):
    data = serialization.encode(eqx.nn.Linear(3, 2, key=KEY)).data
    change(data)
    with pytest.raises(ConfigError, match=message):
        serialization.decode(data)


def test_typed_keys_and_odd_fields():
    """A typed key is no data; the field that it is in is named."""

    class Keyed(eqx.Module):
        key: jax.Array

    with pytest.raises(jaxlayer.JaxLayerError, match=r"value\.key"):
        serialization.encode(Keyed(KEY))


class Switched(eqx.Module):
    """Has a field that only the class has a value of."""

    weight: jax.Array
    flip: bool = True

    def __init__(self, key):
        self.weight = jax.random.normal(key, (3,))

    def __call__(self, x):
        return -x * self.weight if self.flip else x * self.weight


def test_what_only_the_class_has_is_left_to_it(tmp_path):
    model = trained(EquinoxLayer(Switched(KEY), seed=1))
    model.save(tmp_path / "m.keras")
    with jaxlayer.trusting(__name__):
        again = keras.saving.load_model(tmp_path / "m.keras")
        copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for other in (again, copy):
        same(other.predict(X, verbose=0), model.predict(X, verbose=0))
