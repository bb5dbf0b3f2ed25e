"""What calls and steps of a jaxlayer layer cost over the framework's own code.

    python benchmarks/overhead.py            # all models, results/overhead.json
    python benchmarks/overhead.py --quick    # fewer repeats

All sides run in one process, in turn. Figures are medians; the spread is the interquartile range
of the ratios. `once.py` measures what happens once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import models
import numpy as np
import optax
from measuring import Times, interleave, parser, row, seconds, show, write
from models import CASES, Case

STEPS = 10


def eager_call(case: Case, repeats: int) -> Times:
    """Seconds of an inference call on a JAX array."""
    x = jnp.asarray(models.data(case.shape))
    params, state = case.init(jax.random.key(0), x)
    compiled = jax.jit(case.apply, static_argnums=3)
    sides: dict[str, Callable[[], Any]] = {"native": lambda: compiled(params, state, x, False)[0]}
    for side in case.sides[1:]:
        sides[side] = functools.partial(models.layer_of(case, side), x)
    for call in sides.values():
        seconds(call, 2)
    timed = {side: functools.partial(seconds, call, case.calls) for side, call in sides.items()}
    return interleave(timed, repeats)


def native_loop(case: Case, x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], Any]]:
    """An epoch of training, of evaluation and of prediction, written by hand."""
    batch = case.shape[0]
    params, state = case.init(jax.random.key(0), x[:batch])
    tx = optax.sgd(1e-3)

    def loss_of(params: Any, state: Any, x: Any, y: Any, training: bool) -> Any:
        outputs, new_state = case.apply(params, state, x, training)
        return jnp.mean((outputs - y) ** 2), new_state

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, state: Any, slots: Any, x: Any, y: Any) -> Any:
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (value, new_state), grads = gradient(params, state, x, y, True)
        updates, new_slots = tx.update(grads, slots, params)
        return optax.apply_updates(params, updates), new_state, new_slots, value

    evaluate = jax.jit(lambda params, state, x, y: loss_of(params, state, x, y, False)[0])
    predict = jax.jit(lambda params, state, x: case.apply(params, state, x, False)[0])
    rows = [slice(i * batch, (i + 1) * batch) for i in range(STEPS)]
    carry = [params, state, tx.init(params)]

    def fit() -> Any:
        for part in rows:
            *carry[:], value = step(*carry, x[part], y[part])
        return value

    return {
        "fit step": fit,
        "evaluate step": lambda: [float(evaluate(*carry[:2], x[p], y[p])) for p in rows],
        "predict step": lambda: [np.asarray(predict(*carry[:2], x[p])) for p in rows],
        "train_on_batch": lambda: _one_by_one(step, carry, x, y, rows),
    }


def _one_by_one(step: Any, carry: list[Any], x: Any, y: Any, rows: list[slice]) -> float:
    """The native counterpart of `train_on_batch`: every loss is read."""
    for part in rows:
        *carry[:], value = step(*carry, x[part], y[part])
        loss = float(value)
    return loss


def steps(case: Case, repeats: int) -> dict[str, Times]:
    """Seconds per step of `fit`, `evaluate`, `predict`, `train_on_batch`, by figure."""
    batch = case.shape[0]
    x, y = rows_of(case)
    loops = {"native": native_loop(case, x, y)}
    for side in case.sides[1:]:
        model = models.keras_model(case, side)
        options = {"batch_size": batch, "verbose": 0}
        loops[side] = {
            "fit step": functools.partial(model.fit, x, y, shuffle=False, **options),
            "evaluate step": functools.partial(model.evaluate, x, y, **options),
            "predict step": functools.partial(model.predict, x, **options),
            "train_on_batch": functools.partial(_batches, model, x, y, batch),
        }
    found = {}
    for figure in loops["native"]:
        timed = {}
        for side, runs in loops.items():
            runs[figure]()
            timed[side] = functools.partial(_per_step, runs[figure])
        found[figure] = interleave(timed, repeats)
    return found


def rows_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of an epoch."""
    x = np.concatenate([models.data(case.shape)] * STEPS)
    return x, np.zeros((len(x), case.outputs), "float32")


def _per_step(run: Callable[[], Any]) -> float:
    return seconds(run) / STEPS


def _batches(model: keras.Model, x: np.ndarray, y: np.ndarray, batch: int) -> None:
    for first in range(0, len(x), batch):
        float(model.train_on_batch(x[first : first + batch], y[first : first + batch]))


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    """All figures of one model."""
    case = CASES[name]
    rows = [row(name, "eager call", "us", eager_call(case, repeats))]
    rows += [row(name, figure, "ms", found) for figure, found in steps(case, repeats).items()]
    show(rows)
    return rows


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="*", default=list(CASES), choices=list(CASES))
    chosen = options.parse_args()
    repeats = 3 if chosen.quick else 7
    rows = [line for name in chosen.models for line in measure(name, repeats)]
    write(chosen.results, "overhead", {"rows": rows})


if __name__ == "__main__":
    main()
