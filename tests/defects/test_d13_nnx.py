"""D13: Keras' own layer takes no NNX module, and tells `nnx.bridge.to_linen` of no mode."""

import flax.linen as nn
import numpy as np
import pytest
from flax import nnx

from jaxlayer import FlaxLayer
from jaxlayer_core import key_from_seed, stream_key

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def test_nnx_modules_are_taken():
    """Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (AttributeError)."""
    module = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(FlaxLayer(module)(X), nnx.jit(lambda m, x: m(x))(module, X))


class Block(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.dense(x)))


class Nested(nn.Module):
    """Makes the bridge inside, where no attribute leads to it."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nnx.bridge.to_linen(Block, name="block")(nn.Dense(4)(x))


class WithoutFlag(nn.Module):
    """Nothing but a trace tells that it has modes."""

    @nn.compact
    def __call__(self, x):
        return nnx.bridge.to_linen(Block, name="block")(nn.Dense(4)(x))


@pytest.mark.parametrize("make", [lambda: nnx.bridge.to_linen(Block), Nested, WithoutFlag])
def test_bridges_to_linen_follow_the_mode(make):
    """Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (dropout in inference)."""
    layer = FlaxLayer(make(), seed=0)
    np.testing.assert_array_equal(layer(X), layer(X, training=False))
    (stats,) = [v for v in layer.weights if v.path.endswith("norm/mean")]
    assert not np.any(stats.value)
    one, two = layer(X, training=True), layer(X, training=True)
    assert np.any(one != two)
    assert np.mean(np.asarray(one) == 0) > 0.2
    assert np.any(stats.value)


def test_a_bridge_inside_is_found_where_variables_are_given():
    module = WithoutFlag()
    variables = FlaxLayer(module, seed=0)
    variables(X)
    layer = FlaxLayer(module, variables=variables.variables_tree())
    np.testing.assert_array_equal(layer(X), layer(X, training=False))
    assert np.any(layer(X) != layer(X, training=True))


def test_bridges_to_linen_draw_from_the_layers_key():
    """The stream is called `default`, as it is where a native user gives one."""
    module = nnx.bridge.to_linen(nnx.Dropout, 0.5)
    layer = FlaxLayer(module, seed=0)
    layer(X)
    key = key_from_seed(layer.seed_generator.state.value)
    expected = module.apply({}, X, rngs={"default": stream_key(key, "default")})
    np.testing.assert_array_equal(layer(X, training=True), expected)


class Linen(nn.Module):
    use_running_average: bool = False

    @nn.compact
    def __call__(self, x, deterministic: bool = False):
        x = nn.BatchNorm(use_running_average=self.use_running_average)(nn.Dense(4)(x))
        return nn.Dropout(0.5, deterministic=deterministic)(x)


@pytest.mark.parametrize("is_made", [True, False])
def test_bridges_to_nnx_follow_the_mode(is_made):
    """By the flag of the call and by the attribute of the linen module inside."""
    module = nnx.bridge.ToNNX(Linen(), rngs=nnx.Rngs(0))
    layer = FlaxLayer(module.lazy_init(X) if is_made else module, seed=0)
    np.testing.assert_array_equal(layer(X), layer(X, training=False))
    mean = layer.state["batch_stats"]["BatchNorm_0"]["mean"]
    before = np.array(mean.value)
    one, two = layer(X, training=True), layer(X, training=True)
    assert np.any(one != two)
    assert np.any(mean.value != before)
    names = {v.path.partition("/")[2] for v in layer.trainable_weights}
    assert "params/Dense_0/kernel" in names


class Twice(nn.Module):
    """Calls one bridge two times, before another module draws its first values."""

    @nn.compact
    def __call__(self, x):
        block = nnx.bridge.to_linen(Block, name="block")
        return nn.Dense(3)(block(block(x)))


def test_bridges_that_are_called_twice_have_the_first_values_of_flax(assert_same):
    layer = FlaxLayer(Twice(), seed=3)
    layer(X)
    key = key_from_seed([3, 0])
    streams = {"params": key, "dropout": stream_key(key, "dropout")}
    expected = nn.meta.unbox(Twice().init(streams, X))
    got = layer.variables_tree()
    assert_same(got["params"], expected["params"])
