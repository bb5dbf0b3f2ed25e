"""An optimizer's variables in Keras' files, under paths."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from jaxlayer_core import keras_bridge, paths, weight_index, weights
from jaxlayer_core.variables import VariableTree
from jaxlayer_optax.weights import Weights


class Entry(NamedTuple):
    """A variable of an optimizer.

    Attributes:
        role: its path, up to that of the weight it belongs to.
        weight: the path of that weight; empty if it belongs to none.
        variable: the variable.
    """

    role: str
    weight: str
    variable: keras.Variable

    @property
    def name(self) -> str:
        """The whole path."""
        return f"{self.role}/{self.weight}" if self.weight else self.role


def entries(
    own: Sequence[keras.Variable],
    trained: Sequence[keras.Variable],
    beside: Mapping[str, Sequence[keras.Variable | None] | None],
    seen: Weights,
    state: VariableTree | None,
) -> list[Entry]:
    """All variables of an optimizer: first those of no weight, then weight by weight.

    Args:
        own: those of Keras that belong to no weight.
        trained: the weights that Keras trains.
        beside: those of Keras for each of `trained`, by role.
        seen: the weights that Optax trains.
        state: Optax' state.
    """
    found = [(-1, Entry(variable.name, "", variable)) for variable in own]
    names = [paths.show(path) for path in Weights(trained).paths]
    positions = {id(variable): position for position, variable in enumerate(trained)}
    for role, variables in beside.items():
        for position, variable in enumerate(variables or ()):
            if variable is not None:
                found.append((position, Entry(role, names[position], variable)))
    slots = zip(state.paths, state.variables, strict=True) if state is not None else ()
    for path, variable in slots:
        number = seen.at_end_of(path)
        if number is None:
            found.append((-1, Entry(paths.show(("state", *path)), "", variable)))
            continue
        role = paths.show(("state", *path[: -len(seen.paths[number])]))
        entry = Entry(role, paths.show(seen.paths[number]), variable)
        found.append((positions[id(seen.variables[number])], entry))
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


def save(variables: Sequence[Entry], store: Any) -> None:
    """Stores the variables.

    Args:
        variables: what `entries` gave.
        store: Keras' store of the optimizer, or a dict.
    """
    weights.save({entry.name: entry.variable for entry in variables}, store)


def load(optimizer: str, variables: Sequence[Entry] | None, store: Any) -> None:
    """Loads the variables.

    Args:
        optimizer: its name, for messages.
        variables: what `entries` gave; None if the optimizer is not built.
        store: Keras' store of the optimizer.

    Raises:
        StructureError: the store has others, or is damaged. Nothing is loaded.
    """
    if variables is None or weight_index.ENTRY not in store.keys():  # noqa: SIM118  # no dict
        why = (
            "the optimizer is not built"
            if variables is None
            else "the file has none that an OptaxOptimizer has saved"
        )
        warnings.warn(
            f"The state of the optimizer {optimizer!r} is not loaded: {why}.", stacklevel=2
        )
        return
    found = weight_index.decode(optimizer, np.asarray(store[weight_index.ENTRY]))
    named = {entry.name: entry.variable for entry in variables}
    if set(named) != set(found):
        named = _by_order(variables, list(found)) or named
    weights.load(optimizer, named, store, skip_mismatch=keras_bridge.is_skipping_mismatches())


def _by_order(variables: Sequence[Entry], found: Sequence[str]) -> dict[str, keras.Variable]:
    """The variables under the names in a file, where only the weights have others; or nothing.

    Both are in the order of the weights, and each weight has one name in the file.
    """
    if len(variables) != len(found):
        return {}
    names: dict[str, str] = {}
    for entry, name in zip(variables, found, strict=True):
        if not entry.weight:
            if entry.name != name:
                return {}
            continue
        role, weight = name[: len(entry.role) + 1], name[len(entry.role) + 1 :]
        if role != f"{entry.role}/" or names.setdefault(entry.weight, weight) != weight:
            return {}
    if len(set(names.values())) != len(names):
        return {}
    return dict(zip(found, (entry.variable for entry in variables), strict=True))
