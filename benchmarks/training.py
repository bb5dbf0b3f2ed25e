"""What training options cost, and that 200 steps are the framework's own 200 steps.

    python benchmarks/training.py            # all figures, tables, results/training.json
    python benchmarks/training.py --quick    # fewer repeats and steps

- Loss curves: `fit` against an optax loop from the same weights and keys, batch by batch.
- Step time: each option switched on, over the same layer without it, in turn in one process.
- Rematerialisation: what is kept of the forward pass for the backward pass.
- Long life: growth of memory over many eager calls, and over models built and forgotten.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from measuring import memory, parser, write

from jaxlayer import FlaxLayer, HaikuLayer
from jaxlayer_core import key_from_seed, stream_key

BATCH, FEATURES = 64, 32
X = np.random.default_rng(0).normal(size=(BATCH * 10, FEATURES)).astype("float32")
Y = np.sin(X[:, :1] * 2)
RATE = 0.05


class Net(nn.Module):
    """Batch norm and dropout, so that state and draws count."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:  # noqa: D102
        for _ in range(2):
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(64)(x)))
        return nn.Dense(1)(nn.Dropout(0.1, deterministic=not train)(x))


def net(x: jax.Array, is_training: bool) -> jax.Array:
    """The same in Haiku."""
    for _ in range(2):
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.99)(hk.Linear(64)(x), is_training))
    return hk.Linear(1)(hk.dropout(hk.next_rng_key(), 0.1, x) if is_training else x)


class Losses(keras.callbacks.Callback):
    """The loss of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: D102
        self._sum = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: D102
        # Keras reports the mean so far.
        total = float(logs["loss"]) * (batch + 1)
        self.values.append(total - self._sum)
        self._sum = total


def loss_curves(framework: str, steps: int) -> dict[str, Any]:
    """Losses of `fit` and of the native loop, and how far they are apart."""
    layer = FlaxLayer(Net(), seed=0) if framework == "flax" else HaikuLayer(net, seed=0)
    model = keras.Sequential([keras.Input((FEATURES,)), layer])
    model.compile(keras.optimizers.SGD(RATE), "mse")
    copied = [
        jax.tree.map(np.array, tree, is_leaf=lambda leaf: isinstance(leaf, keras.Variable))
        for tree in (layer.params, layer.state)
    ]
    ours = Losses()
    epochs = -(-steps * BATCH // len(X))
    model.fit(X, Y, BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=[ours])

    transformed = hk.transform_with_state(net)

    def apply(params: Any, state: Any, key: jax.Array, x: jax.Array) -> Any:
        if framework == "haiku":
            return transformed.apply(params, state, key, x, True)
        rngs = {"dropout": stream_key(key, "dropout")}
        return Net().apply({**params, **state}, x, True, rngs=rngs, mutable=["batch_stats"])

    tx = optax.sgd(RATE)

    @jax.jit
    def step(params: Any, state: Any, slots: Any, number: jax.Array, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            out, after = apply(params, state, key_from_seed(jnp.stack([0, number])), x)
            return jnp.mean((out - y) ** 2), after

        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, slots = tx.update(gradients, slots, params)
        return optax.apply_updates(params, updates), state, slots, value

    params, state = copied
    slots, native = tx.init(params), []
    for number in range(steps):
        rows = slice(number % 10 * BATCH, (number % 10 + 1) * BATCH)
        # Counter 0 initialised the layer.
        counter = jnp.uint32(number + 1)
        params, state, slots, value = step(params, state, slots, counter, X[rows], Y[rows])
        native.append(float(value))
    apart = np.abs(np.array(ours.values[:steps]) - native) / np.array(native)
    return {
        "framework": framework,
        "steps": steps,
        "first loss": native[0],
        "last loss": native[-1],
        "largest relative difference": float(apart.max()),
    }


class Block(nn.Module):
    """One transformer block."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, y)
        y = nn.LayerNorm()(x)
        return x + nn.Dense(128)(nn.gelu(nn.Dense(512)(y)))


class Transformer(nn.Module):
    """Blocks one after another; sows what there is to report."""

    depth: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        for _ in range(self.depth):
            x = Block()(x)
        self.sow("stats", "scale", jnp.mean(jnp.square(x)))
        return nn.Dense(10)(x.mean(axis=1))


SEQUENCES = np.random.default_rng(0).normal(size=(160, 64, 128)).astype("float32")
LABELS = np.zeros((160, 10), "float32")
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing, again": {},
    "freeze (half)": {},
    "regularizers": {"regularizers": {"kernel": "l2"}},
    "constraints": {"constraints": {"kernel": "max_norm"}},
    "state_policy: metric": {"state_policy": {"stats": "metric"}},
    "state_policy: loss": {"state_policy": {"stats": "loss"}},
    "capture": {"capture": "Block_1"},
    "keep_float32": {"keep_float32": "Dense"},
    "remat": {"remat": True},
}


