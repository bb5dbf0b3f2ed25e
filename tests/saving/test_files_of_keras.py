"""Files that Keras' own JAX layers wrote, by number. `data/make_keras_files.py` made them."""

import pathlib

import h5py
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, JaxLayer
from jaxlayer_core import StructureError, weight_index

from .data.make_keras_files import X, count_call, count_init, models
from .kinds import LAYERS
from .kinds import X as INPUTS

DATA = pathlib.Path(__file__).with_name("data")
LAYER = 2  # of a model: after the input and a Dense layer

PLACES = {"flax": "layers/flax_layer/vars", "jax": "layers/jax_layer/vars"}


@pytest.fixture
def made():
    """Both models, with our layers in the places of Keras'."""
    return dict(models(FlaxLayer, JaxLayer))


@pytest.fixture(scope="module")
def outputs():
    with np.load(DATA / "outputs.npz") as file:
        return dict(file)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.parametrize("name", ["flax", "jax"])
def test_a_file_of_keras_loads(name, suffix, made, outputs, values):
    """The outputs are those of Keras' layer, for weights that were trained."""
    model = made[name]
    layer = model.layers[LAYER]
    with pytest.warns(UserWarning, match="numbers the weights of the layer") as caught:
        model.load_weights(DATA / f"{name}{suffix}")
    assert len(caught) == 1, "said once"
    message = str(caught[0].message)
    assert repr(layer.name) in message
    assert "params first, then state" in message
    assert "check that all parts of the model had the same names" in message
    with h5py.File(DATA / f"{name}.weights.h5") as file:
        stored = [file[PLACES[name]][str(i)][()] for i in range(len(layer.weights))]
    for variable, value in zip(layer.weights, stored, strict=True):
        np.testing.assert_array_equal(values(variable), value)
    np.testing.assert_allclose(model.predict(X, verbose=0), outputs[name], rtol=1e-6, atol=1e-6)


def test_saved_again_they_are_stored_by_name(made, tmp_path, assert_same):
    with pytest.warns(UserWarning, match="Save the weights again, and they are stored by name"):
        made["flax"].load_weights(DATA / "flax.weights.h5")
    made["flax"].save_weights(tmp_path / "model.weights.h5")
    again = dict(models(FlaxLayer, JaxLayer))["flax"]
    again.load_weights(tmp_path / "model.weights.h5")  # without a warning
    assert_same(again.layers[LAYER].weights, made["flax"].layers[LAYER].weights)


def test_the_seed_stays(made, values):
    """Keras' file has none."""
    layer = made["flax"].layers[LAYER]
    layer.seed_generator.next()
    before = values(layer.seed_generator.state)
    with pytest.warns(UserWarning, match="numbers"):
        made["flax"].load_weights(DATA / "flax.weights.h5")
    np.testing.assert_array_equal(values(layer.seed_generator.state), before)


def numbered(change=lambda arrays: arrays):
    """The store of Keras' JaxLayer, after a change to the list of its arrays."""
    with h5py.File(DATA / "jax.weights.h5") as file:
        group = file[PLACES["jax"]]
        arrays = [group[str(i)][()] for i in range(len(group))]
    return {str(i): array for i, array in enumerate(change(arrays))}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda arrays: arrays[:-1], ["expected 14 leaves, got 13"]),
        (lambda arrays: [*arrays, arrays[0]], ["expected 14 leaves, got 15"]),
        (
            lambda arrays: [arrays[-1], *arrays[:-1]],
            [
                "0: expected float32[] (params/scale), got float32[4]",
                "1: expected float32[4,4] (params/w0), got float32[]",
                "12: expected int32[] (state/calls), got float32[4,4]",
                "13: expected float32[4] (state/mean), got int32[]",
            ],
        ),
        (
            lambda arrays: [*arrays[:12], arrays[12].astype("float32"), arrays[13]],
            ["12: expected int32[] (state/calls), got float32[]"],
        ),
    ],
    ids=["fewer", "more", "another order", "another kind"],
)
def test_what_does_not_fit_is_refused_with_numbers(change, told, values, assert_same):
    layer = JaxLayer(count_call, count_init)
    layer(X)
    before = values(layer.variables)
    with pytest.raises(StructureError, match="numbers the weights of the layer") as caught:
        layer.load_own_variables(numbered(change))
    assert [line[2:] for line in str(caught.value).splitlines() if line.startswith("  ")] == told
    assert_same(layer.variables, before)


def test_nothing_to_doubt_where_all_leaves_differ_in_shape():
    def call(params, inputs):
        return inputs @ params["w"] + params["b"]

    layer = JaxLayer(call, params={"w": np.ones((4, 2), "f4"), "b": np.ones(2, "f4")})
    with pytest.warns(UserWarning, match="numbers") as caught:
        layer.load_own_variables({"0": np.full(2, 5, "f4"), "1": np.ones((4, 2), "f4")})
    assert "check" not in str(caught[0].message)
    np.testing.assert_array_equal(layer.params["b"].value, np.full(2, 5))


def test_nothing_is_stored_for_a_layer_without_weights_and_that_loads():
    layer = JaxLayer(lambda params, inputs: 2 * inputs, params={})
    layer.load_own_variables({})
    other = JaxLayer(lambda params, inputs: 2 * inputs, params={"w": np.ones(2, "f4")})
    store = {}
    other.save_own_variables(store)
    with pytest.raises(StructureError, match=r"params/w: float32\[2\]"):
        layer.load_own_variables(store)
    with pytest.raises(StructureError, match="holds nothing for the layer"):
        other.load_own_variables({})


def test_our_file_is_refused_by_the_numbers_of_keras(tmp_path):
    """The other way round: Keras' layer counts the entries, and finds an index and a seed more."""
    layer = LAYERS["functions"](name="net")
    layer(INPUTS)
    store = {}
    layer.save_own_variables(store)
    assert len(store) == len(layer.weights) + 2
    assert weight_index.ENTRY in store
    assert not any(name.isdigit() for name in store)
    theirs = keras.layers.Dense(3)
    theirs.build((None, 4))
    with pytest.raises(ValueError, match="expected 2 variables, but received 6"):
        theirs.load_own_variables(store)
