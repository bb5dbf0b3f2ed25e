"""D18: errors of the wrapped model arrive as they are, with their cause."""

import flax
import flax.linen as nn
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer
from jaxlayer_core import JaxLayerError

X = np.ones((6, 4), "float32")


class Needs(nn.Module):
    """Raises an error class with its own constructor, unless it gets two features."""

    @nn.compact
    def __call__(self, x):
        raise flax.errors.ScopeParamShapeError("kernel", "/Needs/kernel", (2, 3), x.shape)


class Fine(nn.Module):
    """Works when it is built and fails in training."""

    @nn.compact
    def __call__(self, x, training: bool):
        x = nn.Dense(2)(x)
        if training and not self.is_initializing():
            raise flax.errors.ScopeParamNotFoundError("bias", "/Fine/Dense_0")
        return x


def test_error_while_building():
    """The user's module has a mistake.

    Keras' own layer lets Flax's error pass while it builds, which does not say which layer.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (the message does not name the layer).
    """
    layer = FlaxLayer(Needs(), name="broken")
    with pytest.raises(JaxLayerError, match=r"Flax module Needs.*'broken'.*/Needs/kernel") as info:
        layer(X)
    assert isinstance(info.value.__cause__, flax.errors.ScopeParamShapeError)


def model(layer):
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("sgd", "mse")
    return model


def test_error_in_fit():
    """The same where Keras calls the layer, in the middle of its train step.

    Keras' traceback filter cannot re-create Flax's error by class.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (a RuntimeError without a cause).
    """
    with pytest.raises(JaxLayerError, match=r"Flax module Fine.*float32\[.*4\]") as info:
        model(FlaxLayer(Fine())).fit(X, np.ones((6, 2)), verbose=0)
    cause = info.value.__cause__
    assert isinstance(cause, flax.errors.ScopeParamNotFoundError)
    assert "/Fine/Dense_0" in str(cause)


class Joins(nn.Module):
    """Shapes do not fit, once it runs in training."""

    @nn.compact
    def __call__(self, x, training: bool = False):
        y = nn.Dense(2)(x)
        return jnp.concatenate([y, x[:3]], axis=1) if training and not self.is_initializing() else y


def test_error_of_a_jax_operation():
    """The user's shapes do not fit, deep inside the module.

    Keras re-creates the TypeError without its cause.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (no cause).
    """
    layer = FlaxLayer(Joins(), name="join")
    layer(X)
    with pytest.raises(JaxLayerError, match="'join'") as info:
        layer(X, training=True)
    assert isinstance(info.value.__cause__, TypeError)


class Own(Exception):
    """Takes three arguments, so nobody can re-create it from a message."""

    def __init__(self, one, two, three):
        super().__init__(f"{one} {two} {three}")


class RaisesOwn(nn.Module):
    @nn.compact
    def __call__(self, x, training: bool = False):
        if training and not self.is_initializing():
            raise Own("one", "two", "three")
        return x


def test_error_of_the_user():
    """The user's module raises an exception class of its own.

    Keras' traceback filter fails to re-create it.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (a RuntimeError without a cause).
    """
    layer = FlaxLayer(RaisesOwn(), name="own")
    layer.build((None, 4))
    with pytest.raises(JaxLayerError, match="Own: one two three") as info:
        layer(X, training=True)
    assert isinstance(info.value.__cause__, Own)
