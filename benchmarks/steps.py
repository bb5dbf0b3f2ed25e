"""Short steps: Keras' trainer, `steps_per_execution`, and `scan_steps`.

    python benchmarks/steps.py            # results/steps.json, docs/performance.md
    python benchmarks/steps.py --quick    # fewer repeats

One step of `fit` with Adam on an MLP, per step, beside an optax loop and a `jax.lax.scan` written
by hand. The same figures of a model of Keras' own layers show what is Keras' trainer's.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from documents import ROOT, replace_between
from measuring import RESULTS, interleave, parser, row, seconds, show, write

from jaxlayer import FlaxLayer, OptaxOptimizer, scan_steps

BATCH, FEATURES, STEPS, GROUP = 32, 32, 512, 32
NAMES = {"native scan": "by hand, `jax.lax.scan`", "ours": "jaxlayer", "keras": "Keras' own layers"}


def module() -> nn.Module:
    """Three small dense layers."""
    return nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(1)])


def own_layers() -> keras.layers.Layer:
    """The same in Keras' own layers."""
    dense = [keras.layers.Dense(64, activation="relu") for _ in range(2)]
    return keras.Sequential([*dense, keras.layers.Dense(1)])


def by_hand(x: np.ndarray, y: np.ndarray, scanned: bool) -> Callable[[], Any]:
    """An epoch of an optax loop, step by step or in groups."""
    net, tx = module(), optax.adam(1e-3)
    variables = net.init(jax.random.key(0), x[:BATCH])

    def one(carry: Any, batch: Any) -> tuple[Any, Any]:
        variables, slots = carry
        loss = lambda v: jnp.mean((net.apply(v, batch[0]) - batch[1]) ** 2)  # noqa: E731
        value, gradients = jax.value_and_grad(loss)(variables)
        updates, slots = tx.update(gradients, slots, variables)
        return (optax.apply_updates(variables, updates), slots), value

    step = jax.jit(one, donate_argnums=0)
    group = jax.jit(lambda carry, batches: jax.lax.scan(one, carry, batches), donate_argnums=0)
    state: list[Any] = [(variables, tx.init(variables))]

    def epoch() -> Any:
        size = BATCH * (GROUP if scanned else 1)
        for first in range(0, len(x), size):
            batch = x[first : first + size], y[first : first + size]
            if scanned:
                batch = tuple(a.reshape(GROUP, BATCH, -1) for a in batch)
            state[0], value = (group if scanned else step)(state[0], batch)
        return value

    return epoch


def in_keras(
    x: np.ndarray,
    y: np.ndarray,
    layer: Any,
    steps: int = 1,
    scanned: bool = False,
    optimizer: Callable[[], Any] = lambda: keras.optimizers.Adam(1e-3),
) -> Callable[[], None]:
    """An epoch of `fit`."""
    model = keras.Sequential([keras.Input((FEATURES,)), layer])
    if scanned:
        scan_steps(model)
    model.compile(optimizer(), "mse", steps_per_execution=steps)
    run = functools.partial(model.fit, batch_size=BATCH, shuffle=False, verbose=0)

    def epoch() -> None:
        run(x, y)

    return epoch


def in_optax() -> OptaxOptimizer:
    """Adam of Optax."""
    return OptaxOptimizer(optax.adam(1e-3))


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__).parse_args()
    x = np.random.default_rng(0).normal(size=(BATCH * STEPS, FEATURES)).astype("float32")
    y = x[:, :1]
    layers = {"ours": lambda: FlaxLayer(module(), seed=0), "keras": own_layers}
    kinds = {"native": by_hand(x, y, False), "native scan": by_hand(x, y, True)}
    for side, make in layers.items():
        kinds[side] = in_keras(x, y, make())
        kinds[f"{side}, steps_per_execution={GROUP}"] = in_keras(x, y, make(), GROUP)
        kinds[f"{side}, scan_steps"] = in_keras(x, y, make(), GROUP, scanned=True)
        if side == "ours":
            kinds[f"{side}, OptaxOptimizer"] = in_keras(x, y, make(), optimizer=in_optax)
    for run in kinds.values():
        run()

    def per_step(run: Callable[[], Any]) -> float:
        return seconds(run) / STEPS

    sides = {name: functools.partial(per_step, run) for name, run in kinds.items()}
    found = row("mlp", "step", "us", interleave(sides, 3 if options.quick else 9))
    show([found])
    write(options.results, "steps", {"rows": [found]})
    if options.results == RESULTS and not options.quick:
        replace_between(ROOT / "docs" / "performance.md", "short steps", table(found))


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| | us per step | ratio to an optax loop (quartiles) |", "|---|---|---|"]
    lines.append(f"| by hand | {found['native']:.0f} | 1 |")
    for side in (key.removesuffix("/native") for key in found if key.endswith("/native")):
        low, high = found[f"{side} spread"]
        kind, _, option = side.partition(", ")
        name = ", ".join(filter(None, (NAMES[kind], option)))
        ratio = f"{found[f'{side}/native']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {name} | {found[side]:.0f} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
