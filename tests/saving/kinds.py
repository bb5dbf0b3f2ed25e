"""The same small model as a layer of each kind: parts of equal shape, with names to choose."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


@keras.saving.register_keras_serializable("saving")
class Chain(nn.Module):
    """Dense layers of equal shape, state, and one that ends with `units`."""

    names: tuple = ("first", "second")
    units: int = 3

    @nn.compact
    def __call__(self, x, train: bool = False):
        for name in self.names:
            x = jnp.tanh(nn.Dense(4, name=name)(x))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(self.units, name="out")(x)

    def get_config(self):
        return {"names": list(self.names), "units": self.units}

    @classmethod
    def from_config(cls, config):
        return cls(tuple(config["names"]), config["units"])


def haiku_chain(x, is_training, names, units):
    for name in names:
        x = jnp.tanh(hk.Linear(4, name=name)(x))
    x = hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training)
    return hk.Linear(units, name="out")(x)


def jax_init(rng, inputs, names, units):
    keys = dict(zip((*names, "out"), jax.random.split(rng, len(names) + 1), strict=True))
    shapes = {name: (4, units if name == "out" else 4) for name in keys}
    params = {n: {"w": jax.random.normal(keys[n], shapes[n])} for n in keys}
    return params, {"mean": jnp.zeros(4)}


def jax_call(params, state, inputs, training, names):
    for name in names:
        inputs = jnp.tanh(inputs @ params[name]["w"])
    mean = 0.9 * state["mean"] + 0.1 * jnp.mean(inputs, 0) if training else state["mean"]
    return (inputs - mean) @ params["out"]["w"], {"mean": mean}


# The models that tests save whole are of functions that can be imported.

NAMES, UNITS = ("first", "second"), 3


@keras.saving.register_keras_serializable("saving")
def haiku_default(x, is_training=False):
    return haiku_chain(x, is_training, NAMES, UNITS)


@keras.saving.register_keras_serializable("saving")
def init_default(rng, inputs):
    return jax_init(rng, inputs, NAMES, UNITS)


@keras.saving.register_keras_serializable("saving")
def call_default(params, state, inputs, training):
    return jax_call(params, state, inputs, training, NAMES)


def flax_layer(names=NAMES, units=UNITS, **options):
    return FlaxLayer(Chain(tuple(names), units), **options)


def haiku_layer(names=NAMES, units=UNITS, **options):
    def other(x, is_training=False):
        return haiku_chain(x, is_training, names, units)

    is_default = (names, units) == (NAMES, UNITS)
    return HaikuLayer(haiku_default if is_default else other, **options)


def jax_layer(names=NAMES, units=UNITS, **options):
    def init_fn(rng, inputs):
        return jax_init(rng, inputs, names, units)

    def call_fn(params, state, inputs, training):
        return jax_call(params, state, inputs, training, names)

    if (names, units) == (NAMES, UNITS):
        call_fn, init_fn = call_default, init_default
    return JaxLayer(call_fn, init_fn, **options)


LAYERS = {"flax": flax_layer, "haiku": haiku_layer, "functions": jax_layer}

LEAVES = {  # of the parts called by their names
    "flax": ("params/{}/bias", "params/{}/kernel"),
    "haiku": ("params/{}/b", "params/{}/w"),
    "functions": ("params/{}/w",),
}


def model_of(layer, units=5):
    """A model of layers of Keras with the layer in between."""
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(units, name="last")(layer(keras.layers.Dense(4)(inputs)))
    return keras.Model(inputs, outputs)


def compiled(model):
    """The model with an optimizer that has all its variables."""
    model.compile(keras.optimizers.Adam(0.05), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def trained(model):
    """The model after two epochs: other values than at the start, in params, state and slots."""
    compiled(model).fit(X, np.ones((8, model.output_shape[-1])), epochs=2, verbose=0)
    return model