def compiled_model(name: str, options: dict[str, Any]) -> keras.Model:
    """The model around a layer with an option."""
    layer = FlaxLayer(Transformer(), seed=0, **options)
    inputs = keras.Input(SEQUENCES.shape[1:])
    outputs = layer(inputs)
    if name.startswith("freeze"):
        layer.freeze(r"Block_[01]/")
    model = keras.Model(inputs, outputs[0] if "capture" in options else outputs)
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    return model


def step_times(repeats: int) -> list[dict[str, Any]]:
    """Seconds of a step with each option, over the same without."""

    def epoch(model: keras.Model) -> float:
        start = time.perf_counter()
        model.fit(SEQUENCES, LABELS, batch_size=16, shuffle=False, verbose=0)
        return (time.perf_counter() - start) / 10

    rows = []
    plain = compiled_model("", {})
    epoch(plain)
    for name, options in OPTIONS.items():
        model = compiled_model(name, options)
        epoch(model)
        ratios, times = [], []
        for _ in range(repeats):
            times.append(epoch(model))
            ratios.append(times[-1] / epoch(plain))
        ratios.sort()
        quarter = len(ratios) // 4
        rows.append(
            {
                "option": name,
                "ms": 1e3 * statistics.median(times),
                "ratio": statistics.median(ratios),
                "spread": [ratios[quarter], ratios[-1 - quarter]],
            }
        )
    return rows


def remat_memory() -> list[dict[str, Any]]:
    """What is kept of the forward pass for the backward pass, of twelve blocks.

    It is what JAX keeps; XLA plans memory from there. Its CPU backend computes nothing twice,
    whatever it is told, so a peak of this process would show nothing.
    """
    x = SEQUENCES[:16]
    rows = []
    for remat in (False, "dots_saveable", True):
        layers = [FlaxLayer(Block(), seed=i, remat=remat) for i in range(12)]
        for layer in layers:
            layer.build(x.shape)
        values = [[v.value for v in layer.trainable_variables] for layer in layers]
        seeds = [[v.value for v in layer.non_trainable_variables] for layer in layers]

        def loss(
            values: Any, x: Any, layers: list[Any] = layers, seeds: list[Any] = seeds
        ) -> jax.Array:
            for layer, own, others in zip(layers, values, seeds, strict=True):
                x, _ = layer.stateless_call(own, others, x, training=True)
            return jnp.mean(jnp.square(x))

        _, backward = jax.vjp(loss, values, x)
        own = {id(v) for values_of_one in values for v in values_of_one}
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(backward) if id(leaf) not in own)
        rows.append({"remat": str(remat), "kept MiB": kept / 2**20})
    return rows


def resident() -> float:
    """MiB of this process (Linux)."""
    gc.collect()
    return memory("VmRSS") / 2**20


def growth(run: Callable[[], Any], warm: int, times: int) -> dict[str, float]:
    """MiB gained over calls of `run`, and arrays that stay."""
    for _ in range(warm):
        run()
    before, arrays = resident(), len(jax.live_arrays())
    for _ in range(times):
        run()
    return {"MiB": resident() - before, "arrays": len(jax.live_arrays()) - arrays}


def long_life(quick: bool) -> list[dict[str, Any]]:
    """Memory growth over a long time."""
    layer = FlaxLayer(Net(), seed=0)
    x = jnp.asarray(X[:BATCH])
    layer(x)

    def rebuilt() -> None:
        inner = FlaxLayer(Net())
        model = keras.Sequential([keras.Input((FEATURES,)), inner])
        model.compile("sgd", "mse")
        model.fit(X, Y, BATCH, verbose=0)
        del model, inner
        keras.backend.clear_session()

    calls, models = (1000, 5) if quick else (10_000, 20)
    return [
        {"what": f"{calls} eager calls", **growth(lambda: layer(x, training=False), 100, calls)},
        {"what": f"{models} rebuilt models", **growth(rebuilt, 3, models)},
    ]


def main() -> None:
    """Measures everything and prints the tables."""
    arguments = parser(__doc__).parse_args()
    quick = arguments.quick
    results = {
        "loss curves": [loss_curves(f, 20 if quick else 200) for f in ("haiku", "flax")],
        "step time": step_times(2 if quick else 9),
        "remat": remat_memory(),
        "long life": long_life(quick),
    }
    for title, rows in results.items():
        print(f"\n{title}")
        for row in rows:
            shown = (
                f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}"
                for name, value in row.items()
                if name != "spread"
            )
            print("  " + "   ".join(shown))
    write(arguments.results, "training", results)


if __name__ == "__main__":
    main()
