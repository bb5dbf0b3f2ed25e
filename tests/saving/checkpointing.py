"""Models and helpers of the tests of checkpoints."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


class Net(nn.Module):
    """BatchNorm, a counter and a typed key beside the params."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        self.variable("seen", "calls", lambda: jnp.zeros((), "int32"))
        self.variable("noise", "key", lambda: jax.random.key(7))
        return nn.Dense(1)(x)


def haiku_net(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.nets.MLP([4])(x), is_training)
    return hk.Linear(1)(x)


def functions():
    def init_fn(rng, inputs):
        params = {"w": [jax.random.normal(rng, (4, 2)), {"b": jnp.zeros(2, "bfloat16")}]}
        return params, (jnp.zeros((), "int32"), {"key": rng})

    def call_fn(params, state, inputs):
        return inputs @ params["w"][0] + params["w"][1]["b"], state

    return call_fn, init_fn


MAKERS = {
    "flax": lambda seed: FlaxLayer(Net(), seed=seed),
    "haiku": lambda seed: HaikuLayer(haiku_net, seed=seed),
    "functions": lambda seed: JaxLayer(*functions(), seed=seed),
}


def make(kind, seed):
    """A layer that is built, whose variables are all other than with another seed."""
    layer = MAKERS[kind](seed)
    layer(X)
    for number, variable in enumerate(own_variables(layer).values()):
        if variable.dtype.startswith(("float", "bfloat", "int")):
            variable.assign(np.asarray(variable) + seed + number)
    return layer


def own_variables(layer):
    """The layer's variables by path."""
    trees = (layer._params, layer._state)
    return {n: v for tree in trees for n, v in zip(tree.names, tree.variables, strict=True)}


def snapshot(layer):
    """Dtype, shape and bytes of each variable."""
    arrays = {name: np.asarray(v.value) for name, v in own_variables(layer).items()}
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}


def holder(**params):
    """A layer that only holds params."""
    layer = JaxLayer(lambda params, inputs: inputs, params=params)
    layer.build((None, 1))
    return layer
