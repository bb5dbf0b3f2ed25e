"""D12: Keras' own layer fails on what Flax modules sow, or loses it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer
from jaxlayer_core import key_from_seed

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = X[:, :2]


class Sowing(nn.Module):
    """Sows what common libraries do: an auxiliary loss, and intermediate results."""

    weight: float = 0.1

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="body")(x)
        self.sow("intermediates", "hidden", x)
        self.sow("losses", "activity", self.weight * jnp.mean(jnp.square(x)))
        self.sow("losses", "activity", self.weight * jnp.mean(jnp.abs(x)))
        return nn.Dense(2, name="head")(x)


def test_intermediates_are_dropped_unless_asked_for(values):
    """The module sows for debugging; the user does not care.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (the tree of the state does not match).
    """
    layer = FlaxLayer(Sowing(), seed=0)
    native = jax.jit(Sowing().apply)(
        {"params": Sowing().init(key_from_seed([0, 0]), X)["params"]}, X
    )
    for training in (True, False):
        np.testing.assert_array_equal(layer(X, training=training), native)
    assert layer.state == {}


def test_sown_losses_are_losses_of_the_layer(values):
    """Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (`layer.losses == []`)."""
    layer = FlaxLayer(Sowing(), seed=0)
    for training in (True, False):
        layer(X, training=training)
        params = values(layer.params)
        _, sown = Sowing().apply(params, X, mutable=["losses"])
        np.testing.assert_allclose(
            float(sum(layer.losses)), float(sum(sown["losses"]["activity"])), rtol=1e-6
        )


def test_sown_losses_are_differentiated_and_reported_by_fit(values):
    """Five steps equal five native steps on loss + sown losses."""
    layer = FlaxLayer(Sowing(), seed=0)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    params = values(layer.params)
    history = model.fit(X, Y, batch_size=8, epochs=5, shuffle=False, verbose=0).history["loss"]

    @jax.jit
    def step(params):
        def loss(params):
            outputs, sown = Sowing().apply(params, X, mutable=["losses"])
            return jnp.mean(jnp.square(outputs - Y)) + sum(sown["losses"]["activity"])

        value, gradients = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

    losses = []
    for _ in range(5):
        value, params = step(params)
        losses.append(float(value))
    # Keras adds the losses in another order.
    np.testing.assert_allclose(history, losses, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        values(layer.params),
        params,
    )


class Experts(nn.Module):
    """Sows from inside `nn.scan`, so what is sown has an axis for the layers."""

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                x = nn.Dense(4)(x)
                self.sow("losses", "balance", jnp.var(x))
                return x, None

        blocks = nn.scan(
            Block,
            variable_axes={"params": 0, "losses": 0},
            split_rngs={"params": True},
            length=3,
        )
        return blocks()(x, None)[0]


@pytest.mark.without("JAX_DEBUG_NANS=true")  # under which Flax cannot initialise it either
def test_losses_sown_inside_of_a_scan():
    layer = FlaxLayer(Experts(), seed=0)
    layer(X, training=True)
    variables = Experts().init(key_from_seed([0, 0]), X)
    _, sown = jax.jit(lambda v: Experts().apply(v, X, mutable=["losses"]))(
        {"params": variables["params"]}
    )
    (loss,) = layer.losses
    np.testing.assert_allclose(loss, np.sum(jax.tree.leaves(sown)[0]), rtol=1e-6)
