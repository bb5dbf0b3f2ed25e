"""What one more leaf costs, from 10 leaves to 5,000.

    python benchmarks/leaves.py            # results/leaves.json
    python benchmarks/leaves.py --quick    # up to 100 leaves

A model of n tiny dense layers: the arithmetic is nothing, the leaves are all. Native is the
framework's eager init, its jitted apply, a jitted optax step and an npz file of its leaves.
"""

from __future__ import annotations

import functools
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from measuring import interleave, parser, row, seconds, show, write

from jaxlayer import FlaxLayer

COUNTS = (10, 100, 1000, 5000)
WIDTH = 4


class Stack(nn.Module):
    """Dense layers, each two leaves.

    Attributes:
        layers: how many.
    """

    layers: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:  # noqa: D102
        x = inputs
        for _ in range(self.layers):
            x = x + nn.Dense(WIDTH)(x)
        return x


def figures(leaves: int, repeats: int) -> list[dict[str, Any]]:
    """All figures of one number of leaves."""
    module = Stack(leaves // 2)
    x = np.ones((8, WIDTH), "float32")
    name = f"{leaves} leaves"
    rows = []

    def measured(figure: str, unit: str, sides: dict[str, Callable[[], Any]], times: int) -> None:
        timed = {side: functools.partial(seconds, run, times) for side, run in sides.items()}
        rows.append(row(name, figure, unit, interleave(timed, repeats)))

    def built() -> list[Any]:
        layer = FlaxLayer(module, seed=0)
        layer.build(x.shape)
        return [v.value for v in layer.weights]

    measured("build", "s", {"native": lambda: module.init(jax.random.key(0), x), "ours": built}, 1)
    variables = module.init(jax.random.key(0), x)
    layer = FlaxLayer(module, seed=0)
    model = keras.Sequential([keras.Input((WIDTH,)), layer])
    apply = jax.jit(module.apply)
    on_device = jnp.asarray(x)
    sides: dict[str, Callable[[], Any]] = {
        "native": lambda: apply(variables, on_device),
        "ours": lambda: layer(on_device),
    }
    compiling = {side: [seconds(run)] for side, run in sides.items()}
    rows.append(row(name, "first call", "s", compiling))
    measured("eager call", "us", sides, max(3, 3000 // leaves))

    tx = optax.sgd(1e-3)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(variables: Any, slots: Any, x: Any) -> Any:
        gradients = jax.grad(lambda v: jnp.mean(module.apply(v, x) ** 2))(variables)
        updates, slots = tx.update(gradients, slots, variables)
        return optax.apply_updates(variables, updates), slots

    carry = [jax.tree.map(jnp.array, variables), tx.init(variables)]

    def native_steps() -> Any:
        for _ in range(10):
            carry[:] = step(*carry, x)
        return carry[0]

    model.compile(keras.optimizers.SGD(1e-3), "mse")
    rows_of_data, zeros = np.concatenate([x] * 10), np.zeros((80, WIDTH), "float32")

    def our_steps() -> None:
        model.fit(rows_of_data, zeros, batch_size=8, shuffle=False, verbose=0)

    native_steps()
    our_steps()
    measured("ten fit steps", "ms", {"native": native_steps, "ours": our_steps}, 1)

    with tempfile.TemporaryDirectory() as folder:
        arrays = jax.tree.leaves(variables)
        measured(
            "save",
            "s",
            {
                "native": lambda: np.savez(f"{folder}/native.npz", *map(np.asarray, arrays)),
                "ours": lambda: model.save_weights(f"{folder}/ours.weights.h5"),
                "ours, npz": lambda: layer.save_variables(f"{folder}/ours.npz"),
            },
            1,
        )
        measured(
            "load",
            "s",
            {
                "native": lambda: [
                    jnp.asarray(a) for a in np.load(f"{folder}/native.npz").values()
                ],
                "ours": lambda: model.load_weights(f"{folder}/ours.weights.h5"),
                "ours, npz": lambda: layer.load_variables(f"{folder}/ours.npz"),
            },
            1,
        )
    show(rows)
    return [{"leaves": leaves, **line} for line in rows]


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__).parse_args()
    counts = COUNTS[:2] if options.quick else COUNTS
    rows = [line for n in counts for line in figures(n, 2 if options.quick else 3)]
    write(pathlib.Path(options.results), "leaves", {"rows": rows})


if __name__ == "__main__":
    main()
