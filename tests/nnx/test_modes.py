"""Which attributes of a module the layer takes for its mode, and which it leaves alone."""

import flax.linen as nn
import numpy as np
import pytest
from flax import nnx

from jaxlayer import FlaxLayer

X = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")


def dropped(outputs):
    return bool(np.any(np.asarray(outputs) == 0))


class Odd(nnx.Module):
    """Its own flag has a name that nobody knows."""

    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, warm):
        return self.dropout(self.norm(x)) * (2.0 if warm else 1.0)


def test_a_flag_that_is_named_goes_with_the_modes_of_the_modules_inside():
    module = Odd(rngs=nnx.Rngs(0))
    layer = FlaxLayer(module, training_arg="warm")
    module.eval()
    np.testing.assert_array_equal(layer(X), nnx.jit(lambda m, x: m(x, False))(module, X))
    assert dropped(layer(X, training=True))


class Plain(nnx.Module):
    def __init__(self, *, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(x)


class Bridged(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nnx.bridge.to_linen(Plain)(x)


@pytest.mark.parametrize("make", [lambda: Plain, lambda: nnx.bridge.to_linen(Plain), Bridged])
def test_modes_that_are_left_alone(make):
    assert not dropped(FlaxLayer(make())(X, training=False))
    assert dropped(FlaxLayer(make(), training_arg=())(X, training=False))


class HasDropout(nnx.Module):
    def __init__(self, use_dropout, *, rngs):
        self.use_dropout = use_dropout
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, train=False):
        return self.dropout(x, deterministic=not train) if self.use_dropout else x


class LinenHasDropout(nn.Module):
    use_dropout: bool

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(x) if self.use_dropout else x


@pytest.mark.parametrize("has", [False, True])
def test_whether_a_model_has_dropout_is_not_its_mode(has):
    assert dropped(FlaxLayer(HasDropout(has, rngs=nnx.Rngs(0)))(X, training=True)) is has
    layer = FlaxLayer(LinenHasDropout(has))
    for training in (False, True):  # its author always drops
        assert dropped(layer(X, training=training)) is has
    named = FlaxLayer(LinenHasDropout(has), training_arg="use_dropout")
    assert dropped(named(X, training=True))
    assert not dropped(named(X, training=False))


class Linear(nn.Module):
    def setup(self):
        self.dense = nn.Dense(3)

    def __call__(self, x):
        return self.dense(x)

    def twice(self, x):
        return 2 * self.dense(x)


def test_functions_and_methods_of_a_bridge():
    module = nnx.bridge.ToNNX(Linear(), rngs=nnx.Rngs(0)).lazy_init(X)
    expected = nnx.jit(lambda m, x: m(x))(module, X)
    for method in (None, "__call__", Linear.__call__):
        np.testing.assert_array_equal(FlaxLayer(module, method=method)(X), expected)
    for method in ("twice", Linear.twice, lambda module, x: 2 * module(x)):
        np.testing.assert_array_equal(FlaxLayer(module, method=method)(X), 2 * expected)
