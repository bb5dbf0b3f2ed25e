"""A table of a layer's variables, module by module of the model's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

Row = tuple[str, str, str, str, str]


def rows(variables: Sequence[tuple[str, keras.Variable]], frozen: frozenset[str]) -> list[Row]:
    """One row per variable: path, shape, dtype, size, and what happens to it in training.

    Args:
        variables: paths inside the layer, and variables; params and state.
        frozen: paths of those that are frozen.
    """
    table = []
    for name, variable in variables:
        fate = "frozen" if name in frozen else "trained" if variable.trainable else "not trained"
        size = f"{math.prod(variable.shape):,}"
        table.append((name, str(tuple(variable.shape)), str(variable.dtype), size, fate))
    return table


def show(
    title: str,
    variables: Sequence[tuple[str, keras.Variable]],
    frozen: frozenset[str],
    print_fn: Callable[[str], Any] | None,
) -> None:
    """Prints the table, a line between two modules, and the totals.

    Args:
        title: what stands above it.
        variables: as in `rows`.
        frozen: as in `rows`.
        print_fn: gets the text; None to print it to the terminal.
    """
    # Here, not above: Keras brings rich, and only this needs it.
    import rich.console
    import rich.table

    table = rich.table.Table(title=title, title_justify="left")
    for column in ("path", "shape", "dtype", "size", ""):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    module = None
    for row in rows(variables, frozen):
        parent = row[0].rpartition("/")[0]
        if module is not None and parent != module:
            table.add_section()
        module = parent
        table.add_row(*row)
    sizes = [math.prod(variable.shape) for _, variable in variables]
    trained = sum(math.prod(v.shape) for _, v in variables if v.trainable)
    total = sum(sizes)
    table.caption = f"{total:,} values, {trained:,} of them trained"
    table.caption_justify = "left"
    if print_fn is None:
        rich.console.Console().print(table)
        return
    console = rich.console.Console(width=120, record=False)
    with console.capture() as captured:
        console.print(table)
    print_fn(captured.get())
