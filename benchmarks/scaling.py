"""Memory and communication of a step on 1, 2, 4 and 8 devices, beside the formulas for them.

    python benchmarks/scaling.py    # writes benchmarks/results/scaling.*, and into docs/scaling.md

The step is that of Keras' `fit`, as XLA compiles it for virtual devices of the CPU: memory is
what XLA says one device holds, communication the bytes that its collective operations
give one device. No times are taken. A step written with Flax, Optax and JAX stands beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
from documents import ROOT, replace_between
from measuring import RESULTS

sys.path.insert(0, str(ROOT / "examples"))  # the decoder, and the formulas

DEVICES = (1, 2, 4, 8)
SEQUENCES, LENGTH = 16, 64
SIZES = {"layers": 2, "width": 128, "heads": 8, "hidden": 256, "vocabulary": 512}
MODES = {
    "data": "data parallel",
    "tensor": "model parallel",
    "sharded": "both, params split over all",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """How a step is spread.

    Attributes:
        mode: a key of `MODES`.
        devices: how many there are.
        remat: whether blocks compute their values again in the backward pass.
    """

    mode: str
    devices: int
    remat: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """Devices along `batch` and along `model`."""
        along_model = {"data": 1, "tensor": self.devices, "sharded": 2 if self.devices > 2 else 1}
        return self.devices // along_model[self.mode], along_model[self.mode]

    def costs(self) -> Any:
        """The formulas."""
        from costs import Costs
        from decoder import Size

        is_sharded = self.mode == "sharded"
        return Costs(Size(**SIZES), SEQUENCES, LENGTH, *self.shape, is_sharded, self.remat)

    def rules(self) -> tuple[dict[str, str], list[tuple[str, str]]]:
        """Axes for the names in the model: of params, and while it is traced."""
        from decoder import ACTIVATIONS, SHARDED, TENSOR

        params = {"data": {}, "tensor": TENSOR, "sharded": SHARDED}[self.mode]
        axes = ("batch",) if self.mode == "data" else ("batch", "model")
        return params, [(name, axis) for name, axis in ACTIVATIONS if axis in axes]

    def mesh(self) -> Any:
        """The first devices."""
        import keras

        devices = keras.distribution.list_devices("cpu")[: self.devices]
        return keras.distribution.DeviceMesh(self.shape, ("batch", "model"), devices)


# What is compiled.


def keras_step(case: Case) -> Any:
    """The step of `fit`, compiled as Keras' trainer compiles it."""
    import flax.linen as nn
    import jax
    import keras
    import numpy as np
    from decoder import Decoder

    from jaxlayer import FlaxLayer

    keras.backend.clear_session(free_memory=False)
    costs = case.costs()
    layer = FlaxLayer(Decoder(costs.size, case.remat), seed=0, name="decoder")
    tokens = np.zeros((SEQUENCES, LENGTH), "int32")
    with scope(case, layer, tokens), nn.logical_axis_rules(case.rules()[1]):
        inputs = keras.Input((LENGTH,), dtype="int32")
        model = keras.Model(inputs, layer(inputs))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss)
        distribution = keras.distribution.distribution()
        batch = jax.device_put(tokens, distribution and rows_of(case))
        # Keras has no public word for what `fit` does before its first step.
        model._symbolic_build(data_batch=(batch, batch))
        state = model._get_jax_state(
            trainable_variables=True,
            non_trainable_variables=True,
            optimizer_variables=True,
            metrics_variables=True,
        )
        shardings = (None, model._get_state_sharding_spec()) if distribution else None
        step = jax.jit(model.train_step, donate_argnums=0, out_shardings=shardings)
        return step.lower(state, (batch, batch)).compile()


def scope(case: Case, layer: Any, tokens: Any) -> Any:
    """The distribution of a case."""
    import keras

    from jaxlayer import layout_map_from

    if case.devices == 1:
        return contextlib.nullcontext()
    if case.mode == "data":
        devices = keras.distribution.list_devices("cpu")[: case.devices]
        return keras.distribution.DataParallel(devices=devices).scope()
    layout_map = layout_map_from(layer, case.mesh(), case.rules()[0], inputs=tokens)
    return keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch").scope()


def rows_of(case: Case) -> Any:
    """The sharding of a batch."""
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(case.mesh().backend_mesh, PartitionSpec("batch"))


