"""Scalars that a model reports, in the logs of `fit` and `evaluate`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer
from jaxlayer_core import JaxLayerError

from .models import Rich

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def test_a_metric_is_averaged_and_reported(values):
    layer = FlaxLayer(Rich(), state_policy={"stats": "metric"}, seed=0)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    params = values(layer.params)
    expected = [
        float(Rich().apply(params, X[i : i + 4], mutable=["stats"])[1]["stats"]["mean"][0])
        for i in (0, 4)
    ]
    history = model.fit(X, X[:, :1], batch_size=4, epochs=2, shuffle=False, verbose=0).history
    np.testing.assert_allclose(
        history[f"{layer.name}/stats/mean"], [np.mean(expected)] * 2, rtol=1e-5
    )
    result = model.evaluate(X, X[:, :1], batch_size=4, verbose=0, return_dict=True)
    np.testing.assert_allclose(result[f"{layer.name}/stats/mean"], np.mean(expected), rtol=1e-5)
    layer(X, training=True)
    (metric,) = layer.metrics
    metric.reset_state()
    assert metric.result() == {}


def test_metrics_in_a_trace_of_the_users_own():
    """Nothing is reported from there, and nothing of the trace is kept."""
    layer = FlaxLayer(Rich(), state_policy={"stats": "metric"})
    layer(X, training=False)
    before = float(layer.metrics[0].result())
    jax.jit(lambda x: layer(x, training=False))(2 * X)
    assert float(layer.metrics[0].result()) == before


def test_metrics_of_one_name_in_two_layers_are_both_reported(values):
    layers = [FlaxLayer(Rich(), state_policy={"stats": "metric"}, seed=i) for i in range(2)]
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers[0](inputs) + layers[1](inputs))
    model.compile("sgd", "mse")
    logs = model.evaluate(X, X[:, :1], batch_size=8, verbose=0, return_dict=True)
    for layer in layers:
        _, sown = Rich().apply(values(layer.params), X, mutable=["stats"])
        reported = logs[f"{layer.name}/stats/mean"]
        np.testing.assert_allclose(reported, sown["stats"]["mean"][0], rtol=1e-5)


class OnlyInTraining(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        if train:
            self.sow("stats", "mean", jnp.mean(x))
        return nn.Dense(1)(x)


def test_a_metric_of_training_only_is_not_reported_in_validation():
    layer = FlaxLayer(OnlyInTraining(), state_policy={"stats": "metric"}, name="net")
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("sgd", "mse")
    layer(X, training=True)  # reported before any step of Keras
    data = (X, X[:, :1])
    history = model.fit(*data, epochs=2, validation_data=data, verbose=0).history
    assert set(history) == {"loss", "val_loss", "net/stats/mean"}
    np.testing.assert_allclose(history["net/stats/mean"], [X.mean()] * 2, rtol=1e-5)
    assert np.isfinite(history["val_loss"]).all()


class TwoMethods(nn.Module):
    def setup(self):
        self.dense = nn.Dense(4)

    def __call__(self, x):
        self.sow("stats", "size", jnp.mean(x**2))
        return self.dense(x)

    def encode(self, x):
        self.sow("stats", "code", jnp.mean(x))
        return self.dense(x)


class Both(keras.Model):
    def __init__(self, only_in_training=False):
        super().__init__()
        self.net = FlaxLayer(TwoMethods(), state_policy={"stats": "metric"}, name="net")
        self.only_in_training = only_in_training

    def call(self, x, training=False):
        encode = training or not self.only_in_training
        return self.net(self.net(x), method="encode" if encode else None)


def test_metrics_of_another_method_are_reported():
    model = Both()
    model.compile("sgd", "mse")
    history = model.fit(X, X, batch_size=8, verbose=0).history
    np.testing.assert_allclose(history["net/stats/size"], [np.mean(X**2)], rtol=1e-5)
    assert np.isfinite(history["net/stats/code"]).all()


def test_metrics_that_come_up_in_the_middle_of_training():
    model = Both(only_in_training=True)
    model.compile("sgd", "mse")
    with pytest.raises(JaxLayerError, match=r"metrics stats/code while a step.*Make one"):
        model.fit(X, X, batch_size=8, verbose=0)
    model = Both(only_in_training=True)  # Keras leaves no variables after a failed step
    model.compile("sgd", "mse")
    model.net(X, method="encode")
    assert np.isfinite(model.fit(X, X, verbose=0).history["net/stats/code"]).all()


def test_metrics_are_no_weights_of_the_layer():
    layer = FlaxLayer(Rich(), state_policy={"stats": "metric"})
    layer(X)
    assert len(layer.weights) == 4
    assert layer.count_params() == 4 * 4 + 4 + 4 + 1


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_metrics_are_summed_in_float32(policy):
    """bfloat16 counts to 256, and float16 sums to 65504."""
    layer = FlaxLayer(Rich(), state_policy={"stats": "metric"}, dtype=policy)
    for _ in range(300):
        layer(np.full((2, 4), 1000, "float32"), training=True)
    _, count = layer.metrics[0].sums
    assert count.value == 300
    assert np.isfinite(layer.metrics[0].result())


class Optional(nn.Module):
    @nn.compact
    def __call__(self, x, extra=None):
        if extra is not None:
            self.sow("stats", "extra", jnp.mean(extra))
        return nn.Dense(1)(x)


def test_a_metric_of_calls_with_an_optional_argument():
    layer = FlaxLayer(Optional(), state_policy={"stats": "metric"})
    with pytest.warns(UserWarning, match="'stats' matches no path .* Another method or argument"):
        layer(X)
    assert layer.metrics == []
    layer(X, extra=X)
    np.testing.assert_allclose(layer.metrics[0].result(), X.mean(), rtol=1e-6)
