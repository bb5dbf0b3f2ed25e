"""The models of the benchmarks, each from four sides.

`native` is the framework alone; `ours` its jaxlayer layer; `wrapped` Keras' own `FlaxLayer` or
`JaxLayer`, which need TensorFlow to be built; `keras` the same architecture in Keras' own layers.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import keras
import numpy as np
from flax import nnx
from keras import layers as kl

from jaxlayer import EquinoxLayer, FlaxLayer, HaikuLayer

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


class MLP(nn.Module):
    """Ten dense layers: the call is so short that everything around it shows."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:  # noqa: D102
        x = inputs
        for _ in range(10):
            x = nn.relu(nn.Dense(128)(x))
        return x


class NnxMLP(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(128, 128, rngs=rngs) for _ in range(10)])

    def __call__(self, inputs: jax.Array) -> jax.Array:  # noqa: D102
        x = inputs
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x


class CNN(nn.Module):
    """Three convolutions and a dense layer."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:  # noqa: D102
        x = inputs
        for width in (16, 32, 64):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class Encoder(nn.Module):
    """Pre-norm transformer blocks."""

    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        for _ in range(self.blocks):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, y)
            y = nn.LayerNorm()(x)
            x = x + nn.Dense(128)(nn.gelu(nn.Dense(512)(y)))
        return x


class Transformer(nn.Module):
    """Twelve blocks over embeddings."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:  # noqa: D102
        return nn.Dense(10)(Encoder(12)(inputs).mean(axis=1))


class ViT(nn.Module):
    """Patches, positions, six blocks."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:  # noqa: D102
        x = nn.Conv(128, (4, 4), strides=4)(inputs)
        x = x.reshape(x.shape[0], -1, 128)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], 128))
        return nn.Dense(10)(nn.LayerNorm()(Encoder(6)(x)).mean(axis=1))


def resnet50(x: jax.Array, is_training: bool) -> jax.Array:
    """Haiku's ResNet-50."""
    return hk.nets.ResNet50(10)(x, is_training)


# The same in Keras' own layers.


def keras_mlp(shape: tuple[int, ...]) -> keras.Model:
    """Ten dense layers."""
    return keras.Sequential(
        [keras.Input(shape), *(kl.Dense(128, activation="relu") for _ in range(10))]
    )


def keras_cnn(shape: tuple[int, ...]) -> keras.Model:
    """Three convolutions and a dense layer."""
    convolutions = [
        kl.Conv2D(width, 3, strides=2, padding="same", activation="relu") for width in (16, 32, 64)
    ]
    return keras.Sequential([keras.Input(shape), *convolutions, kl.Flatten(), kl.Dense(10)])


def keras_encoder(x: Any, blocks: int) -> Any:
    """Pre-norm transformer blocks."""
    for _ in range(blocks):
        y = kl.LayerNormalization()(x)
        x = kl.Add()([x, kl.MultiHeadAttention(4, 32)(y, y)])
        y = kl.Dense(512, activation="gelu")(kl.LayerNormalization()(x))
        x = kl.Add()([x, kl.Dense(128)(y)])
    return x


def keras_transformer(shape: tuple[int, ...]) -> keras.Model:
    """Twelve blocks over embeddings."""
    inputs = keras.Input(shape)
    x = kl.GlobalAveragePooling1D()(keras_encoder(inputs, 12))
    return keras.Model(inputs, kl.Dense(10)(x))


def keras_vit(shape: tuple[int, ...]) -> keras.Model:
    """Patches and six blocks; positions are an embedding of their numbers."""
    inputs = keras.Input(shape)
    x = kl.Reshape((-1, 128))(kl.Conv2D(128, 4, strides=4)(inputs))
    places = kl.Embedding(x.shape[1], 128)(keras.ops.arange(x.shape[1])[None])
    x = kl.LayerNormalization()(keras_encoder(x + places, 6))
    return keras.Model(inputs, kl.Dense(10)(kl.GlobalAveragePooling1D()(x)))


def keras_resnet50(shape: tuple[int, ...]) -> keras.Model:
    """ResNet-50 of keras.applications; its stem and its strides differ a little from Haiku's."""
    return keras.applications.ResNet50(
        weights=None, input_shape=shape, classes=10, classifier_activation=None
    )


