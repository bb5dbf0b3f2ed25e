"""Tables and pictures out of results/*.json, into README.md and docs/.

python benchmarks/report.py
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from documents import ROOT, replace_between
from measuring import RESULTS, SCALES
from models import CASES

matplotlib.rcParams["svg.hashsalt"] = "jaxlayer"  # the same picture of the same figures
Row = dict[str, Any]

SIDES = {"ours": "jaxlayer", "wrapped": "Keras' own wrapper", "keras": "Keras' own layers"}
COLORS = {"native": "#8a8f98", "ours": "#2a6fbb", "wrapped": "#d62828", "keras": "#e09f3e"}
STEPS = ("eager call", "fit step", "evaluate step", "predict step", "train_on_batch")
BUILDING = ("build", "build memory", "first call", "first fit", "first fit memory")
FILES = ("save", "save memory", "save throughput", "load", "load memory", "load throughput")


def rows_of(name: str) -> list[Row]:
    """The rows of a file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def by_model(rows: Sequence[Row], figures: Sequence[str]) -> dict[str, dict[str, Row]]:
    """Rows by model and figure, in the order of the figures."""
    found: dict[str, dict[str, Row]] = {row["model"]: {} for row in rows}
    for figure in figures:
        for row in rows:
            if row["figure"] == figure:
                found[row["model"]][figure] = row
    return found


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def ratio(row: Row, side: str) -> str:
    """To native, with its quartiles."""
    if f"{side}/native" not in row:
        return "-"
    low, high = row[f"{side} spread"]
    return f"{row[f'{side}/native']:.2f} ({low:.2f} to {high:.2f})"


def absolute(row: Row, side: str) -> str:
    """A side's own figure."""
    if side not in row:
        return "-"
    value = max(0.0, row[side])
    return f"{value:,.0f} {row['unit']}" if value >= 100 else f"{value:.2g} {row['unit']}"


def conditions(name: str) -> str:
    """What the figures of a file depend on."""
    found = json.loads((RESULTS / f"{name}.json").read_text())["environment"]
    rest = ", ".join(f"{key} {value}" for key, value in found.items() if key in VERSIONS)
    cores = f"{found['cores']} core{'s' if found['cores'] != 1 else ''}"
    return f"\n\n({found['device']}, {cores}, {rest}.)"


VERSIONS = ("keras", "jax", "flax", "dm-haiku", "optax", "tensorflow")


def short_table(rows: Sequence[Row]) -> str:
    """Ours to native: models down, figures across."""
    figures = (*STEPS, *BUILDING)
    lines = [
        [CASES[model].title, *(f"{row['ours/native']:.2f}" for row in found.values())]
        for model, found in by_model(rows, figures).items()
    ]
    return table(("", *figures), lines) + conditions("overhead")


def aims_table(rows: Sequence[Row], leaves: Sequence[Row]) -> str:
    """What was aimed at, and the models that do not reach it."""
    lines = []
    for figure, aim in AIMS.items():
        found = [row for row in rows if row["figure"] == figure and "ours/native" in row]
        if figure == "fit step":
            found = [row for row in found if row["native"] / SCALES[row["unit"]] >= 0.01]
        beyond = [row for row in found if row["ours/native"] > aim]
        shown = [f"{CASES[row['model']].title} {row['ours/native']:.3f}" for row in beyond]
        reached = f"{len(found) - len(beyond)} of {len(found)}"
        lines.append([SHOWN_AIMS.get(figure, figure), f"{aim}", reached, "; ".join(shown) or "-"])
    both = {model: together(found) for model, found in by_model(rows, TOGETHER).items()}
    beyond_both = [f"{CASES[m].title} {ratio:.3f}" for m, ratio in both.items() if ratio > 1.05]
    reached = f"{len(both) - len(beyond_both)} of {len(both)}"
    lines.append([" and ".join(TOGETHER), "1.05", reached, "; ".join(beyond_both) or "-"])
    for figure in dict.fromkeys(row["figure"] for row in leaves):
        costs = {row["leaves"]: per_leaf(row, "ours") for row in leaves if row["figure"] == figure}
        growth = costs[max(costs)] / costs[100]
        own = {row["leaves"]: per_leaf(row, "native") for row in leaves if row["figure"] == figure}
        native = own[max(own)] / own[100]
        shown = f"{growth:.2f} (native {native:.2f})"
        reached = "yes" if growth <= max(1.0, native) * 1.1 else "no"
        lines.append(
            [f"{figure}: cost of a leaf, {max(costs):,} to 100", "1, or native's", reached, shown]
        )
    return table(("", "at most", "models that reach it", "the others"), lines)


