"""A framework of two models, which together do all that a model can, and its adapter."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from jaxlayer_core import (
    Adapter,
    CallSignature,
    Outcome,
    Policy,
    PureModule,
    SignatureError,
    Variables,
)
from jaxlayer_core.testing import ConformanceCase


class Linear:
    """A matrix; has no state, no modes, and does not draw."""

    def __init__(self, features):
        self.features = features

    def setup(self, key, x):
        return {"w": jax.random.normal(key, (x.shape[-1], self.features)) / 2}, {}

    def run(self, params, memory, key, x):
        return x @ params["w"], memory, {}


class Busy:
    """Draws and makes a loss in training, and updates all of its memory in every run.

    After inference its users keep no more of the memory than what is in `cache`.
    """

    def __init__(self, features):
        self.features = features

    def setup(self, key, x, shift, mask):
        params = {
            "w": jax.random.normal(key, (x.shape[-1], self.features)) / 2,
            "b": jnp.zeros(self.features),
        }
        memory = {
            "b": jnp.zeros(self.features),
            "count": jnp.zeros((), "int32"),
            "cache": {"steps": jnp.zeros((), "int32")},
        }
        return params, memory

    def run(self, params, memory, key, x, shift, mask, note=None, train=False):
        y = (x - shift / 2) @ params["w"] + params["b"]
        losses = {}
        if train:
            y = y + jax.random.normal(key, y.shape, y.dtype) / 8
            losses = {"penalty": jnp.mean(y**2) / 8}
        after = {
            "b": 0.9 * memory["b"] + 0.1 * y.mean(axis=0),
            "count": memory["count"] + 1,
            "cache": {"steps": memory["cache"]["steps"] + 1},
        }
        centred = jnp.where(mask[:, None], y - memory["b"].astype(y.dtype), y)
        return {"y": centred, "sum": centred.sum(axis=-1)}, after, losses


class ToyAdapter(Adapter):
    """Adapts both."""

    framework = "toy"

    def accepts(self, obj):
        return isinstance(obj, Linear | Busy)

    def purify(self, obj, *, method=None, training_arg=None):
        name = f"the toy model {type(obj).__name__}"
        if method is not None:
            raise SignatureError(f"{name} has no method {method!r}; it can only be run.")
        parameters = list(inspect.signature(obj.run).parameters.values())[3:]
        signature = CallSignature.read(name, parameters, training_arg)

        def init(rng, arguments):
            data = [p.name for p in parameters if p.default is p.empty]
            given = inspect.Signature(parameters).bind(*arguments.args, **arguments.kwargs)
            return Variables(*obj.setup(rng, *(given.arguments[name] for name in data)))

        def call(params, state, rng, arguments, training):
            return Outcome(*obj.run(params, state, rng, *arguments.args, **arguments.kwargs))

        policy = Policy({"cache": "cache", "penalty": "loss"})
        return PureModule(init, call, signature, bool(signature.flags), policy)


def native_init(model, key, args, kwargs):
    return model.setup(key, *args, **kwargs)


def native_apply(model, params, state, key, args, kwargs, training):
    train = {"train": training} if isinstance(model, Busy) else {}
    outputs, after, losses = model.run(params, state, key, *args, **kwargs, **train)
    return outputs, after if training else {**state, **_cache(after)}, losses


def _cache(memory):
    return {"cache": memory["cache"]} if "cache" in memory else {}


X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
SHIFT = X[::-1] + 1
MASK = np.array([True, False, True, True])

LINEAR = ConformanceCase("linear", lambda: Linear(2), lambda: ((X,), {}), native_init, native_apply)
BUSY = ConformanceCase(
    "busy", lambda: Busy(2), lambda: ((X, SHIFT), {"mask": MASK}), native_init, native_apply
)
