"""Intermediate results beside the output."""

import flax.linen as nn
import haiku as hk
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer
from jaxlayer_core import Adapter, AdapterError, ModuleLayer, PatternError

from .models import Rich

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def test_captured_features_feed_other_keras_layers(values):
    """Feature extraction from a model that knows nothing of it."""
    layer = FlaxLayer(Rich(), capture=["encoder", "feature"], seed=0)
    inputs = keras.Input((4,))
    outputs, features = layer(inputs)
    model = keras.Model(
        inputs, [outputs, keras.layers.Dense(3, use_bias=False)(features["encoder"])]
    )
    model.compile("sgd", ["mse", "mse"])
    model.fit(X, [X[:, :1], X[:, :3]], verbose=0)
    outputs, features = layer(X)
    native, sown = Rich().apply(
        values(layer.params), X, capture_intermediates=True, mutable=["intermediates"]
    )
    sown = sown["intermediates"]
    assert set(features) == {"encoder", "feature"}
    np.testing.assert_allclose(outputs, native, rtol=1e-6)
    np.testing.assert_allclose(features["encoder"], sown["encoder"]["__call__"][0], rtol=1e-6)
    np.testing.assert_allclose(features["feature"], sown["feature"][0], rtol=1e-6)


def test_a_module_called_twice_gives_both_results():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(4, name="shared")
            return dense(dense(x))

    _, features = FlaxLayer(Twice(), capture="shared")(X)
    assert [f.shape for f in features["shared"]] == [(8, 4), (8, 4)]


def test_capture_in_haiku(values):
    def forward(x):
        return hk.nets.MLP([5, 2])(x)

    layer = HaikuLayer(forward, capture=r"mlp/~/linear_\d", seed=0)
    outputs, features = layer(X)
    params = values(layer.params)
    hidden = X @ params["mlp/~/linear_0"]["w"] + params["mlp/~/linear_0"]["b"]
    assert set(features) == {"mlp/~/linear_0", "mlp/~/linear_1"}
    np.testing.assert_allclose(features["mlp/~/linear_0"], hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(features["mlp/~/linear_1"], outputs)


@pytest.mark.parametrize(
    ("make", "near"),
    [
        (lambda: FlaxLayer(Rich(), capture="encodr"), "encoder"),
        (lambda: HaikuLayer(lambda x: hk.nets.MLP([2])(x), capture="mlp/linear_0"), "mlp/~/lin"),
    ],
)
def test_a_path_that_nothing_has_names_near_misses(make, near):
    with pytest.raises(PatternError, match=rf"capture: .* matches n.*Near it are: .*{near}"):
        make()(X)


class Coder(nn.Module):
    def setup(self):
        self.encoder, self.decoder = nn.Dense(2), nn.Dense(4)

    def __call__(self, x):
        return self.decode(self.encoder(x))

    def decode(self, z):
        return self.decoder(z)


class HaikuCoder(hk.Module):
    def __init__(self):
        super().__init__(name="coder")
        self.encoder, self.decoder = hk.Linear(2, name="encoder"), hk.Linear(4, name="decoder")

    def __call__(self, x):
        return self.decode(self.encoder(x))

    def decode(self, z):
        return self.decoder(z)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: FlaxLayer(Coder(), capture="encoder"),
        lambda: HaikuLayer(HaikuCoder, capture="coder/~/encoder"),
    ],
)
def test_a_call_of_another_method_captures_nothing(layer):
    layer = layer()
    assert len(layer(X, method="__call__")) == 2  # the layer's own, by name
    outputs, (features,) = layer(X)[0], layer(X)[1].values()
    np.testing.assert_array_equal(layer(features, method="decode"), outputs)


def rematerialized(x):
    block = hk.nets.MLP([3, 2], name="block")
    return hk.remat(block)(x)


def stacked(x):
    x = hk.nets.MLP([4], name="block")(x)
    return hk.experimental.layer_stack(2)(lambda x: hk.Linear(4, name="inner")(x))(x)


def test_what_runs_inside_a_transformation_of_haiku_cannot_be_captured():
    message = r"'.*linear_0' of .* runs inside a transformation \(hk.remat.*module around it"
    with pytest.raises(PatternError, match=message):
        HaikuLayer(rematerialized, capture="block/~/linear_0")(X)
    with pytest.raises(PatternError, match=r"inner' of .* runs inside a transformation"):
        HaikuLayer(stacked, capture=".*inner")(X)


def test_what_runs_around_a_transformation_of_haiku_is_captured():
    layer = HaikuLayer(stacked, capture="block/~/linear_0")
    outputs, features = layer(X)
    assert outputs.shape == features["block/~/linear_0"].shape == (8, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda capture: FlaxLayer(Coder(), capture=capture),
        lambda capture: HaikuLayer(HaikuCoder, capture=capture),
    ],
)
def test_what_is_no_expression_for_paths(make):
    with pytest.raises(PatternError, match=r"capture got '\(', which is not a regular expression"):
        make("(")
    with pytest.raises(PatternError, match=r"capture takes regular expressions.*; got 3"):
        make([3])


class Plain(Adapter):
    framework = "builtins"

    def accepts(self, obj):
        return True

    def purify(self, obj, *, method=None, training_arg=None):
        raise AssertionError("not reached")


def test_an_adapter_that_cannot_capture():
    with pytest.raises(AdapterError, match=r"Plain, the adapter for builtins, cannot capture"):
        ModuleLayer(3, adapter=Plain(), capture="encoder")


@pytest.mark.parametrize("role", ["loss", "metric", "output"])
def test_what_is_captured_is_nothing_else(role):
    """Also where the collection it travels in has a role of its own."""
    layer = FlaxLayer(Rich(), capture="encoder", state_policy={"intermediates": role})
    _, beside = layer(X)
    assert set(beside) == {"encoder"} | ({"intermediates/feature"} if role == "output" else set())
    assert [m.name for m in layer.metrics] == (
        [f"{layer.name}/intermediates/feature"] if role == "metric" else []
    )
    assert len(layer.losses) == (role == "loss")


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.BatchNorm(use_running_average=not train, name="norm")(x)


def test_near_misses_where_the_first_call_is_one_in_training():
    with pytest.raises(PatternError, match=r"Near it are: norm"):
        FlaxLayer(Normed(), capture="norn")(X, training=True)