class Case(NamedTuple):
    """A model of the benchmarks.

    Attributes:
        title: what tables call it.
        init: native: `init(key, x) -> (params, state)`.
        apply: native: `apply(params, state, x, training) -> (outputs, state)`.
        ours: makes its layer.
        wrapped: makes Keras' own layer around it; None where Keras has none.
        in_keras: the same architecture in Keras' own layers, for the shape of a row.
        shape: of a batch.
        outputs: how many numbers it gives per row.
        calls: how many are timed together.
    """

    title: str
    init: Callable[..., Any]
    apply: Callable[..., Any]
    ours: Callable[[], keras.layers.Layer]
    wrapped: Callable[[], keras.layers.Layer] | None
    in_keras: Callable[[tuple[int, ...]], keras.Model]
    shape: tuple[int, ...]
    outputs: int = 10
    calls: int = 10

    @property
    def sides(self) -> tuple[str, ...]:
        """Those that this environment has."""
        is_wrapped = HAS_TENSORFLOW and self.wrapped is not None
        return ("native", "ours", *(("wrapped",) if is_wrapped else ()), "keras")


def linen(title: str, module: nn.Module, *rest: Any, **options: Any) -> Case:
    """A case of a linen module."""
    return Case(
        title,
        lambda key, x: (module.init(key, x), {}),
        lambda params, state, x, training: (module.apply(params, x), state),
        lambda: FlaxLayer(module, seed=0),
        lambda: keras.layers.FlaxLayer(module),
        *rest,
        **options,
    )


def haiku(title: str, function: Callable[..., Any], *rest: Any, **options: Any) -> Case:
    """A case of a Haiku function that takes `is_training`."""
    transformed = hk.transform_with_state(function)
    named = hk.transform_with_state(lambda inputs, training: function(inputs, training))
    return Case(
        title,
        lambda key, x: transformed.init(key, x, True),
        lambda params, state, x, training: transformed.apply(params, state, None, x, training),
        lambda: HaikuLayer(function, seed=0),
        lambda: keras.layers.JaxLayer(named.apply, named.init),
        *rest,
        **options,
    )


def of_nnx(title: str, make: Callable[..., nnx.Module], *rest: Any, **options: Any) -> Case:
    """A case of a class of NNX modules."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    return Case(
        title,
        lambda key, x: (nnx.state(make(rngs=nnx.Rngs(key)), nnx.Param), {}),
        lambda params, state, x, training: (nnx.merge(graph, params)(x), state),
        lambda: FlaxLayer(make, seed=0),
        None,
        *rest,
        **options,
    )


def equinox(title: str, make: Callable[..., eqx.Module], *rest: Any, **options: Any) -> Case:
    """A case of a function that makes an Equinox module of a key."""
    static = eqx.filter(eqx.filter_eval_shape(make, jax.random.key(0)), eqx.is_array, inverse=True)
    static = jax.tree.map(
        lambda leaf: None if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, static
    )
    return Case(
        title,
        lambda key, x: (eqx.filter(make(key), eqx.is_array), {}),
        lambda params, state, x, training: (jax.vmap(eqx.combine(params, static))(x), state),
        lambda: EquinoxLayer(make, seed=0),
        None,
        *rest,
        **options,
    )


def perceptron(key: jax.Array) -> eqx.Module:
    """The ten dense layers in Equinox."""
    return eqx.nn.MLP(128, 128, 128, 9, final_activation=jax.nn.relu, key=key)


MLP_SIZES = {"outputs": 128, "calls": 300}
CASES = {
    "mlp": linen("linen MLP, 10 layers", MLP(), keras_mlp, (32, 128), **MLP_SIZES),
    "nnx": of_nnx("NNX MLP, 10 layers", NnxMLP, keras_mlp, (32, 128), **MLP_SIZES),
    "equinox": equinox("Equinox MLP, 10 layers", perceptron, keras_mlp, (32, 128), **MLP_SIZES),
    "cnn": linen("linen CNN", CNN(), keras_cnn, (32, 32, 32, 3), calls=50),
    "vit": linen("linen ViT, 6 layers", ViT(), keras_vit, (8, 32, 32, 3)),
    "transformer": linen(
        "linen transformer, 12 layers", Transformer(), keras_transformer, (16, 64, 128), calls=6
    ),
    "resnet50": haiku("`hk.nets.ResNet50`", resnet50, keras_resnet50, (4, 64, 64, 3), calls=4),
}


def data(shape: tuple[int, ...]) -> np.ndarray:
    """Inputs, always the same."""
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def layer_of(case: Case, side: str) -> keras.layers.Layer:
    """The model as a Keras layer, from any side but the native one."""
    if side == "keras":
        return case.in_keras(case.shape[1:])
    make = case.ours if side == "ours" else case.wrapped
    assert make is not None, f"{case.title} has no side {side}"
    return make()


def keras_model(case: Case, side: str) -> keras.Model:
    """A Keras model around it, compiled."""
    layer = layer_of(case, side)
    model = keras.Sequential([keras.Input(case.shape[1:]), layer]) if side != "keras" else layer
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    return model
