"""Searches for configs that do harm, by changing real ones at random.

    python tests/saving/fuzzing.py --minutes 60 --seed 1

prints how many were tried and what came of them, and fails where something was found, with the
smallest case that hypothesis could make of it.
"""

import argparse
import collections
import copy
import faulthandler
import functools
import json
import os
import pathlib
import sys
import time
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # it writes files, which the watch reports
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from flax import nnx
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import jaxlayer
from jaxlayer_core import serialization
from jaxlayer_optax import Labels, Matching, OptaxOptimizer, as_optimizer
from saving import hostile, hostile_cases, importable, importable_more

SECONDS = 60
"""For one case."""
ROUND = 500
"""Cases between two looks at the clock."""


def models():
    """Layers whose configs have all that configs can have."""
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    partitioned = nn.with_partitioning(nn.initializers.normal(), ("data", None))
    rules = {"regularizers": {"kernel": "l2"}, "constraints": {"bias": "non_neg"}}
    yield jaxlayer.FlaxLayer(
        nn.Sequential([nn.Dense(4, kernel_init=init), nn.relu, nn.Dense(2)]),
        training_arg=(),
        keep_float32=["bias"],
        **rules,
    )
    yield jaxlayer.FlaxLayer(
        importable.Tied(shared := nn.Dense(3, kernel_init=partitioned), shared), seed=1
    )
    yield jaxlayer.FlaxLayer(nn.BatchNorm(use_running_average=False, dtype=jnp.bfloat16))
    yield jaxlayer.FlaxLayer(nn.DenseGeneral((2, 2), precision=jax.lax.Precision.HIGHEST))
    yield jaxlayer.FlaxLayer(nn.Dense(2), method=nn.Dense.__call__, capture=["__call__"])
    yield jaxlayer.HaikuLayer(hk.nets.MLP, [4, 2], w_init=hk.initializers.RandomNormal(0.1))
    yield jaxlayer.HaikuLayer(hk.transform_with_state(importable.forward))
    yield jaxlayer.HaikuLayer(hk.without_apply_rng(hk.transform(importable.plain_forward)))
    yield jaxlayer.HaikuLayer(lambda x: hk.Linear(2)(x), state_policy={"x": "drop"})
    yield jaxlayer.JaxLayer(importable.call_fn, importable.init_fn, remat="everything_saveable")


def nnx_models():
    rngs = nnx.Rngs(0)
    init = nnx.with_partitioning(nnx.initializers.normal(0.1), (None, "model"))
    with nnx.use_eager_sharding(False):  # there is no mesh
        first = nnx.Linear(3, 4, kernel_init=init, rngs=rngs)
    norm, dropout = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    yield jaxlayer.FlaxLayer(nnx.Sequential(first, norm, dropout, jax.nn.relu), seed=1)
    yield jaxlayer.FlaxLayer(functools.partial(nnx.Linear, 3, 2, kernel_init=init))
    yield jaxlayer.FlaxLayer(importable_more.Gated(rngs=rngs), capture=["dense"])


def equinox_models():
    one, two = jax.random.split(jax.random.key(0))
    norm = eqx.nn.BatchNorm(4, "batch", mode="ema")
    parts = [eqx.nn.MLP(3, 4, 5, 1, key=one), norm, eqx.nn.Lambda(jax.nn.gelu)]
    spectral = eqx.nn.SpectralNorm(eqx.nn.Linear(4, 2, key=two), "weight", key=two)
    parts += [spectral, eqx.nn.WeightNorm(eqx.nn.Linear(2, 2, key=one)), eqx.nn.Dropout(0.5)]
    yield jaxlayer.EquinoxLayer(eqx.nn.Sequential(parts), seed=1)
    yield jaxlayer.EquinoxLayer(importable_more.Scaled(two), batch_axis={"x": 0}, axis_name="rows")
    yield jaxlayer.EquinoxLayer(functools.partial(eqx.nn.Linear, 3, 2), remat=True)


def optimizers():
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 10)
    kernels = Matching("kernel$")
    parts = optax.clip_by_global_norm(0.5), optax.adamw(rate, mask=kernels, mu_dtype="bfloat16")
    yield as_optimizer(optax.chain(*parts), clipnorm=1.0)
    fast = optax.inject_hyperparams(optax.adam, static_args="b1")(learning_rate=rate, b1=0.8)
    labels = Labels({"bias": "slow"}, "fast")
    yield as_optimizer(optax.multi_transform({"slow": optax.sgd(1e-3), "fast": fast}, labels))
    yield as_optimizer(optax.MultiSteps(optax.masked(optax.lion(1e-2), kernels), 2))
    yield OptaxOptimizer(functools.partial(optax.adamw, mask=kernels), 1e-2, use_ema=True)
    yield OptaxOptimizer(
        importable_more.clipped_sgd, keras.optimizers.schedules.CosineDecay(0.1, 10)
    )


def bases():
    """Objects whose configs have all that configs can have, by kind."""
    layers = {"linen, Haiku, functions": models, "nnx": nnx_models, "equinox": equinox_models}
    for kind, make in layers.items():
        for layer in make():
            layer(np.ones((2, 3), "float32"))
            yield kind, layer
    for optimizer in optimizers():
        yield "optax", optimizer


def configs(kinds=None):
    """The configs of these, as a file has them."""
    return [
        json.loads(json.dumps(keras.saving.serialize_keras_object(one)))
        for kind, one in bases()
        if kinds is None or kind in kinds
    ]


