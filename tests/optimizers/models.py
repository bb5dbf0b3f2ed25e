"""A small model, and the loop that somebody would write for it with Optax alone."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax

from jaxlayer import FlaxLayer
from jaxlayer_optax.weights import Weights

STEPS, BATCH = 5, 4
_random = np.random.default_rng(0)
X = _random.normal(size=(STEPS * BATCH, 4)).astype("float32")
Y = _random.normal(size=(STEPS * BATCH, 1)).astype("float32")
DATA = {"x": X, "y": Y, "batch_size": BATCH, "shuffle": False, "verbose": 0}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.tanh(nn.Dense(6)(x))


class OneDense(keras.Model):
    """A model to which tests give a train step of its own."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)


def made():
    """A Flax layer and one of Keras, always with the same initial weights."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    hidden = FlaxLayer(Net(), name="flax", seed=0)(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, name="dense")(hidden))


def params_of(model):
    """Copies of the weights, as Optax sees them."""
    weights = Weights(model.trainable_variables)
    return weights.nest([jnp.array(value) for value in weights.values()])


def native(model, tx, steps=STEPS, start=None):
    """Weights and state after steps of a loop with Optax alone.

    Args:
        model: gives the forward pass, as a function; its own variables stay as they are.
        tx: the transformation.
        steps: how many.
        start: weights and state to go on from, and the number of steps made.
    """
    weights = Weights(model.trainable_variables)
    rest = [jnp.array(v.value) for v in model.non_trainable_variables]
    takes = inspect.signature(tx.update).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in takes.values())

    def loss_of(params, x, y):
        outputs, _ = model.stateless_call(weights.flatten(params), rest, x, training=True)
        return keras.losses.MeanSquaredError()(y, outputs)

    @jax.jit
    def step(params, state, x, y):
        value, grad = jax.value_and_grad(loss_of)(params, x, y)

        @jax.tree_util.Partial
        def value_fn(params, grad_fn=None, obj_fn=None):
            return loss_of(params, x, y)

        extra = {
            "value": value,
            "grad": grad,
            "value_fn": value_fn,
            "obj_fn": value_fn,
            "grad_fn": jax.tree_util.Partial(lambda params, _: jax.grad(value_fn)(params)),
        }
        extra = {k: v for k, v in extra.items() if takes_all or k in takes}
        updates, state = tx.update(grad, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params, state, first = start or (params_of(model), None, 0)
    state = tx.init(params) if state is None else state
    for number in range(first, first + steps):
        rows = slice(number * BATCH, (number + 1) * BATCH)
        params, state = step(params, state, X[rows], Y[rows])
    return params, state


def result_of(optimizer):
    """Weights and state of an optimizer, as the loop has them."""
    return optimizer.weights_tree(), optimizer.state_tree()
