"""D5: integer ids and boolean masks."""

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer

IDS = np.array([[1, 2, 3], [4, 5, 6]], "int32")

EMBEDDINGS = {
    "flax": lambda: FlaxLayer(nn.Embed(7, 4)),
    "haiku": lambda: HaikuLayer(hk.Embed, 7, 4),
}


@pytest.fixture(params=EMBEDDINGS.values(), ids=EMBEDDINGS.keys())
def make(request):
    return request.param


def rows(layer, values):
    (table,) = values(layer.weights)
    return table[IDS]


def test_embedding_eagerly(make, values):
    """The user looks up integer ids.

    Keras' own layer initialises with float ones, which an embedding refuses.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError: Input type must be an
    integer or unsigned integer).
    """
    layer = make()
    np.testing.assert_array_equal(layer(IDS), rows(layer, values))


def test_embedding_in_a_functional_model(make, values):
    """The same with `keras.Input(dtype="int32")`.

    Keras' own layer fails alike.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError).
    """
    layer = make()
    inputs = keras.Input((3,), dtype="int32")
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, 3, 4)
    np.testing.assert_array_equal(model.predict(IDS, verbose=0), rows(layer, values))


def test_embedding_in_a_deferred_sequential(make, values):
    """The same in a Sequential without Input, which guesses a float input first.

    Keras' own layer fails alike.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError).
    """
    layer = make()
    model = keras.Sequential([layer, keras.layers.Flatten(), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    model.fit(IDS, np.ones((2, 1)), verbose=0)
    np.testing.assert_array_equal(layer(IDS), rows(layer, values))


def test_embedding_built_from_a_bare_shape(make):
    """The user calls `layer.build(shape)`, where no dtype can be said.

    Keras' own layer fails alike.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError).
    """
    layer = make()
    layer.build((None, 3))
    assert [tuple(w.shape) for w in layer.weights] == [(7, 4)]


class Masked(nn.Module):
    """Refuses everything but the dtypes that its author had in mind."""

    @nn.compact
    def __call__(self, inputs):
        x, mask = inputs
        assert mask.dtype == jnp.bool_, mask.dtype
        assert x.dtype == jnp.uint8, x.dtype
        x = jnp.where(mask, x / 255, 0.0)
        return nn.Dense(2)(x)


def test_boolean_mask_and_bytes():
    """The user passes an image in bytes and a boolean mask.

    Keras' own layer initialises both as float ones.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (AssertionError in the module).
    """
    x = np.full((2, 3), 255, "uint8")
    mask = np.array([[True, False, True], [False] * 3])
    layer = FlaxLayer(Masked())
    one, none = np.asarray(layer((x, mask)))
    assert np.any(one != none)
    np.testing.assert_array_equal(none, np.zeros(2))

    inputs = (keras.Input((3,), dtype="uint8"), keras.Input((3,), dtype="bool"))
    model = keras.Model(inputs, FlaxLayer(Masked())(inputs))
    assert model.predict([x, mask], verbose=0).shape == (2, 2)
