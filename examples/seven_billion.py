"""Lays a decoder of seven billion params out on 256 devices, on a machine that has none of them.

Nothing of the model is allocated: its layer is planned, its step lowered and compiled for 256
virtual devices, and XLA says what each of them would hold and be given.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import sys
import time
from collections.abc import Sequence

os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras reads it when it is imported
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=256"

import flax.linen as nn
import jax
import keras
import optax
from compiling import collective_bytes, compile_step
from costs import Costs
from decoder import ACTIVATIONS, SEVEN_BILLION, SHARDED, Decoder
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from jaxlayer import FlaxLayer, layout_map_from

MIB = 2**20


def compiled(costs: Costs) -> jax.stages.Compiled:
    """The training step with AdamW, compiled for a mesh, without any array."""
    layer = FlaxLayer(Decoder(costs.size, costs.remat), name="decoder")
    shape = (costs.batch, costs.model)
    devices = keras.distribution.list_devices("cpu")[: costs.batch * costs.model]
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), devices)
    rows = NamedSharding(mesh.backend_mesh, PartitionSpec("batch"))
    tokens = jax.ShapeDtypeStruct((costs.sequences, costs.length), "int32", sharding=rows)
    layout_map = layout_map_from(layer, mesh, SHARDED, inputs=tokens)
    parallel = keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch")
    with parallel.scope(), nn.logical_axis_rules(ACTIVATIONS):
        call_fn, params, state = layer.to_abstract(tokens)
        return compile_step(
            lambda params, tokens: call_fn(params, state, None, tokens, training=True)[0],
            params,
            tokens,
            optax.adamw(1e-4),
        )


def peak() -> float:
    """The most memory that this process has had, in MiB."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found / (MIB if sys.platform == "darwin" else 1024)


def report(costs: Costs, step: jax.stages.Compiled) -> Table:
    """The formulas beside what XLA says."""
    sizes = step.memory_analysis()
    communicated = sum(collective_bytes(step.as_text()).values())
    rows = {
        "params and AdamW's slots": (costs.state, sizes.argument_size_in_bytes),
        "between arguments and results": (costs.between, sizes.temp_size_in_bytes),
        "communicated in a step": (costs.communicated, communicated),
    }
    devices = costs.batch * costs.model
    table = Table(title=f"{costs.size.params / 1e9:.2f} billion params on {devices} devices, MiB")
    table.add_column("of each device")
    table.add_column("formula", justify="right")
    table.add_column("XLA", justify="right")
    for name, numbers in rows.items():
        table.add_row(name, *(f"{number / MIB:.0f}" for number in numbers))
    table.add_row("this process at its peak", "", f"{peak():.0f}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles the step and prints what a device holds and is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=SEVEN_BILLION.layers)
    parser.add_argument("--sequences", type=int, default=64, help="in a step")
    parser.add_argument("--length", type=int, default=2048, help="tokens in a sequence")
    parser.add_argument("--mesh", type=int, nargs=2, default=(16, 16), metavar=("BATCH", "MODEL"))
    parser.add_argument("--no-remat", action="store_true", help="keep values of blocks")
    options = parser.parse_args(arguments)
    costs = Costs(
        dataclasses.replace(SEVEN_BILLION, layers=options.layers),
        options.sequences,
        options.length,
        *options.mesh,
        sharded=True,
        remat=not options.no_remat,
    )
    began = time.perf_counter()
    Console(width=100).print(report(costs, compiled(costs)))
    print(f"planned and compiled in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
