"""D19: functional models whose sizes are not all known."""

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer
from jaxlayer_core import BuildError


def predict(layer, shape, *batches):
    """The output's shape in a functional model, after running it on real arrays."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    for batch in batches:
        x = np.random.default_rng(0).normal(size=batch).astype("float32")
        expected = np.asarray(layer(x))
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)
    return model.output_shape


class PatchViT(nn.Module):
    """Cuts the image by a strided convolution and adds learned positions."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), strides=(4, 4), padding="VALID")(x)
        batch, h, w, c = x.shape
        x = jnp.reshape(x, [batch, h * w, c])
        x = jnp.concatenate([jnp.tile(jnp.zeros((1, 1, c)), [batch, 1, 1]), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        return nn.Dense(3)(nn.MultiHeadDotProductAttention(2)(x)[:, 0])


def test_vision_transformer_with_convolution_patches():
    """The user wraps a ViT in a functional model with an unknown batch size.

    Keras' own layer manages the batch alone.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: no.
    """
    assert predict(FlaxLayer(PatchViT()), (8, 8, 3), (2, 8, 8, 3)) == (None, 3)


class AnySizePatches(nn.Module):
    """The same without positions, for images of any size."""

    by_convolution: bool

    @nn.compact
    def __call__(self, x):
        if self.by_convolution:
            x = nn.Conv(8, (4, 4), strides=(4, 4), padding="VALID")(x)
        else:
            b, h, w, c = x.shape
            x = jnp.reshape(x, (b, h // 4, 4, w // 4, 4, c))
            x = nn.Dense(8)(jnp.reshape(x.swapaxes(2, 3), (b, h // 4, w // 4, 16 * c)))
        x = jnp.reshape(x, (x.shape[0], -1, 8))
        return nn.Dense(3)(nn.MultiHeadDotProductAttention(2)(x)).mean(1)


@pytest.mark.parametrize("by_convolution", [True, False], ids=["convolution", "reshape"])
def test_patches_of_images_of_any_size(by_convolution):
    """The user's images come in all sizes.

    Keras' own layer initialises with images of size 1, where a patch of 4 does not fit: the
    convolution makes no patches, the reshape fails.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: convolution no, reshape yes (TypeError).
    """
    layer = FlaxLayer(AnySizePatches(by_convolution))
    assert predict(layer, (None, None, 3), (2, 8, 8, 3), (1, 8, 16, 3)) == (None, 3)


class FirstHalf(nn.Module):
    pooled: bool

    @nn.compact
    def __call__(self, x):
        half = x[:, : x.shape[1] // 2]
        return nn.Dense(3)(half.max(axis=1) if self.pooled else half)


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "sequence"])
def test_half_of_an_unknown_length(pooled):
    """The user's module slices `x[:, :T // 2]`.

    Keras' own layer initialises with length 1, whose half is empty and has no maximum.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: pooled yes (ValueError), sequence no.
    """
    shape = predict(FlaxLayer(FirstHalf(pooled)), (None, 4), (2, 6, 4), (2, 10, 4))
    assert shape == ((None, 3) if pooled else (None, None, 3))


def unrolled(x):
    core = hk.VanillaRNN(3)
    outputs, _ = hk.static_unroll(core, jnp.swapaxes(x, 0, 1), core.initial_state(x.shape[0]))
    return jnp.swapaxes(outputs, 0, 1)


def test_unrolled_recurrence_over_a_known_time():
    """The user unrolls an RNN over six steps, with an unknown batch size.

    Keras' own JaxLayer cannot take `hk.transform(unrolled).apply`, whose input is `x`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (JaxLayer: "Missing ... `inputs`").
    """
    assert predict(HaikuLayer(unrolled), (6, 4), (2, 6, 4)) == (None, 6, 3)


class Unrolled(nn.Module):
    @nn.compact
    def __call__(self, x):
        cell = nn.SimpleCell(3)
        carry = jnp.zeros((x.shape[0], 3))
        outputs = []
        for t in range(x.shape[1]):
            carry, y = cell(carry, x[:, t])
            outputs.append(y)
        return jnp.stack(outputs, 1)


def test_unrolled_recurrence_over_an_unknown_time():
    """The same in Flax with a Python loop over a time dimension that is not known.

    Keras' own layer loops over a symbol.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (TypeError: not an integer).
    """
    shape = predict(FlaxLayer(Unrolled()), (None, 4), (2, 5, 4), (2, 3, 4))
    assert shape == (None, None, 3)


class Pairwise(nn.Module):
    """Two unknown sizes that must not be taken for one."""

    @nn.compact
    def __call__(self, inputs):
        one, two = inputs
        return jnp.einsum("bic,bjc->bij", nn.Dense(3)(one), nn.Dense(3)(two))


def test_two_unknown_dimensions_stay_two():
    """The user compares two sequences of different unknown lengths.

    Keras' own layer infers with one symbol for every unknown dimension.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: no.
    """
    inputs = (keras.Input((None, 4)), keras.Input((None, 4)))
    model = keras.Model(inputs, FlaxLayer(Pairwise())(inputs))
    assert model.output_shape == (None, None, None)
    one, two = np.ones((2, 3, 4), "float32"), np.ones((2, 5, 4), "float32")
    assert model.predict([one, two], verbose=0).shape == (2, 3, 5)


class Added(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3)(inputs[0] + inputs[1])


def test_two_inputs_whose_sizes_must_agree():
    """The user adds two sequences of the same unknown length.

    Keras' own layer's single symbol is right here.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: no.
    """
    inputs = (keras.Input((None, 4)), keras.Input((None, 4)))
    model = keras.Model(inputs, FlaxLayer(Added())(inputs))
    assert model.output_shape == (None, None, 3)
    x = np.ones((2, 5, 4), "float32")
    assert model.predict([x, x], verbose=0).shape == (2, 5, 3)


@pytest.mark.parametrize("known", [True, False])
def test_a_parameter_of_unknown_size_is_named(known):
    """The user's parameter has the length of an input that is not known.

    Keras' own layer makes it with size 1 and then fails, without naming it.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (TypeError: __init__() missing ...).
    """

    class Positions(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + self.param("positions", nn.initializers.ones, (1, *x.shape[1:]))

    if known:
        assert predict(FlaxLayer(Positions()), (5, 4), (2, 5, 4)) == (None, 5, 4)
        return
    with pytest.raises(BuildError, match=r"`params/positions` of .*Positions.*\(1, None, 4\)"):
        FlaxLayer(Positions())(keras.Input((None, 4)))
