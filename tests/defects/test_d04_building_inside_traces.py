"""D4: the layer is first called while somebody else traces."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer

X = np.linspace(-1, 1, 24, dtype="float32").reshape(6, 4)
Y = np.ones((6, 2), "float32")

LAYERS = {
    "flax": lambda: FlaxLayer(nn.Dense(2), seed=0),
    "haiku": lambda: HaikuLayer(lambda x: hk.Linear(2)(x), seed=0),
    "functions": lambda: JaxLayer(
        lambda params, inputs: inputs @ params,
        lambda rng, inputs: jax.random.normal(rng, (inputs.shape[-1], 2)),
        seed=0,
    ),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def make(request):
    return request.param


def assert_no_tracers(layer):
    assert layer.built
    for variable in layer.variables:
        assert not isinstance(variable.value, jax.core.Tracer), variable.path


class Subclassed(keras.Model):
    """Has no `build`."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x):
        return self.layer(x)


class Block(keras.layers.Layer):
    """Makes its layer in the constructor and has no `build`."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x):
        return self.layer(x) + 1


def test_subclassed_model_in_fit(make):
    """The user writes a Model with `call` only and goes straight to `fit`.

    Keras' own layer raises "'JaxLayer' cannot be built in a tracing scope".

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError).
    """
    layer = make()
    model = Subclassed(layer)
    model.compile("sgd", "mse")
    history = model.fit(X, Y, epochs=2, verbose=0).history["loss"]
    assert history[1] < history[0]
    assert_no_tracers(layer)
    assert model.trainable_variables


def test_deferred_sequential_in_fit(make):
    """The user's Sequential has no Input.

    Keras' own layer raises "'JaxLayer' cannot be built in a tracing scope".

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError).
    """
    layer = make()
    model = keras.Sequential([layer, keras.layers.Dense(2, use_bias=False)])
    model.compile("sgd", "mse")
    history = model.fit(X, Y, epochs=2, verbose=0).history["loss"]
    assert history[1] < history[0]
    assert_no_tracers(layer)


def test_block_in_a_functional_model(make):
    """The user's own block holds the layer and is called on a `keras.Input`.

    Keras' own layer raises "'JaxLayer' cannot be built in a tracing scope".

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError).
    """
    block = Block(make())
    inputs = keras.Input((4,))
    model = keras.Model(inputs, block(inputs))
    assert model.output_shape == (None, 2)
    assert_no_tracers(block.layer)
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    np.testing.assert_allclose(model.predict(X, verbose=0), block.layer(X) + 1, rtol=1e-6)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad], ids=lambda t: t.__name__)
def test_first_call_inside_a_jax_transformation(make, transform, assert_same):
    """The user wraps a call in `jax.jit`, before the layer was ever called.

    Keras' own layer raises "'JaxLayer' cannot be built in a tracing scope".

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError).
    """
    layer = make()
    if transform is jax.grad:
        jax.grad(lambda x: jnp.sum(layer(x)))(X)
    else:
        transform(lambda x: layer(x))(X)
    assert_no_tracers(layer)
    other = make()
    assert_same(layer(X), other(X))
    assert_same(layer.params, other.params)


def test_the_weights_do_not_depend_on_where_the_layer_is_built(make, assert_same):
    """The user compares a layer built eagerly with one built in `fit` from the same seed.

    Keras' own layer cannot be built there.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError).
    """
    eager, traced = make(), make()
    eager(X)
    model = Subclassed(traced)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(X, Y, verbose=0)
    assert_same(traced.params, eager.params)
