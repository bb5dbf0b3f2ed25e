"""What a jaxlayer layer costs over the framework's own code, as ratios from one run.

    python benchmarks/overhead.py            # all figures, a table, benchmarks/results/*.json
    python benchmarks/overhead.py --quick    # fewer repeats

Eager calls and train steps are timed in one process, the sides in turn. Build time and
peak memory are taken in fresh processes, the sides in turn. Figures are medians; the spread
is the interquartile range of the ratios. Keras' own FlaxLayer is a column where TensorFlow,
which it needs to be built, is installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
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

from jaxlayer import FlaxLayer, HaikuLayer

HAS_KERAS_LAYER = importlib.util.find_spec("tensorflow") is not None


class MLP(nn.Module):
    """Ten dense layers: the call is so short that everything around it shows."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:  # noqa: D102
        x = inputs
        for _ in range(10):
            x = nn.relu(nn.Dense(128)(x))
        return x


class Transformer(nn.Module):
    """Twelve pre-norm blocks over embeddings."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:  # noqa: D102
        x = inputs
        for _ in range(12):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, y)
            y = nn.LayerNorm()(x)
            x = x + nn.Dense(128)(nn.gelu(nn.Dense(512)(y)))
        return nn.Dense(10)(x.mean(axis=1))


def resnet50(x: jax.Array, is_training: bool) -> jax.Array:
    """Haiku's ResNet-50."""
    return hk.nets.ResNet50(10)(x, is_training)


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (MLP(), (32, 128)),
    "transformer": (Transformer(), (16, 64, 128)),
    "resnet50": (resnet50, (4, 64, 64, 3)),
}


def data(shape: tuple[int, ...]) -> np.ndarray:
    """Inputs, always the same."""
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def make_layer(name: str, side: str) -> keras.layers.Layer:
    """The model as a Keras layer: ours, or Keras' own."""
    model, _ = MODELS[name]
    if side == "keras":
        if isinstance(model, nn.Module):
            return keras.layers.FlaxLayer(model)
        transformed = hk.transform_with_state(lambda inputs, training: model(inputs, training))
        return keras.layers.JaxLayer(transformed.apply, transformed.init)
    return FlaxLayer(model, seed=0) if isinstance(model, nn.Module) else HaikuLayer(model, seed=0)


