"""What a stored program costs beside the model itself: bytes, and the time to load and to run.

    python benchmarks/programs.py            # a table, and benchmarks/results/programs.json

Each side is loaded in a fresh process: from its config to the first prediction, which compiles,
and then the median time of a prediction and of a gradient. The processes take turns. The
process of the program cannot import the model's framework.
"""

from __future__ import annotations

import argparse
import importlib.abc
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
from measuring import parser, write

SHAPES = {
    "mlp": (32, 128),
    "cnn": (16, 32, 32, 3),
    "transformer": (8, 64, 128),
    "resnet50": (2, 64, 64, 3),
}
REPEATS = 10


def model(name: str) -> Any:
    """The layer that wraps the model itself."""
    import flax.linen as nn
    import haiku as hk
    from models import MLP, Transformer, resnet50

    from jaxlayer import FlaxLayer, HaikuLayer

    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            for features in (32, 64, 128):
                x = nn.relu(
                    nn.BatchNorm(use_running_average=not train)(nn.Conv(features, (3, 3))(x))
                )
                x = nn.max_pool(x, (2, 2), (2, 2))
            return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2))))

    if name == "resnet50":
        return HaikuLayer(hk.transform_with_state(resnet50))
    modules = {"mlp": MLP, "cnn": CNN, "transformer": Transformer}
    return FlaxLayer(modules[name]())


def data(name: str) -> np.ndarray:
    """A batch."""
    return np.random.default_rng(0).normal(size=SHAPES[name]).astype("float32")


def median(run: Callable[[], Any]) -> float:
    """Median time of a call that is compiled already, in seconds."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class NotInstalled(importlib.abc.MetaPathFinder):
    """Hides the frameworks."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuses."""
        if name.partition(".")[0] in ("flax", "haiku"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def child(name: str, side: str, folder: str) -> None:
    """Loads and runs one side, and prints the times."""
    start = time.perf_counter()
    if side == "program":
        sys.meta_path.insert(0, NotInstalled())
        from jaxlayer_core.program_layer import ProgramLayer

        imported = time.perf_counter()
        config = json.loads(pathlib.Path(folder, f"{name}.json").read_text())
        layer = ProgramLayer.from_config(config)
    else:
        layer = model(name)
        imported = time.perf_counter()
        layer = type(layer)(layer.module)
    made = time.perf_counter()
    x = jnp.asarray(data(name))
    layer.build(x.shape)
    built = time.perf_counter()
    jax.block_until_ready(layer(x))
    first = time.perf_counter()
    weights = [v.value for v in layer.trainable_variables]
    rest = [v.value for v in layer.non_trainable_variables]

    def loss(weights: list[Any]) -> jax.Array:
        return jnp.sum(layer.stateless_call(weights, rest, x, training=True)[0] ** 2)

    gradient = jax.jit(jax.grad(loss))
    jax.block_until_ready(gradient(weights))
    trained = time.perf_counter()
    times = {
        "import": imported - start,
        "config to layer": made - imported,
        "build": built - made,
        "first prediction": first - built,
        "first gradient": trained - first,
        "prediction": median(lambda: layer(x)),
        "gradient": median(lambda: gradient(weights)),
    }
    print(json.dumps(times))


def run_child(*arguments: str) -> dict[str, float]:
    """Runs `child` in a process of its own."""
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, folder: str, repeats: int) -> dict[str, Any]:
    """One model: bytes, and medians of the times of both sides."""
    layer = model(name)
    layer(data(name))
    start = time.perf_counter()
    program = layer.to_program()
    seconds = time.perf_counter() - start
    from jaxlayer_core.layer import PureLayer
    from jaxlayer_core.program_layer import ProgramLayer

    options = {**PureLayer.get_config(layer), "dtype": "float32"}
    config = json.dumps(ProgramLayer.config_of("ProgramLayer", options, program))
    pathlib.Path(folder, f"{name}.json").write_text(config)
    found: dict[str, list[dict[str, float]]] = {"native": [], "program": []}
    for _ in range(repeats):
        for side, results in found.items():
            results.append(run_child(name, side, folder))
    times = {
        side: {key: statistics.median(one[key] for one in results) for key in results[0]}
        for side, results in found.items()
    }
    weights = sum(v.value.nbytes for v in layer.variables)
    return {"bytes": len(config), "weights": weights, "export": seconds, "times": times}


def main() -> None:
    """Measures all models, or one side of one in a child process."""
    options = parser(__doc__)
    options.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options.add_argument("--models", nargs="+", default=list(SHAPES), choices=SHAPES)
    arguments = options.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            one = results[name] = measure(name, folder, 1 if arguments.quick else 3)
            print(
                f"{name}: program {one['bytes'] / 1e3:.0f} KB beside weights of "
                f"{one['weights'] / 1e3:.0f} KB; exported in {one['export']:.1f} s"
            )
            for key, native in one["times"]["native"].items():
                program = one["times"]["program"][key]
                print(f"  {key:18} native {native * 1e3:9.1f} ms   program {program * 1e3:9.1f} ms")
    write(arguments.results, "programs", {"models": results})


if __name__ == "__main__":
    main()
