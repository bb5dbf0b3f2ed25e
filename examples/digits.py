"""What the digit examples share: the data, the picture and the closing report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib
import numpy as np
import rich
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

matplotlib.use("Agg")  # the examples also run where there is no screen
import matplotlib.pyplot as plt

BLUE, ORANGE, RED, GREY = "#2a6fbb", "#e08a1e", "#d62828", "#8a8f98"


class Options(NamedTuple):
    """What the command line says.

    Attributes:
        epochs: how long to train at most.
        output: folder of the picture.
        seed: of everything random but the split of the data.
    """

    epochs: int
    output: Path
    seed: int


def read_options(arguments: Sequence[str] | None, description: str, epochs: int) -> Options:
    """Reads the command line.

    Args:
        arguments: the command line without the program's name; None for the process's own.
        description: what the example does, for `--help`.
        epochs: the default of `--epochs`.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=epochs, help="how long to train at most")
    parser.add_argument("--output", type=Path, default="demo-output", help="folder of the picture")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, masks and batches")
    return Options(**vars(parser.parse_args(arguments)))


class Split(NamedTuple):
    """A part of the data.

    Attributes:
        images: float32 in [0, 1], of shape `(count, 8, 8, 1)`.
        labels: int32, of shape `(count,)`.
    """

    images: np.ndarray
    labels: np.ndarray


class Digits(NamedTuple):
    """Scikit-learn's 1797 handwritten digits in three parts.

    Attributes:
        train: for the weights; moved copies of every image make it larger.
        validation: for the callbacks that watch the training.
        test: looked at once, when the training is over.
    """

    train: Split
    validation: Split
    test: Split


def load() -> Digits:
    """Loads the digits; the parts are the same each time, and each has all ten digits alike."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).reshape(-1, 8, 8, 1).astype("float32")
    rest, test = _split(Split(images, labels.astype("int32")), held_out=360)
    train, validation = _split(rest, held_out=180)
    return Digits(_with_shifts(train), validation, test)


def _split(split: Split, held_out: int) -> tuple[Split, Split]:
    parts = train_test_split(
        *split, test_size=held_out, stratify=split.labels, shuffle=True, random_state=0
    )
    images, held_images, labels, held_labels = parts
    return Split(images, labels), Split(held_images, held_labels)


def _with_shifts(split: Split) -> Split:
    """Adds copies of every image that are moved by a pixel: left, right, up and down."""
    padded = np.pad(split.images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    offsets = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    moved = [padded[:, top : top + 8, left : left + 8] for top, left in offsets]
    return Split(np.concatenate(moved), np.tile(split.labels, len(offsets)))


def report(
    title: str,
    history: Mapping[str, Sequence[float]],
    test: Split,
    logits: np.ndarray,
    native_logits: jax.Array,
    picture: Path,
) -> None:
    """Says and draws how the training went, and how far Keras and the framework are apart.

    Args:
        title: name of the model.
        history: `History.history` of the training.
        test: the held-out digits.
        logits: what the Keras model makes of them.
        native_logits: what the framework makes of them, with the same weights.
        picture: file to write the picture to; its folder is made.
    """
    predicted = logits.argmax(axis=-1)
    right = int((predicted == test.labels).sum())
    difference = np.abs(logits - np.asarray(native_logits)).max()
    _draw(title, history, test, predicted, picture)

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_row("epochs trained", str(len(history["loss"])))
    table.add_row(
        "accuracy on held-out digits",
        f"[bold]{right / len(predicted):.2%}[/] ({right} of {len(predicted)})",
    )
    table.add_row("largest difference from the native model", f"[bold]{difference:g}[/]")
    rich.print(table)
    print(f"picture: {picture}")  # not in the table, which would cut a long path short


def _draw(
    title: str,
    history: Mapping[str, Sequence[float]],
    test: Split,
    predicted: np.ndarray,
    picture: Path,
) -> None:
    figure, axes = plt.subplot_mosaic(
        [["accuracy", "digits"], ["loss", "digits"]],
        width_ratios=[1, 1.5],
        figsize=(12.5, 5.2),
        dpi=120,
        layout="constrained",
    )
    figure.suptitle(title, fontsize=14, fontweight="bold")
    for name in ("accuracy", "loss"):
        _draw_curve(axes[name], name, history[name], history[f"val_{name}"])
    axes["accuracy"].legend(frameon=False, loc="lower right")
    axes["loss"].set_yscale("log")
    axes["loss"].set_xlabel("epoch")
    _draw_predictions(axes["digits"], test, predicted)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    plt.close(figure)


def _draw_curve(
    axes: Axes, name: str, training: Sequence[float], validation: Sequence[float]
) -> None:
    epochs = range(1, len(training) + 1)
    # A single epoch is a point, which only a marker shows.
    marker = "o" if len(training) == 1 else ""
    axes.plot(epochs, training, color=BLUE, marker=marker, label="training")
    axes.plot(epochs, validation, color=ORANGE, marker=marker, label="validation")
    axes.set_ylabel(name)
    axes.set_xlim(0.5, len(training) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color="#e6e8eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_predictions(axes: Axes, test: Split, predicted: np.ndarray) -> None:
    """Draws a page of digits over what the model takes them for; the wrong ones come first."""
    rows, columns, height, width = 6, 11, 14, 12
    wrong = predicted != test.labels
    shown = np.argsort(~wrong, kind="stable")[: rows * columns]
    page = np.zeros((rows * height, columns * width))
    for place, index in enumerate(shown):
        top, left = place // columns * height + 1, place % columns * width + 2
        page[top : top + 8, left : left + 8] = test.images[index, :, :, 0]
        said, color, weight = str(predicted[index]), GREY, "normal"
        if wrong[index]:
            said, color, weight = f"{said}, not {test.labels[index]}", RED, "bold"
            axes.add_patch(Rectangle((left - 1, top - 1), 9, 9, fill=False, color=RED, lw=2))
        middle = left + 3.5
        axes.text(
            middle, top + 9.8, said, color=color, weight=weight, size=9, ha="center", va="center"
        )
    axes.imshow(page, cmap="gray_r", vmin=0, vmax=1)
    axes.set_title(f"{wrong.sum()} wrong of {len(wrong)} held-out digits (in red)", fontsize=11)
    axes.set_axis_off()