def native_step(case: Case) -> Any:
    """The same of Flax, Optax and JAX alone."""
    import flax.linen as nn
    import jax
    import optax
    from compiling import compile_step
    from decoder import Decoder

    module = Decoder(case.costs().size, case.remat)
    mesh = case.mesh().backend_mesh
    rules, activations = case.rules()
    tokens = jax.ShapeDtypeStruct((SEQUENCES, LENGTH), "int32", sharding=rows_of(case))
    made = jax.eval_shape(module.init, jax.random.key(0), tokens)
    specs = nn.logical_to_mesh_sharding(nn.get_partition_spec(made), mesh, list(rules.items()))
    params = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spec),
        nn.unbox(made),
        specs,
    )
    under_mesh = jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else mesh
    with under_mesh, nn.logical_axis_rules(activations):
        return compile_step(module.apply, params, tokens, optax.adam(1e-3))


def figures(step: Any) -> dict[str, Any]:
    """Memory and communication of a compiled step."""
    from compiling import collective_bytes

    sizes = step.memory_analysis()
    communicated = collective_bytes(step.as_text())
    return {
        "state": sizes.argument_size_in_bytes,
        "between": sizes.temp_size_in_bytes,
        "communicated": sum(communicated.values()),
        "kinds": communicated,
    }


def measure(case: Case) -> dict[str, Any]:
    """The figures of a case; runs where there are as many devices."""
    costs = case.costs()
    return {
        **dataclasses.asdict(case),
        "mesh": case.shape,
        "ours": figures(keras_step(case)),
        "native": figures(native_step(case)),
        "formula": {key: getattr(costs, key) for key in ("state", "between", "communicated")},
    }


# The report.


def cases(counts: Iterable[int] = DEVICES, remat: Iterable[bool] = (True, False)) -> list[Case]:
    """All of them; on one device the modes are the same."""
    modes = {1: ["data"]}
    return [Case(mode, n, r) for n in counts for mode in modes.get(n, MODES) for r in remat]


def run(wanted: Sequence[Case]) -> list[dict[str, Any]]:
    """Measures in a process that has as many devices as the largest case."""
    devices = max(case.devices for case in wanted)
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            "--worker",
            json.dumps([dataclasses.astuple(case) for case in wanted]),
        ],
        env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures as Markdown; those of a case with and without remat are one line."""
    lines = [
        "| KiB of each device | devices (batch x model) | state | between, with `remat` | "
        "without | communicated, with `remat` | by hand | without |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = {Case(row["mode"], row["devices"], row["remat"]): row for row in rows}
    for case in sorted({Case(c.mode, c.devices) for c in found}, key=order):
        kept, plain = (found[dataclasses.replace(case, remat=remat)] for remat in (True, False))
        cells = [
            MODES[case.mode] if case.devices > 1 else "alone",
            f"{case.devices} ({' x '.join(map(str, case.shape))})",
            beside(kept, "state"),
            beside(kept, "between"),
            beside(plain, "between"),
            beside(kept, "communicated"),
            f"{kept['native']['communicated'] / 1024:.0f}",
            beside(plain, "communicated"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def order(case: Case) -> tuple[bool, int, int]:
    """One device first, then mode by mode."""
    return case.devices > 1, [*MODES].index(case.mode), case.devices


def beside(row: Mapping[str, Any], key: str) -> str:
    """A figure, and that of the formula."""
    return f"{row['ours'][key] / 1024:.0f} ({row['formula'][key] / 1024:.0f})"


def draw(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Bars of what is measured, crosses for the formulas; with remat."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    titles = {
        "state": "params and optimizer, KiB",
        "between": "between arguments and results, KiB",
        "communicated": "communicated, KiB",
    }
    counts = DEVICES[1:]
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for offset, (mode, label) in enumerate(MODES.items()):
            shown = [r for r in rows if (r["mode"], r["remat"]) == (mode, True)]
            shown = [r for r in shown if r["devices"] > 1]
            places = [counts.index(r["devices"]) + 0.26 * (offset - 1) for r in shown]
            axis.bar(places, [r["ours"][key] / 1024 for r in shown], 0.24, label=label)
            axis.plot(places, [r["formula"][key] / 1024 for r in shown], "kx", markersize=5)
        axis.set_xticks(range(len(counts)), [f"{n} devices" for n in counts])
        axis.set_title(title, fontsize=10)
    axes[0].legend(fontsize=7)
    figure.suptitle("one device's share of a step (bars) and the formulas (crosses)", fontsize=11)
    figure.tight_layout()
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 and 2 devices; writes no file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps([measure(Case(*case)) for case in json.loads(options.worker)]))
        return
    rows = run(cases(DEVICES[:2] if options.quick else DEVICES))
    print(table(rows))
    if options.quick:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scaling.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, RESULTS / "scaling.svg")
    replace_between(ROOT / "docs" / "scaling.md", "scaling", table(rows))


if __name__ == "__main__":
    main()