TOGETHER = ("build", "first call")


def together(found: dict[str, Row]) -> float:
    """Ratio of the sums of figures: what one leaves out, another may have to do."""
    ours, native = (sum(found[name][side] for name in TOGETHER) for side in ("ours", "native"))
    return ours / native


AIMS = {"eager call": 1.2, "first call": 1.05, "fit step": 1.02, "build": 1.0, "build memory": 1.05}
SHOWN_AIMS = {"fit step": "fit step of 10 ms or more"}


def long_table(rows: Sequence[Row], figures: Sequence[str], cell: Callable[..., str]) -> str:
    """All sides, a line for each model and figure."""
    lines = [
        [CASES[model].title, figure, absolute(row, "native"), *(cell(row, side) for side in SIDES)]
        for model, found in by_model(rows, figures).items()
        for figure, row in found.items()
    ]
    return table(("model", "figure", "native", *SIDES.values()), lines)


def leaves_table(rows: Sequence[Row]) -> str:
    """Microseconds per leaf: figures down, numbers of leaves across."""
    counts = list(dict.fromkeys(row["leaves"] for row in rows))
    lines = []
    for figure in dict.fromkeys(row["figure"] for row in rows):
        own = [row for row in rows if row["figure"] == figure]
        for side in [side for side in own[0] if side in LEAVES]:
            costs = [f"{per_leaf(row, side):.3g}" for row in own]
            lines.append([figure, LEAVES[side], *costs])
    return table(("us per leaf", "", *(f"{n:,} leaves" for n in counts)), lines)


LEAVES = {"native": "native", "ours": "jaxlayer", "ours, npz": "jaxlayer, npz"}


def per_leaf(row: Row, side: str) -> float:
    """Microseconds."""
    return row[side] / SCALES[row["unit"]] * 1e6 / row["leaves"]


