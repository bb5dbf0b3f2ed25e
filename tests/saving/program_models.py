"""Models that no config can express, and what they are called with. Never imported on loading."""

import functools
import json
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import flax.struct
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlayer import EquinoxLayer, FlaxLayer, HaikuLayer, JaxLayer
from jaxlayer_core.layer import PureLayer
from jaxlayer_core.program_layer import ProgramLayer


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def integers(*shape):
    return np.random.default_rng(0).integers(0, 7, size=shape, dtype="int32")


class CNN(nn.Module):
    activation: Any

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3))(x)
        x = self.activation(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.avg_pool(x, (2, 2), (2, 2)).mean((1, 2))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


def cnn():
    slope = 0.1
    return FlaxLayer(CNN(lambda x: jnp.where(x > 0, x, slope * x)), seed=1)


def haiku_lambda():
    def net(x, is_training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(5)(x), is_training)
        return hk.Linear(2)(hk.dropout(hk.next_rng_key(), 0.5 if is_training else 0.0, x))

    return HaikuLayer(hk.transform_with_state(lambda x, is_training: net(x, is_training)), seed=1)


def closures():
    size, scale = 3, jnp.arange(4.0)

    def init_fn(rng, inputs):
        params = {"w": jax.random.normal(rng, (inputs.shape[-1], size)), "kind": "linear"}
        return params, [jnp.zeros(()), jax.random.key(5)]

    def call_fn(params, state, rng, inputs, training):
        count, key = state
        noise = jax.random.normal(rng, inputs.shape) if training else 0.0
        outputs = (inputs * scale + noise) @ params["w"] + jax.random.uniform(key)
        return outputs, [count + 1, jax.random.split(key)[0]] if training else state

    return JaxLayer(call_fn, init_fn, seed=1)


def two_inputs():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, mask=None, *, mode="sum"):
            x = nn.Dense(4)(x)
            if mask is not None:
                x = x * mask[..., None]
            return x.sum(1) if mode == "sum" else x.max(1)

    return FlaxLayer(Two(), seed=1)


def embedding():
    def net(tokens):
        x = hk.Embed(7, 4)(tokens)
        return hk.Linear(3)(x.mean(1))

    return HaikuLayer(hk.without_apply_rng(hk.transform(lambda tokens: net(tokens))), seed=1)


class Pair(NamedTuple):
    value: Any
    shift: Any


@flax.struct.dataclass
class Outputs:
    logits: Any
    extra: Any
    name: str = flax.struct.field(pytree_node=False, default="outputs")


def containers():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, pair, options):
            x = nn.Dense(3)(pair.value) + pair.shift
            if options["bias"] is None:
                x = x + 1
            return {"pair": Pair(x, None), "more": Outputs(x * 2, [x.sum(-1), (x,)])}

    return FlaxLayer(Net(), seed=1)


def sowing():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4, name="first")(x)
            self.sow("losses", "penalty", jnp.sum(x**2))
            self.sow("metrics", "size", jnp.abs(x).mean())
            return nn.Dense(2)(x)

    roles = {"losses": "loss", "metrics": "metric"}
    return FlaxLayer(Net(), seed=1, state_policy=roles, capture="first")


def half():
    return FlaxLayer(CNN(lambda x: nn.relu(x)), seed=1, dtype="mixed_bfloat16")


def drawing_key():
    def net(x, key):
        return hk.Linear(2)(x + jax.random.normal(key, x.shape))

    return HaikuLayer(hk.without_apply_rng(hk.transform(lambda x, key: net(x, key))), seed=1)


def statics():
    def net(x, scale, shift):
        return hk.Linear(3)(x) * scale + (0 if shift is None else shift)

    return HaikuLayer(hk.without_apply_rng(hk.transform(lambda *a, **k: net(*a, **k))), seed=1)


def weight_norm():
    """Its first values depend on the data that it is initialised with."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            scale = self.param("scale", lambda key: 1 / jnp.std(x, 0))
            return nn.Dense(2)(x * scale)

    return FlaxLayer(Net(), seed=1)


def nnx_lambda():
    class Net(nnx.Module):
        def __init__(self, *, rngs):
            self.first = nnx.Linear(4, 5, rngs=rngs)
            self.norm = nnx.BatchNorm(5, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.last = nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.last(self.dropout(jnp.tanh(self.norm(self.first(x)))))

    return FlaxLayer(Net, seed=1)


def equinox_lambda():
    """With state that is no matter of the batch: a program with `pmean` is for one batch size."""

    def net(key):
        one, two, three = jax.random.split(key, 3)
        parts = [
            eqx.nn.Linear(4, 5, key=one),
            eqx.nn.Lambda(lambda x: jnp.tanh(x)),
            eqx.nn.SpectralNorm(eqx.nn.Linear(5, 2, key=two), "weight", key=three),
            eqx.nn.Dropout(0.5),
        ]
        return eqx.nn.Sequential(parts)

    return EquinoxLayer(lambda key: net(key), seed=1)


def on_batch(size):
    """Arguments and keywords of each model, for a batch size."""
    return {
        cnn: ((floats(size, 8, 8, 2),), {}),
        haiku_lambda: ((floats(size, 4),), {}),
        closures: ((floats(size, 4),), {}),
        two_inputs: (
            (floats(size, 5, 3),),
            {"mask": floats(size, 5, seed=1) > 0, "mode": "max"},
        ),
        embedding: ((integers(size, 6),), {}),
        containers: (
            (Pair(floats(size, 2), floats(size, 3, seed=1)),),
            {"options": {"bias": None}},
        ),
        sowing: ((floats(size, 3),), {}),
        half: ((floats(size, 8, 8, 2),), {}),
        drawing_key: ((floats(size, 3), jax.random.key(3)), {}),
        statics: ((floats(size, 3), 2.0), {"shift": None}),
        weight_norm: ((floats(size, 3),), {}),
        nnx_lambda: ((floats(size, 4),), {}),
        equinox_lambda: ((floats(size, 4),), {}),
    }


MODELS = {function.__name__: function for function in on_batch(1)}


@functools.cache
def example(name, size=4):
    return on_batch(size)[MODELS[name]]


def stored(layer):
    """The config of a layer with its program, through JSON as a file would have it."""
    options = {**PureLayer.get_config(layer), "dtype": layer.dtype_policy.name}
    config = ProgramLayer.config_of(type(layer).__name__, options, layer.to_program())
    return json.loads(json.dumps(config))


def copied(layer, other):
    """The other layer with the variables of the first."""
    pairs = zip((*layer.variables, layer.seed_generator.state), values_of(other), strict=True)
    for own, theirs in pairs:
        theirs.assign(own.value.copy())  # Keras donates the buffers of its variables
    return other


def values_of(layer):
    return (*layer.variables, layer.seed_generator.state)