def native(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`init(key, x) -> (params, state)` and `apply(params, state, x, training)`."""
    model, _ = MODELS[name]
    if isinstance(model, nn.Module):
        return (
            lambda key, x: (model.init(key, x), {}),
            lambda params, state, x, training: (model.apply(params, x), state),
        )
    transformed = hk.transform_with_state(model)
    return (
        lambda key, x: transformed.init(key, x, True),
        lambda params, state, x, training: transformed.apply(params, state, None, x, training),
    )


def interleave(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Takes each side's time in turn."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, measure in sides.items():
            times[side].append(measure())
    return times


def eager_call(name: str, repeats: int, calls: int) -> dict[str, list[float]]:
    """Seconds of an inference call on a JAX array."""
    _, shape = MODELS[name]
    x = jnp.asarray(data(shape))
    init, apply = native(name)
    params, state = init(jax.random.key(0), x)
    compiled = jax.jit(apply, static_argnums=3)
    sides = {"native": lambda: compiled(params, state, x, False)[0]}
    for side in ("ours", "keras") if HAS_KERAS_LAYER else ("ours",):
        layer = make_layer(name, side)
        layer(x)
        sides[side] = functools.partial(layer, x)

    def timed(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    for call in sides.values():
        jax.block_until_ready(call())
    return interleave({s: functools.partial(timed, c) for s, c in sides.items()}, repeats)


def fit_step(name: str, repeats: int, steps: int) -> dict[str, list[float]]:
    """Seconds of a train step: an optax loop, and Keras' `fit`."""
    _, shape = MODELS[name]
    x = np.concatenate([data(shape)] * steps)
    batch = shape[0]
    y = np.zeros((len(x), MODELS_OUT[name]), "float32")
    init, apply = native(name)
    params, state = init(jax.random.key(0), x[:batch])
    tx = optax.sgd(1e-3)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, state: Any, slots: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            out, new_state = apply(params, state, x, True)
            return jnp.mean((out - y) ** 2), new_state

        (value, new_state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, new_slots = tx.update(grads, slots, params)
        return optax.apply_updates(params, updates), new_state, new_slots, value

    carry = [params, state, tx.init(params)]

    def native_epoch() -> float:
        start = time.perf_counter()
        for i in range(steps):
            rows = slice(i * batch, (i + 1) * batch)
            *carry[:], value = step(*carry, x[rows], y[rows])
        jax.block_until_ready(value)
        return (time.perf_counter() - start) / steps

    sides = {"native": native_epoch}
    for side in ("ours", "keras") if HAS_KERAS_LAYER else ("ours",):
        model = keras.Sequential([keras.Input(shape[1:]), make_layer(name, side)])
        model.compile(keras.optimizers.SGD(1e-3), "mse")

        def epoch(model: keras.Model = model) -> float:
            start = time.perf_counter()
            model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
            return (time.perf_counter() - start) / steps

        sides[side] = epoch
    for run in sides.values():
        run()
    return interleave(sides, repeats)


MODELS_OUT = {"mlp": 128, "transformer": 10, "resnet50": 10}


def memory(field: str) -> int:
    """Bytes of this process: `VmRSS`, resident now, or `VmHWM`, its peak (Linux)."""
    status = pathlib.Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory_mark() -> int:
    """Forgets the peak so far and returns the memory resident now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def child(name: str, side: str) -> None:
    """In a fresh process: build one side, print seconds, growth of peak memory, size."""
    _, shape = MODELS[name]
    x = data(shape)
    jax.block_until_ready(jnp.ones(3) + 1)  # the client's own start-up
    before = memory_mark()
    start = time.perf_counter()
    if side == "native":
        built = native(name)[0](jax.random.key(0), x)
    else:
        layer = make_layer(name, side)
        layer.build(x.shape)
        built = [v.value for v in layer.weights]
    jax.block_until_ready(built)
    seconds = time.perf_counter() - start
    growth = memory("VmHWM") - before
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(built))
    print(json.dumps({"seconds": seconds, "growth": growth, "size": size}))


def build(name: str, repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and peak-memory growth of building, in fresh processes."""
    sides = ("native", "ours", "keras") if HAS_KERAS_LAYER else ("native", "ours")
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    growth: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            command = [sys.executable, __file__, "--child", name, side]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures = json.loads(out.splitlines()[-1])
            seconds[side].append(figures["seconds"])
            growth[side].append(figures["growth"])
    return seconds, growth


def row(model: str, figure: str, unit: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and ratios of one figure."""
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6, "MiB": 2.0**-20}[unit]
    result: dict[str, Any] = {"model": model, "figure": figure, "unit": unit}
    for side, values in times.items():
        result[side] = round(statistics.median(values) * scale, 3)
        if side != "native":
            ratios = sorted(a / b for a, b in zip(values, times["native"], strict=True))
            result[f"{side}/native"] = round(statistics.median(ratios), 3)
            quarter = len(ratios) // 4
            result[f"{side} spread"] = [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)]
    return result


def main() -> None:
    """Measures everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    few = 3 if options.quick else 9
    rows = []
    for name in options.models:
        calls = {"mlp": 300, "transformer": 10, "resnet50": 5}[name]
        rows.append(row(name, "eager call", "us", eager_call(name, few, calls)))
        if name != "mlp":
            rows.append(row(name, "fit step", "ms", fit_step(name, few, 10)))
        seconds, growth = build(name, 2 if options.quick else 5)
        rows.append(row(name, "build", "s", seconds))
        rows.append(row(name, "build peak memory", "MiB", growth))
        for line in rows[-(3 if name == "mlp" else 4) :]:
            print(line, flush=True)
    versions = {m.__name__: m.__version__ for m in (keras, jax, hk, optax)}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), **versions}
    out = pathlib.Path(__file__).parent / "results" / "overhead.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"environment": machine, "rows": rows}, indent=2) + "\n")
    print(f"\n{'model':<12} {'figure':<18} {'native':>10} {'ours':>10}  ours/native (quartiles)")
    for r in rows:
        spread = " to ".join(f"{v:.2f}" for v in r["ours spread"])
        keras_own = f"   keras/native {r['keras/native']:.2f}" if "keras" in r else ""
        print(
            f"{r['model']:<12} {r['figure']:<18} {r['native']:>10.2f} {r['ours']:>10.2f}"
            f" {r['unit']:<4} {r['ours/native']:.2f} ({spread}){keras_own}"
        )
    print(f"\nwritten to {os.path.relpath(out)}")


if __name__ == "__main__":
    main()
