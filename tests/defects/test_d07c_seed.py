"""D7c: an explicit seed means the same weights and the same draws."""

import flax.linen as nn
import haiku as hk
import jax
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer
from jaxlayer_core import key_from_seed

X = np.ones((4, 3), "float32")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()


keras.saving.register_keras_serializable(package="d07c")(Net)


@keras.saving.register_keras_serializable(package="d07c")
def init_fn(rng, inputs):
    return jax.random.normal(rng, (inputs.shape[-1], 4))


@keras.saving.register_keras_serializable(package="d07c")
def call_fn(params, rng, inputs):
    return inputs @ params + jax.random.normal(rng, (4,))


MAKERS = {
    "flax": lambda **seed: FlaxLayer(Net(), **seed),
    "haiku": lambda **seed: HaikuLayer(
        lambda x: hk.Linear(4)(x) + jax.random.normal(hk.next_rng_key(), (4,)), **seed
    ),
    "functions": lambda **seed: JaxLayer(call_fn, init_fn, **seed),
}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS.keys())
def make(request):
    return request.param


@pytest.mark.without("JAX_NUMPY_RANK_PROMOTION=raise")  # the model itself promotes ranks
def test_the_same_seed_gives_the_same_weights_and_draws(make, assert_same):
    """The user makes the layer twice with `seed=0`.

    Keras' own layer initialises from the global seed generator.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (the kernels differ).
    """
    one, two = make(seed=0), make(seed=0)
    for _ in range(3):
        assert_same(one(X, training=True), two(X, training=True))
    assert_same(one.params, two.params)


@pytest.mark.without("JAX_NUMPY_RANK_PROMOTION=raise")  # the model itself promotes ranks
def test_layers_without_a_seed_share_nothing(make):
    """The user makes two layers without a seed.

    Keras' own layers differ too.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: no.
    """
    one, two = make(), make()
    assert np.any(np.asarray(one(X)) != two(X))


@pytest.mark.parametrize("name", ["flax", "functions"])
@pytest.mark.without("JAX_NUMPY_RANK_PROMOTION=raise")  # the model itself promotes ranks
def test_the_seed_is_in_the_config(name, assert_same):
    """The user clones the layer from its config.

    Keras' own layer leaves the seed out of it.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (no `seed` in the config).
    """
    layer = MAKERS[name](seed=5)
    assert layer.get_config()["seed"] == 5
    again = type(layer).from_config(layer.get_config())
    assert_same(again(X, training=True), layer(X, training=True))
    assert_same(again.params, layer.params)


def test_the_weights_are_those_of_the_module(assert_same):
    """The user makes the same weights natively, with the key that the documentation names.

    Keras' own layer's key is a draw from the global generator.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (the kernels differ).
    """
    layer = FlaxLayer(Net(), seed=11)
    layer(X)
    assert_same(layer.params, Net().init(key_from_seed([11, 0]), X))
