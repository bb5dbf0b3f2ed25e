"""What saving and loading variables costs: memory beside the variables' own, and speed.

    python benchmarks/checkpoints.py            # about 200 MB; results/checkpoints.json
    python benchmarks/checkpoints.py --quick    # a tenth of that

Every figure is from a fresh process, whose peak memory (VmHWM) is reset when the layer is built.
"memory" is how far the peak then rises, over the size of the variables: what is held beside them.
Loading replaces variables that exist, so a whole file held at once would be 1.
malloc is told to give large blocks back when they are freed (MALLOC_MMAP_THRESHOLD_): left alone,
glibc keeps some for later. Needs Linux, which can reset the peak.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from measuring import memory, parser, write

os.environ.setdefault("KERAS_BACKEND", "jax")

FORMATS = ("msgpack", "safetensors", "npz", "orbax")
DEPTH, WIDTH = 12, 2048  # 12 kernels of 16.8 MB


def make_layer(depth: int) -> tuple[object, int]:
    """A layer of `depth` square kernels, and the size of its variables in bytes."""
    import flax.linen as nn
    import jax
    import numpy as np

    from jaxlayer import FlaxLayer

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for _ in range(depth):
                x = nn.Dense(WIDTH)(x)
            return x

    layer = FlaxLayer(Net(), seed=0)
    layer.build((None, WIDTH))
    return layer, sum(np.prod(v.shape, dtype=int) * 4 for v in layer.weights)


def measure(action: str, path: str, depth: int) -> dict[str, float]:
    """One save or load, in this process."""
    layer, size = make_layer(depth)
    run = layer.save_variables if action == "save" else layer.load_variables  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:  # imports, threads and pools are not the point
        small, _ = make_layer(1)
        small.save_variables(f"{folder}/small{pathlib.Path(path).suffix}")  # type: ignore[attr-defined]
        del small
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmHWM"), time.perf_counter()
    run(path)
    return {
        "memory": (memory("VmHWM") - before) / size,
        "throughput": size / 1e6 / (time.perf_counter() - start),
    }


def in_new_process(*arguments: str) -> dict[str, float]:
    """The figures of one process."""
    command = [sys.executable, __file__, "--one", *arguments]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the table."""
    options_of = parser(__doc__)
    options_of.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = options_of.parse_args()
    if options.one:
        action, path, depth = options.one
        print(json.dumps(measure(action, path, int(depth))))
        return
    depth = 1 if options.quick else DEPTH
    size = depth * WIDTH * WIDTH * 4 / 1e6
    results: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{size:.0f} MB of variables")
    print(f"{'format':12} {'action':6} {'memory':>7} {'MB/s':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            for action in ("save", "load"):
                figures = in_new_process(action, f"{folder}/model.{name}", str(depth))
                results.setdefault(name, {})[action] = figures
                print(
                    f"{name:12} {action:6} {figures['memory']:7.2f} {figures['throughput']:7.0f}",
                    flush=True,
                )
    write(options.results, "checkpoints", {"MB": size, "formats": results})


if __name__ == "__main__":
    main()
