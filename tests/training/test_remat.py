"""Rematerialisation: the same numbers, with less kept for the backward pass."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer
from jaxlayer_core import JaxLayerError
from jaxlayer_core.remat import Rematerialization

X = np.random.default_rng(0).normal(size=(8, 16)).astype("float32")


class Deep(nn.Module):
    """Dropout and batch norm inside, so draws and state go through as well."""

    @nn.compact
    def __call__(self, x, train: bool):
        for _ in range(4):
            x = nn.tanh(nn.Dense(16)(x))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


def deep(x, is_training):
    for _ in range(4):
        x = jnp.tanh(hk.Linear(16)(x))
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


def gradients(layer):
    """Compiled gradients of a training call, and the program itself."""
    if not layer.built:
        layer.build(X.shape)
    trainable = [v.value for v in layer.trainable_variables]
    others = [v.value for v in layer.non_trainable_variables]

    def loss(trainable):
        outputs, after = layer.stateless_call(trainable, others, X, training=True)
        return jnp.sum(jnp.square(outputs)), after

    grad = jax.grad(loss, has_aux=True)
    return jax.jit(grad)(trainable), str(jax.make_jaxpr(grad)(trainable))


MAKES = {
    "flax": lambda **options: FlaxLayer(Deep(), seed=0, name="net", **options),
    "haiku": lambda **options: HaikuLayer(deep, seed=0, name="net", **options),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("remat", [True, "dots_saveable", jax.checkpoint_policies.nothing_saveable])
def test_the_gradients_and_the_state_are_the_same(make, remat):
    plain, program = gradients(make())
    again, rematerialized = gradients(make(remat=remat))
    # The same operations, computed again: XLA may fuse them in another way.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, again)
    assert "remat" not in program
    assert "remat" in rematerialized


SCOPES = {
    "full": ({"mode": "full"}, True),
    "larger": ({"mode": "larger_than", "output_size_threshold": 10}, True),
    "smaller": ({"mode": "larger_than", "output_size_threshold": 10**6}, False),
    "named": ({"mode": "list_of_layers", "layer_names": ["net"]}, True),
    "others named": ({"mode": "list_of_layers", "layer_names": ["other"]}, False),
    "activations": ({"mode": "activations"}, False),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize(("scope", "expected"), SCOPES.values(), ids=SCOPES)
def test_the_scope_of_keras(make, scope, expected):
    """`keras.RematScope` around the layer's making works as for Keras' own layers."""
    plain, _ = gradients(make())
    with keras.RematScope(**scope):
        layer = make()
    again, program = gradients(layer)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, again)
    assert ("remat" in program) is expected


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_in_fit(make):
    with keras.RematScope(mode="full"):
        layer = make()
    # A model made inside would get `training` as a traced value from Keras, with which Keras'
    # own Dropout cannot work either.
    model = keras.Sequential([keras.Input((16,)), layer])
    model.compile("sgd", "mse")
    model.fit(X, X, verbose=0)
    assert np.all(np.isfinite(model.predict(X, verbose=0)))


def test_less_is_kept():
    """Fewer values of the forward pass reach the backward pass."""

    def kept(layer):
        layer.build(X.shape)
        trainable = [v.value for v in layer.trainable_variables]
        others = [v.value for v in layer.non_trainable_variables]

        def loss(trainable):
            outputs, _ = layer.stateless_call(trainable, others, X, training=True)
            return jnp.sum(jnp.square(outputs))

        _, backward = jax.vjp(loss, trainable)
        return sum(np.size(leaf) for leaf in jax.tree.leaves(backward))

    assert kept(MAKES["flax"](remat=True)) < 0.7 * kept(MAKES["flax"]())


def test_it_is_saved_by_name():
    assert Rematerialization(True).get_config() is True
    policy = jax.checkpoint_policies.dots_saveable
    name = Rematerialization(policy).get_config()
    assert getattr(jax.checkpoint_policies, name) is policy  # it has several names
    own = jax.checkpoint_policies.save_only_these_names("a")
    with pytest.raises(JaxLayerError, match=r"cannot be saved with remat=.*by name"):
        Rematerialization(own).get_config()


@pytest.mark.parametrize("wrong", ["everything", 3])
def test_what_is_no_policy(wrong):
    with pytest.raises(
        JaxLayerError, match=r"remat.*(policy of jax\.checkpoint_policies; these|got 3)"
    ):
        MAKES["flax"](remat=wrong)


def test_what_makes_policies_is_no_policy():
    make = jax.checkpoint_policies.save_only_these_names
    with pytest.raises(JaxLayerError, match=r"remat='save_only_these_names' is not the name"):
        FlaxLayer(nn.Dense(1), remat="save_only_these_names")
    with pytest.raises(JaxLayerError, match=r"remat=save_only_these_names makes policies"):
        FlaxLayer(nn.Dense(1), remat=make)
    for name in ("save_from_both_policies", "save_and_offload_only_these_names"):
        with pytest.raises(JaxLayerError, match=r"these are: checkpoint_dots.*saveable\."):
            FlaxLayer(nn.Dense(1), remat=name)
    assert FlaxLayer(nn.Dense(1), remat=make("attention"))(np.ones((2, 3))).shape == (2, 1)
