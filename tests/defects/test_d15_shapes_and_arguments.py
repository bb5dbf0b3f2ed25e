"""D15, D15b: wrappers that ask for shapes, and arguments other than one array."""

from typing import NamedTuple

import flax.linen as nn
import haiku as hk
import jax
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer

X = np.linspace(-1, 1, 24, dtype="float32").reshape(6, 4)

LAYERS = {
    "flax": lambda: FlaxLayer(nn.Dense(3)),
    "haiku": lambda: HaikuLayer(lambda x: hk.Linear(3)(x)),
    "functions": lambda: JaxLayer(
        lambda params, inputs: inputs @ params, lambda inputs: np.ones((inputs.shape[-1], 3))
    ),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def make(request):
    return request.param


def test_time_distributed(make):
    """The user applies the layer to every step of a sequence.

    Keras' own layer has no `compute_output_shape`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (NotImplementedError).
    """
    layer = make()
    inputs = keras.Input((5, 4))
    outputs = keras.layers.TimeDistributed(layer)(inputs)
    assert tuple(outputs.shape) == (None, 5, 3)
    model = keras.Model(inputs, outputs)
    x = np.linspace(-1, 1, 40, dtype="float32").reshape(2, 5, 4)
    expected = np.stack([layer(x[:, t]) for t in range(5)], axis=1)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-6, atol=1e-6)
    model.compile("sgd", "mse")
    model.fit(x, np.ones((2, 5, 3)), verbose=0)


def test_compute_output_shape(make):
    """The user, or a wrapper, asks for the output's shape before and after the build.

    Keras' own layer has no `compute_output_shape`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (NotImplementedError).
    """
    layer = make()
    layer.build((None, 4))
    assert layer.compute_output_shape((None, 4)) == (None, 3)
    assert layer.compute_output_shape((7, 4)) == (7, 3)
    assert layer.compute_output_shape((None, None, 4)) == (None, None, 3)


def test_compute_output_shape_of_structures():
    """The same for a model that takes and returns dicts.

    Keras' own layer has no `compute_output_shape`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (JaxLayer: NotImplementedError).
    """
    layer = JaxLayer(lambda inputs: {"sum": inputs["a"] + inputs["b"], "parts": [inputs["a"]]})
    shapes = layer.compute_output_shape({"a": (None, 4), "b": (None, 4)})
    assert shapes == {"sum": (None, 4), "parts": [(None, 4)]}


class Batch(NamedTuple):
    """What the user's data loader gives."""

    image: object
    label: object = None


class TakesBatch(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        assert isinstance(inputs, Batch)
        out = nn.Dense(2)(inputs.image)
        return out if inputs.label is None else out + inputs.label


def test_named_tuple_input(values, assert_same):
    """The user passes a NamedTuple.

    Keras' own layer manages this while every field is an array.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: no.
    """
    layer = FlaxLayer(TakesBatch())
    batch = Batch(X, np.ones((6, 2), "float32"))
    native = jax.jit(TakesBatch().apply)
    outputs = layer(batch)
    assert_same(outputs, native(values(layer.params), batch))

    inputs = Batch(keras.Input((4,)), keras.Input((2,)))
    model = keras.Model(list(inputs), FlaxLayer(TakesBatch())(inputs))
    assert model.predict(list(batch), verbose=0).shape == (6, 2)


class TakesTuple(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        x, extra = inputs
        return nn.Dense(2)(x) if extra is None else nn.Dense(2)(x + extra)


@pytest.mark.parametrize("form", [lambda x: (x, None), lambda x: Batch(x)], ids=["tuple", "named"])
def test_none_in_the_input(form, values, assert_same):
    """The user leaves an optional input out.

    Keras' own layer asks None for its shape.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (TypeError: 'NoneType' is not iterable).
    """
    module = TakesBatch() if isinstance(form(X), Batch) else TakesTuple()
    layer = FlaxLayer(module)
    outputs = layer(form(X))
    assert_same(outputs, jax.jit(module.apply)(values(layer.params), form(X)))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x, *, mask=None, scale: float = 1.0):
        x = nn.Dense(4)(x) * scale
        return x if mask is None else x * mask[..., None]


def test_extra_keywords(values, assert_same):
    """The user passes `mask=` and another keyword of the module.

    Keras' own layer's `call` takes `inputs` and `training` only.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (TypeError: unexpected keyword).
    """
    layer = FlaxLayer(Attention())
    mask = np.array([True, False, True, True, False, True])
    native = jax.jit(Attention().apply, static_argnames="scale")
    for arguments in ({"mask": mask}, {"scale": 2.0}, {"mask": mask, "scale": 3.0}, {}):
        outputs = layer(X, **arguments)
        assert_same(outputs, native(values(layer.params), X, **arguments))

    x, m = keras.Input((4,)), keras.Input((), dtype="bool")
    model = keras.Model([x, m], FlaxLayer(Attention())(x, mask=m, scale=2.0))
    outputs = model.predict([X, mask], verbose=0)
    np.testing.assert_array_equal(np.any(outputs != 0, axis=1), mask)
