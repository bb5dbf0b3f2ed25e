"""D7: models are saved and copied without `get_config`; D7b: nothing unreadable is written."""

import copy

import flax.linen as nn
import haiku as hk
import jax
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, JaxLayer

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def linen_model():
    module = nn.Sequential(
        [
            nn.Dense(4, kernel_init=nn.initializers.normal(0.1)),
            nn.gelu,
            nn.BatchNorm(True),
            nn.Dense(2),
        ]
    )
    model = keras.Sequential([keras.Input((3,)), FlaxLayer(module)])
    model.compile("adam", "mse")
    model.fit(X, X[:, :2], verbose=0)
    return model


def saved(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras")


def checkpointed(model, tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras")
    model.fit(X, X[:, :2], verbose=0, callbacks=[checkpoint])
    return keras.models.load_model(tmp_path / "best.keras")


def cloned(model, tmp_path):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def from_json(model, tmp_path):
    again = keras.models.model_from_json(model.to_json())
    again.set_weights(model.get_weights())
    return again


def copied(model, tmp_path):
    return copy.deepcopy(model)


@pytest.mark.parametrize(
    "again",
    [
        saved,
        checkpointed,
        cloned,
        from_json,
        # Keras' own models cannot be copied then.
        pytest.param(copied, marks=pytest.mark.without("KERAS_NNX_ENABLED=true")),
    ],
)
def test_d7_a_linen_module_needs_no_get_config(again, tmp_path):
    model = linen_model()
    other = again(model, tmp_path)
    np.testing.assert_array_equal(other.predict(X, verbose=0), model.predict(X, verbose=0))


def test_d7b_haiku_functions_through_jaxlayer_are_saved_readable(tmp_path):
    """The example of Keras' own documentation of `JaxLayer`."""

    def my_haiku_module_fn(inputs, training):
        x = hk.Linear(8)(inputs)
        if training:
            x = hk.dropout(rng=hk.next_rng_key(), rate=0.3, x=x)
        return hk.Linear(2)(jax.nn.relu(x))

    transformed = hk.transform(my_haiku_module_fn)
    layer = JaxLayer(call_fn=transformed.apply, init_fn=transformed.init)
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("adam", "mse")
    model.fit(X, X[:, :2], verbose=0)
    loaded = saved(model, tmp_path)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    loaded.fit(X, X[:, :2], verbose=0)
