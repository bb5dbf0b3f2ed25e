"""Models of layers of Keras and of ours: skipping what does not fit, and whole or not at all."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras.src.saving import saving_lib

import jaxlayer
from jaxlayer_core import JaxLayerError, StructureError, keras_bridge
from jaxlayer_core.layer import PureLayer

from .kinds import LAYERS, LEAVES, X, compiled, flax_layer, haiku_layer, model_of, trained


class Subclassed(keras.Model):
    """Keras finds its layers under several attributes, and tries a failed one at each."""

    def __init__(self, layer, units=5):
        super().__init__()
        self.net = layer
        self.parts = {"list": [keras.layers.Dense(units)]}

    def call(self, x, training=False):
        return self.parts["list"][0](self.net(x, training=training))


def subclassed(layer, units=5):
    model = Subclassed(layer, units)
    model(X)
    return model


def sequential(layer, units=5):
    return keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(units)])


MODELS = {"functional": model_of, "sequential": sequential, "subclassed": subclassed}


def ours(model):
    return next(
        layer for layer in model._flatten_layers(include_self=False) if isinstance(layer, PureLayer)
    )


def by_path(layer):
    return {v.path.rpartition(f"{layer.name}/")[2]: v for v in layer.weights}


def snapshot(model):
    """Copies of all that a file may change."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer else ())]
    return [np.array(v.value) for v in variables]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.weights.h5"


# Skipping what does not fit.


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("kind", LAYERS)
def test_leaves_that_fit_are_loaded_and_the_others_named(kind, make, file, values, assert_same):
    """The last part has another width, and another part is renamed."""
    saved = make(LAYERS[kind](seed=1))
    saved.save_weights(file)
    loaded = make(LAYERS[kind](names=("first", "other"), units=3, seed=2))
    before = {path: values(variable) for path, variable in by_path(ours(loaded)).items()}
    with pytest.warns(UserWarning, match="and skipped the others") as caught:
        loaded.load_weights(file, skip_mismatch=True)
    assert len(caught) == 1, "no second warning that says that nothing was found"
    message = str(caught[0].message)
    skipped = [leaf.format("other") for leaf in LEAVES[kind]]
    for leaf in skipped:
        assert re.search(rf"^  {re.escape(leaf)}: float32\[4.*\]$", message, re.M)
        assert f"  {leaf.replace('other', 'second')} -> {leaf}" in message.splitlines()
    sources = by_path(ours(saved))
    for path, variable in by_path(ours(loaded)).items():
        expected = before[path] if path in skipped else sources[path]
        np.testing.assert_array_equal(values(variable), values(expected))


@pytest.mark.filterwarnings("ignore:Skipping nested container")  # about Keras' own layer
def test_each_layer_tells_what_it_skipped(file):
    """Keras' own warning shows the message of one object."""

    def make(units):
        inputs = keras.Input((4,))
        parts = [flax_layer(name="one", units=units), haiku_layer(name="two", units=units)]
        outputs = [part(inputs) for part in parts]
        return keras.Model(inputs, [*outputs, keras.layers.Dense(units, name="three")(inputs)])

    make(3).save_weights(file)
    loaded = make(2)
    with (
        pytest.warns(UserWarning, match="A total of 1 objects could not be loaded") as caught,
        pytest.warns(UserWarning, match="and skipped the others") as skipped,
    ):
        loaded.load_weights(file, skip_mismatch=True)
    messages = [str(w.message) for w in skipped if "skipped the others" in str(w.message)]
    assert [message.splitlines()[0] for message in messages] == [
        "The layer 'one' loaded 9 of its 11 variables and skipped the others.",
        "The layer 'two' loaded 13 of its 15 variables and skipped the others.",
    ]
    assert "[<Dense name=three, built=True>]" in str(caught[-1].message), "Keras' own layer"


def test_without_skipping_nothing_of_the_layer_is_loaded(file, assert_same):
    sequential(flax_layer(seed=1)).save_weights(file)
    loaded = sequential(flax_layer(units=2, seed=2))
    before = snapshot(loaded)
    with pytest.raises(ValueError, match="does not hold the variables of the layer"):
        loaded.load_weights(file)
    assert_same(snapshot(loaded), before)


def test_keras_calls_us_from_where_we_look():
    """What `keras_bridge` reads: fails with a Keras that has moved it."""
    seen = []

    class Probe(keras.layers.Layer):
        def load_own_variables(self, store):
            earlier = keras_bridge.earlier_loading_error(self)
            seen.append((keras_bridge.is_skipping_mismatches(), earlier))
            raise LookupError(f"attempt {len(seen)}")

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.z = Probe()  # also found under `layers`, before

        def build(self, input_shape):
            self.z.build(input_shape)

        def call(self, x):
            return x

    model = Model()
    model(X)
    for skip in (False, True):
        seen.clear()
        failures = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            saving_lib._load_state(
                model,
                saving_lib.H5IOStore(_empty_file(), mode="r"),
                None,
                "",
                skip_mismatch=skip,
                visited_saveables=set(),
                failed_saveables=set(),
                error_msgs=failures,
            )
        assert [s for s, _ in seen] == [skip] * len(seen)
        assert seen[0][1] is None
        assert [str(e.error) for _, e in seen[1:]] == [f"attempt {i}" for i in range(1, len(seen))]
        assert len(seen) > 1
    assert keras_bridge.is_skipping_mismatches() is False
    assert keras_bridge.earlier_loading_error(model) is None


def _empty_file():
    import io

    import h5py

    buffer = io.BytesIO()
    h5py.File(buffer, "w").close()
    return buffer