def options_table(training: dict[str, list[Row]]) -> str:
    """What options of a layer make of a step, of memory and of a long life."""
    lines = []
    for row in training["step time"]:
        low, high = row["spread"]
        lines.append([row["option"], f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"])
    kept = {row["remat"]: f"{row['kept MiB']:.3g} MiB" for row in training["remat"]}
    grown = [f"{row['what']}: {row['MiB']:.1f} MiB" for row in training["long life"]]
    curves = [
        f"{row['largest relative difference']:.0e} ({row['framework']})"
        for row in training["loss curves"]
    ]
    return f"""{table(("option", "time of a step, ratio to none (quartiles)"), lines)}

Kept of the forward pass of 12 blocks for the backward pass: {kept["False"]}; with
`remat="dots_saveable"` {kept["dots_saveable"]}, with `remat=True` {kept["True"]}. Growth of
memory in a long life: {", ".join(grown)}. Largest relative difference between the losses of
200 steps of `fit` and those of an optax loop from the same weights and keys:
{", ".join(curves)}."""


def programs_table(models: dict[str, Row]) -> str:
    """What a stored program costs beside the model itself."""
    lines = []
    for name, row in models.items():
        native, program = row["times"]["native"], row["times"]["program"]
        ratios = [f"{program[key] / native[key]:.2f}" for key in ("prediction", "gradient")]
        sizes = [f"{row['bytes'] / 1e3:.0f} KB", f"{row['weights'] / 1e6:.2g} MB"]
        lines.append([PROGRAMS[name], *sizes, f"{program['config to layer']:.2f} s", *ratios])
    head = ("model", "program in the file", "its weights", "read and checked")
    return table((*head, "prediction, program / native", "gradient, program / native"), lines)


PROGRAMS = {
    "mlp": "MLP, 10 layers",
    "cnn": "CNN, 3 blocks",
    "transformer": "transformer, 12 layers",
    "resnet50": "`hk.nets.ResNet50`",
}


def checkpoints_table(found: Row) -> str:
    """Memory of saving and loading beyond the variables, and speed."""
    lines = [
        [
            name,
            *(f"{one[action]['memory']:.2f}" for action in one),
            *(f"{one[action]['throughput']:.0f}" for action in one),
        ]
        for name, one in found["formats"].items()
    ]
    return table(("format", "save", "load", "save, MB/s", "load, MB/s"), lines)


def draw_ratios(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Bars of ratios, a panel for each figure."""
    shown = ("eager call", "fit step", "build", "build memory", "first fit")
    picture, axes = plt.subplots(1, len(shown), figsize=(15, 3.4), sharey=True)
    for axis, name in zip(axes, shown, strict=True):
        found = {row["model"]: row for row in rows if row["figure"] == name}
        for offset, (side, label) in enumerate(SIDES.items()):
            bars = [(n, row) for n, row in enumerate(found.values()) if f"{side}/native" in row]
            places = [n + 0.26 * (offset - 1) for n, _ in bars]
            heights = [row[f"{side}/native"] for _, row in bars]
            spread = [row[f"{side} spread"] for _, row in bars]
            reach = [
                [max(0.0, h - low) for h, (low, _) in zip(heights, spread, strict=True)],
                [max(0.0, high - h) for h, (_, high) in zip(heights, spread, strict=True)],
            ]
            axis.bar(places, heights, 0.24, yerr=reach, label=label, color=COLORS[side])
        axis.axhline(1, color="#444444", linewidth=0.8)
        axis.set_yscale("log")
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(found)), list(found), rotation=30, fontsize=8)
    axes[0].set_ylabel("ratio to native (1 = as by hand)")
    axes[0].legend(fontsize=7)
    picture.tight_layout()
    picture.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(picture)


def draw_leaves(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Cost per leaf against the number of leaves."""
    figures = list(dict.fromkeys(row["figure"] for row in rows))
    picture, axes = plt.subplots(1, len(figures), figsize=(15, 3.2))
    for axis, name in zip(axes, figures, strict=True):
        own = [row for row in rows if row["figure"] == name]
        for side in ("native", "ours"):
            costs = [per_leaf(row, side) for row in own]
            counts = [row["leaves"] for row in own]
            axis.plot(counts, costs, "o-", label=LEAVES[side], color=COLORS[side])
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("leaves", fontsize=8)
    axes[0].set_ylabel("us per leaf")
    axes[0].legend(fontsize=7)
    picture.tight_layout()
    picture.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(picture)


def main() -> None:
    """Writes all of them."""
    rows = rows_of("overhead") + rows_of("once")
    leaves = rows_of("leaves")
    draw_ratios(rows, RESULTS / "overhead.svg")
    draw_leaves(leaves, RESULTS / "leaves.svg")
    performance = ROOT / "docs" / "performance.md"
    replace_between(ROOT / "README.md", "overhead", short_table(rows))
    replace_between(performance, "steps", long_table(rows, STEPS, ratio) + conditions("overhead"))
    replace_between(performance, "building", long_table(rows, BUILDING, ratio) + conditions("once"))
    replace_between(performance, "files", long_table(rows, FILES, absolute))
    replace_between(performance, "aims", aims_table(rows, leaves))
    replace_between(performance, "leaves", leaves_table(leaves) + conditions("leaves"))
    training = json.loads((RESULTS / "training.json").read_text())
    replace_between(performance, "options", options_table(training) + conditions("training"))
    saving = ROOT / "docs" / "saving.md"
    found = json.loads((RESULTS / "programs.json").read_text())
    replace_between(saving, "programs", programs_table(found["models"]) + conditions("programs"))
    found = json.loads((RESULTS / "checkpoints.json").read_text())
    replace_between(saving, "checkpoints", checkpoints_table(found) + conditions("checkpoints"))


if __name__ == "__main__":
    main()
