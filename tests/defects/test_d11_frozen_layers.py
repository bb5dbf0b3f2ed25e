"""D11: Keras' own layer goes on writing state when it is frozen, and in predict and evaluate."""

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer

X = np.random.default_rng(0).normal(5, 2, size=(16, 4)).astype("float32")


class Counted(nn.Module):
    """Batch norm, dropout, and a collection that counts the calls that may change it."""

    @nn.compact
    def __call__(self, x, train: bool):
        count = self.variable("counters", "calls", jnp.zeros, (), "int32")
        if not self.is_initializing() and self.is_mutable_collection("counters"):
            count.value += 1
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))


def counted(x, is_training):
    calls = hk.get_state("calls", (), "int32", jnp.zeros)
    if is_training:
        hk.set_state("calls", calls + 1)
    x = hk.Linear(4)(hk.BatchNorm(True, True, 0.9)(x, is_training))
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


LAYERS = {
    "flax": lambda: FlaxLayer(Counted(), seed=0),
    "haiku": lambda: HaikuLayer(counted, seed=0),
}


@pytest.fixture(params=LAYERS)
def model(request):
    layer = LAYERS[request.param]()
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    return model


def test_a_frozen_layer_runs_in_inference_mode_and_writes_nothing(model, values, assert_same):
    """Transfer learning: the user freezes the backbone and trains the head.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (the batch statistics move).
    """
    layer = model.layers[0]
    layer.trainable = False
    model.compile("sgd", "mse")
    before, inference = values((layer.params, layer.state)), values(layer(X, training=False))
    model.fit(X, X[:, :1], epochs=3, batch_size=8, verbose=0)
    assert_same((layer.params, layer.state), before)
    np.testing.assert_array_equal(layer(X, training=True), inference)
    assert layer.trainable_variables == []


def test_predict_and_evaluate_write_nothing(model, values, assert_same):
    """The user evaluates between two epochs.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (the counter moves).
    """
    layer = model.layers[0]
    before = values((layer.params, layer.state))
    model.evaluate(X, X[:, :1], verbose=0)
    model.predict(X, verbose=0)
    assert_same((layer.params, layer.state), before)


def test_thawing_gives_everything_back(model, values):
    """The user freezes first, and fine-tunes everything later."""
    layer = model.layers[0]
    trained = [v.path for v in layer.trainable_variables]
    layer.trainable = False
    layer.trainable = True
    model.compile("sgd", "mse")
    assert [v.path for v in layer.trainable_variables] == trained
    before = values(layer.params)
    model.fit(X, X[:, :1], verbose=0)
    calls = layer.state["counters" if "counters" in layer.state else "~"]["calls"]
    assert values(calls) == 1
    assert str(before) != str(values(layer.params))