class Mutator:
    """Changes JSON data.

    Args:
        random: what draws.
        pool: data to take parts of.
    """

    def __init__(self, random, pool):
        self._random = random
        self._parts = [hostile.at(d, path) for d in pool for path in hostile.paths(d)]
        self._nodes = [part for part in self._parts if isinstance(part, dict) and "$" in part]
        self._words = sorted({part for part in self._parts if isinstance(part, str)})

    def mutate(self, data):
        """Data after a few changes."""
        data = copy.deepcopy(data)
        for _ in range(self._random.randint(1, 4)):
            places = list(hostile.paths(data))
            if not places:
                break
            path = self._random.choice(places)
            change = self._random.choice(
                [self._wrong, self._part, self._node, self._target, self._word, self._wrap]
                + [self._delete, self._swap, self._double]
            )
            data = change(data, path, places)
        return data

    def _wrong(self, data, path, places):
        values = [v for v in hostile_cases.WRONG.values() if v is not hostile.GONE]
        return hostile.replaced(data, path, self._random.choice(values))

    def _part(self, data, path, places):
        return hostile.replaced(data, path, self._random.choice(self._parts))

    def _node(self, data, path, places):
        tricks = list(hostile_cases.TRICKS.values())
        return hostile.replaced(data, path, self._random.choice(self._nodes + tricks))

    def _target(self, data, path, places):
        node = self._random.choice(list(hostile_cases.NODES.values()))
        return hostile.replaced(data, path, node(*self._random.choice(hostile_cases.TARGETS)))

    def _word(self, data, path, places):
        texts = [p for p in places if isinstance(hostile.at(data, p), str)] or [path]
        path, word = self._random.choice(texts), self._random.choice(self._words)
        old = hostile.at(data, path)
        if isinstance(old, str) and self._random.randint(0, 1):
            word = f"{old[: self._random.randint(0, len(old))]}{word[:10]}"
        return hostile.replaced(data, path, word)

    def _wrap(self, data, path, places):
        old = hostile.at(data, path)
        around = [[old], {"a": old}, {"$": "items", "type": "tuple", "items": [old, old]}]
        around += [{"$": "partial", "function": old, "args": [], "kwargs": {}}]
        return hostile.replaced(data, path, self._random.choice(around))

    def _delete(self, data, path, places):
        if isinstance(path[-1], int):
            return hostile.replaced(data, path[:-1], [])
        return hostile.replaced(data, path, hostile.GONE)

    def _swap(self, data, path, places):
        other = self._random.choice(places)
        if other[: len(path)] == path or path[: len(other)] == other:
            return data
        one, two = hostile.at(data, path), hostile.at(data, other)
        return hostile.replaced(hostile.replaced(data, path, two), other, one)

    def _double(self, data, path, places):
        part = hostile.at(data, path)
        doubled = part * 2 if isinstance(part, list) else [part, part]
        return hostile.replaced(data, path, doubled)


def load(config):
    """Loads an object as Keras does from a file, and uses it; gives a word for what came of it."""
    try:
        loaded = keras.saving.deserialize_keras_object(config)
    except Exception as error:
        return f"refused: {type(error).__name__}"
    if not isinstance(loaded, keras.layers.Layer | keras.optimizers.Optimizer):
        return "another object"
    try:
        loaded.get_config()
        use(loaded)
    except Exception as error:
        return f"loaded, but no call: {type(error).__name__}"
    return "loaded"


def use(loaded):
    """Calls a layer; makes the state of an optimizer, as a loaded model does."""
    if isinstance(loaded, keras.layers.Layer):
        loaded(np.ones((2, 3), "float32"))
        return
    dense = keras.layers.Dense(2)
    dense.build((None, 3))
    loaded.build(dense.trainable_variables)


class Search:
    """Tries cases, and counts what came of them."""

    def __init__(self, kinds=None):
        self.counts = collections.Counter()
        self._watch = hostile.Watch()
        self._configs = configs(kinds)

    def one_round(self, number, most):
        """Tries cases until one is found to do harm, which raises."""

        @seed(number)
        @settings(
            max_examples=most,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.integers(0, len(self._configs) - 1), st.randoms(use_true_random=False))
        def search(index, random):
            config = Mutator(random, self._configs).mutate(self._configs[index])
            self.check(config)

        search()

    def check(self, config):
        """Loads a config; raises if that does anything but answer or refuse."""
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        LAST.write_text(json.dumps(config))  # for what ends the process
        with warnings.catch_warnings(), self._watch:
            warnings.simplefilter("ignore")
            self.counts[load(config)] += 1
        faulthandler.cancel_dump_traceback_later()
        keras.backend.clear_session(free_memory=False)
        assert self._watch.events == [], (self._watch.events, config)
        assert keras.config.floatx() == "float32"


LAST = pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / f"fuzzed-{os.getpid()}.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trusting", action="store_true", help="trust the models of the tests")
    parser.add_argument("--kinds", nargs="+", help="only objects of these kinds: see bases()")
    arguments = parser.parse_args()
    if arguments.trusting:
        serialization.trust(importable.__name__, importable_more.__name__)
    search = Search(arguments.kinds)
    hostile.limit_memory()
    start, number = time.monotonic(), arguments.seed
    most = ROUND if arguments.minutes > 1 else 50
    while time.monotonic() - start < 60 * arguments.minutes:
        search.one_round(number, most)
        number += 1_000_003
    LAST.unlink(missing_ok=True)
    print(json.dumps({"cases": search.counts.total(), "outcomes": search.counts}))


if __name__ == "__main__":
    main()
