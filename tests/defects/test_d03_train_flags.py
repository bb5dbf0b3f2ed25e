"""D3, D3b: train flags with a default, required ones, and other words for them."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer
from jaxlayer_core import key_from_seed, stream_key

X = np.linspace(0.5, 2, 24, dtype="float32").reshape(6, 4)


class TrainDefault(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))


class DeterministicDefault(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        return nn.Dropout(0.5, deterministic=deterministic)(nn.Dense(4)(x))


class KeywordOnly(nn.Module):
    @nn.compact
    def __call__(self, x, *, is_training: bool | None = None):
        return nn.Dropout(0.5, deterministic=not is_training)(nn.Dense(4)(x))


class Attribute(nn.Module):
    deterministic: bool = True

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=self.deterministic)(nn.Dense(4)(x))


class Required(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))


class RequiredInTheMiddle(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic, scale=1.0):
        return scale * nn.Dropout(0.5, deterministic=deterministic)(nn.Dense(4)(x))


# module, how its author runs it in training, and in inference
FLAX = {
    "train=False": (TrainDefault(), TrainDefault(), {"train": True}, {"train": False}),
    "deterministic=True": (
        DeterministicDefault(),
        DeterministicDefault(),
        {"deterministic": False},
        {"deterministic": True},
    ),
    "keyword only": (KeywordOnly(), KeywordOnly(), {"is_training": True}, {"is_training": False}),
    "attribute": (Attribute(), Attribute(deterministic=False), {}, {}),
    "required": (Required(), Required(), {"train": True}, {"train": False}),
    "required in the middle": (
        RequiredInTheMiddle(),
        RequiredInTheMiddle(),
        {"deterministic": False},
        {"deterministic": True},
    ),
}


@pytest.mark.parametrize("case", FLAX.values(), ids=FLAX.keys())
def test_flax_flags_are_driven(case, values, assert_same):
    """The user's module calls its flag `deterministic=True` or `train=False`, or requires it.

    Keras' own layer leaves a flag with a default alone, so dropout never runs in training,
    and cannot give a required one: `TypeError: missing 1 required positional argument`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (training equals inference; TypeError).
    """
    module, in_training, train, infer = case
    layer = FlaxLayer(module, seed=3)
    quiet = layer(X)
    params = values(layer.params)
    assert_same(quiet, jax.jit(lambda p, x: module.apply(p, x, **infer))(params, X))
    assert_same(layer(X, training=False), quiet)

    key = key_from_seed(layer.seed_generator.state.value)
    rngs = {"dropout": stream_key(key, "dropout")}
    native = jax.jit(lambda p, x, r: in_training.apply(p, x, rngs=r, **train))(params, X, rngs)
    assert_same(layer(X, training=True), native)
    assert np.any(np.asarray(native) != quiet)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(1)(x)


def test_fit_trains_and_predict_does_not(values):
    """The user trains a module with batch normalisation and `train=False`.

    Keras' own layer never moves the running averages, without a word.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (the mean stays 0).
    """
    layer = FlaxLayer(Normed())
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("sgd", "mse")
    model.fit(X + 5, np.ones((6, 1)), batch_size=6, verbose=0)
    mean = values(layer.state)["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, (X + 5).mean(0) / 2, rtol=1e-5)
    model.predict(X, verbose=0)
    model.evaluate(X, np.ones((6, 1)), verbose=0)
    np.testing.assert_array_equal(values(layer.state)["batch_stats"]["BatchNorm_0"]["mean"], mean)


def required(x, is_training):
    x = hk.BatchNorm(True, True, 0.5)(x, is_training)
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


def default(x, is_training=False):
    return required(x, is_training)


HAIKU = {
    "required": required,
    "default": default,
    "transform": hk.transform_with_state(required),
}


@pytest.mark.parametrize("model", HAIKU.values(), ids=HAIKU.keys())
def test_haiku_flags_are_driven(model, values, assert_same):
    """The user's Haiku model requires `is_training`.

    Keras' own JaxLayer refuses `apply`: "Unsupported argument in `call_fn`: `is_training`".

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (JaxLayer: ValueError when made).
    """
    layer = HaikuLayer(model, seed=3)
    native = hk.transform_with_state(required)
    quiet = layer(X)
    params, state = values(layer.params), values(layer.state)
    assert_same(
        quiet, jax.jit(lambda p, s, x: native.apply(p, s, None, x, False)[0])(params, state, X)
    )

    key = key_from_seed(layer.seed_generator.state.value)
    noisy = layer(X, training=True)
    expected = jax.jit(lambda p, s, k, x: native.apply(p, s, k, x, True))(params, state, key, X)
    assert_same((noisy, layer.state), expected)


def test_the_input_has_any_name(assert_same, values):
    """The user's model is `lambda x: ...`.

    Keras' own layer insists on an argument called `inputs`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (JaxLayer: "Missing required argument
    in `call_fn`: `inputs`").
    """
    transformed = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(2)(x)))
    layer = HaikuLayer(transformed)
    assert_same(layer(X), jax.jit(transformed.apply)(values(layer.params), X))


def test_a_flag_the_user_gives_wins():
    """The user says `train=True` in the call, as the module's author would.

    Keras' own layer takes no such argument.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (TypeError).
    """
    layer = FlaxLayer(TrainDefault())
    assert np.any(np.asarray(layer(X, train=True)) != layer(X))
    assert jnp.array_equal(layer(X, train=False), layer(X))
