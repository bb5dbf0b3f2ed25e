"""What happens once costs over the framework's own code: building, compiling, saving, loading.

    python benchmarks/once.py            # all models, results/once.json
    python benchmarks/once.py --quick    # one process a side

Each side runs in processes of its own, which take turns. Next to the seconds stands by how much
the peak of the process' memory grew above what was resident before. The native side saves and
loads its leaves with NumPy; the others save a whole model, and loading makes it again.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import models
import numpy as np
from measuring import Times, memory, memory_mark, parser, row, seconds, show, write
from models import CASES, Case
from overhead import native_loop, rows_of

UNITS = {"memory": "MiB", "throughput": "MiB/s", "size": "MiB"}


class Phases:
    """Takes seconds and memory of one thing after another.

    Attributes:
        found: figures by name; seconds and bytes.
    """

    def __init__(self) -> None:
        jax.block_until_ready(jnp.ones(3) + 1)  # the client's own start-up
        self.found: dict[str, float] = {}

    def __call__(self, figure: str, run: Callable[[], Any]) -> Any:
        """Runs it and returns its result."""
        kept: list[Any] = []

        def arrays() -> Any:
            kept.append(result := run())
            is_layer = isinstance(result, keras.layers.Layer)
            return [variable.value for variable in result.weights] if is_layer else result

        gc.collect()  # or it may happen in the middle of what comes
        before = memory_mark()
        self.found[figure] = seconds(arrays)
        # The kernel counts roughly.
        self.found[f"{figure} memory"] = max(0, memory("VmHWM") - before)
        return kept[0]


def native(case: Case, phase: Phases, path: pathlib.Path) -> None:
    """The framework alone."""
    x = jnp.asarray(models.data(case.shape))
    variables = phase("build", lambda: case.init(jax.random.key(0), x))
    compiled = jax.jit(case.apply, static_argnums=3)
    phase("first call", lambda: compiled(*variables, x, False)[0])
    phase("first fit", native_loop(case, *rows_of(case))["fit step"])
    leaves = jax.tree.leaves(variables)
    phase.found["variables size"] = sum(leaf.nbytes for leaf in leaves)
    archive = path.with_suffix(".npz")
    phase("save", lambda: np.savez(archive, *map(np.asarray, leaves)))
    phase("load", lambda: [jnp.asarray(array) for array in np.load(archive).values()])


def in_keras(case: Case, side: str, phase: Phases, path: pathlib.Path) -> None:
    """A layer, ours or Keras' own. What Keras imports to save, it has imported before."""
    x = jnp.asarray(models.data(case.shape))
    keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]).save(path.with_suffix(".keras"))
    layer = phase("build", lambda: built(case, side))
    model = keras.Sequential([keras.Input(case.shape[1:]), layer])
    phase("first call", lambda: layer(x))
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    options = {"batch_size": case.shape[0], "shuffle": False, "verbose": 0}
    phase("first fit", functools.partial(model.fit, *rows_of(case), **options))
    phase.found["variables size"] = sum(variable.value.nbytes for variable in layer.weights)
    if side == "wrapped":  # it has no config for these models
        return
    archive = path.with_suffix(".keras")
    phase("save", lambda: model.save(archive))
    with trusting():
        phase("load", lambda: keras.models.load_model(archive))


def built(case: Case, side: str) -> keras.layers.Layer:
    """A layer with its weights."""
    layer = models.layer_of(case, side)
    if not layer.built:  # a model in Keras' own layers is
        layer.build(case.shape)
    return layer


def trusting() -> contextlib.AbstractContextManager[Any]:
    """The models' own module may be loaded from."""
    import jaxlayer

    return jaxlayer.trusting("models")


def child(name: str, side: str) -> None:
    """Measures one side of one model in this process; prints the figures."""
    phase = Phases()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model"
        if side == "native":
            native(CASES[name], phase, path)
        else:
            in_keras(CASES[name], side, phase, path)
        if "save" in phase.found:
            size = sum(file.stat().st_size for file in path.parent.iterdir())
            for way in ("save", "load"):
                phase.found[f"{way} throughput"] = size / phase.found[way]
    print(json.dumps(phase.found))


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    """All figures of one model."""
    found: dict[str, Times] = {}
    for _ in range(repeats):
        for side in CASES[name].sides:
            command = [sys.executable, __file__, "--child", name, side]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            for figure, value in json.loads(out.splitlines()[-1]).items():
                found.setdefault(figure, {}).setdefault(side, []).append(value)
    rows = [
        row(name, figure, UNITS.get(figure.rpartition(" ")[2], "s"), times)
        for figure, times in found.items()
    ]
    show(rows)
    return rows


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="*", default=list(CASES), choices=list(CASES))
    options.add_argument("--child", nargs=2, help="for the processes that it starts")
    chosen = options.parse_args()
    if chosen.child:
        child(*chosen.child)
        return
    rows = [line for name in chosen.models for line in measure(name, 1 if chosen.quick else 3)]
    write(chosen.results, "once", {"rows": rows})


if __name__ == "__main__":
    main()