# The reason of a failure is told, not that of a second attempt elsewhere in the file.


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_reason_reaches_the_user(make, file):
    make(flax_layer(seed=1)).save_weights(file)
    loaded = make(flax_layer(names=("first", "other"), seed=2))
    with pytest.raises(ValueError, match="A total of 1 objects could not be loaded") as caught:
        loaded.load_weights(file)
    assert "  params/second/kernel -> params/other/kernel" in str(caught.value).splitlines()


@pytest.mark.filterwarnings("ignore:Skipping nested container")  # about Keras' own layers
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_layer_that_the_file_does_not_have_is_an_error(make, file):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)]).save_weights(file)
    model = make(flax_layer())
    with pytest.raises(ValueError, match="could not be loaded"):
        model.load_weights(file)


# Whole or not at all.


def broken_pair(file, make):
    """A file, and a model that differs from it in our layer, in one of Keras' and in the slots."""
    trained(make(flax_layer(seed=1))).save_weights(file)
    return trained(make(flax_layer(names=("first", "other"), seed=2), 6))


@pytest.mark.filterwarnings("ignore:Skipping nested container")  # about Keras' own layer
@pytest.mark.parametrize("make", [model_of, sequential], ids=["functional", "sequential"])
def test_a_model_is_loaded_whole_or_not_at_all(make, file, assert_same):
    model = broken_pair(file, make)
    before = snapshot(model)
    with pytest.raises(ValueError, match="could not be loaded"):
        model.load_weights(file)
    assert any(np.any(one != other) for one, other in zip(snapshot(model), before, strict=True)), (
        "Keras itself leaves a model half-loaded"
    )

    model = broken_pair(file, make)
    before = snapshot(model)
    with pytest.raises(StructureError) as caught:
        jaxlayer.load_weights(model, file)
    assert_same(snapshot(model), before)
    message = str(caught.value)
    start = f"3 parts of the model {model.name!r} could not be loaded from {str(file)!r}."
    assert message.startswith(start)
    assert f"- FlaxLayer {ours(model).path!r}: The file does not hold" in message
    assert "  params/second/kernel -> params/other/kernel" in message.splitlines()
    assert f"- Dense {model.layers[-1].path!r}: " in message
    assert f"- Adam {model.optimizer.name!r}: " in message
    assert isinstance(caught.value.__cause__, ValueError)
    model.fit(X, np.ones((8, 6)), verbose=0)  # the variables are whole, and not donated


def test_what_the_optimizer_loaded_is_put_back_too(file, assert_same):
    """Keras loads slots by position: these fit, and are those of other variables."""
    trained(sequential(flax_layer(seed=1))).save_weights(file)
    model = trained(sequential(flax_layer(names=("first", "third"), seed=2)))
    slots = [np.array(v.value) for v in model.optimizer.variables]
    before = snapshot(model)
    with pytest.raises(StructureError, match="1 part of the model"):
        jaxlayer.load_weights(model, file)
    assert_same(snapshot(model), before)
    with pytest.raises(ValueError, match="could not be loaded"):
        model.load_weights(file)
    changed = zip(model.optimizer.variables, slots, strict=True)
    assert any(np.any(v.value != slot) for v, slot in changed), "Keras itself leaves them loaded"


@pytest.mark.parametrize("kind", LAYERS)
def test_a_file_that_fits_is_loaded(kind, tmp_path, assert_same):
    saved = trained(model_of(LAYERS[kind](seed=1)))
    for path in (tmp_path / "model.weights.h5", tmp_path / "model.keras"):
        (saved.save if path.suffix == ".keras" else saved.save_weights)(path)
        loaded = compiled(model_of(LAYERS[kind](seed=2)))
        jaxlayer.load_weights(loaded, str(path))
        assert_same(snapshot(loaded), snapshot(saved))


def test_a_broken_file_leaves_the_model_as_it_was(tmp_path, assert_same):
    saved, model = (model_of(flax_layer(seed=i)) for i in range(2))
    saved.save_weights(tmp_path / "model.weights.h5")
    whole = (tmp_path / "model.weights.h5").read_bytes()
    before = snapshot(model)
    (tmp_path / "cut.weights.h5").write_bytes(whole[: len(whole) // 2])
    for name, error in [
        ("cut.weights.h5", OSError),
        ("none.weights.h5", FileNotFoundError),
        ("model.txt", ValueError),
    ]:
        with pytest.raises(error) as caught:
            jaxlayer.load_weights(model, tmp_path / name)
        assert not isinstance(caught.value, JaxLayerError), "Keras' own words"
        assert_same(snapshot(model), before)


def test_an_interruption_leaves_the_model_as_it_was(file, monkeypatch, assert_same):
    saved, model = (model_of(flax_layer(seed=i)) for i in range(2))
    saved.save_weights(file)
    before = snapshot(model)

    def interrupt(self, store):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(ours(model)), "load_own_variables", interrupt)
    with pytest.raises(KeyboardInterrupt):
        jaxlayer.load_weights(model, file)
    assert_same(snapshot(model), before)


def test_what_is_skipped_is_still_told(file):
    sequential(flax_layer(seed=1)).save_weights(file)
    loaded = sequential(flax_layer(units=2, seed=2))
    with (
        pytest.warns(UserWarning, match="loaded 9 of its 11 variables"),
        pytest.warns(UserWarning, match="A total of 1 objects could not be loaded"),
    ):
        jaxlayer.load_weights(loaded, file, skip_mismatch=True)
