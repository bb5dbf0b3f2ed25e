"""Saving and loading variables under their own paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from jaxlayer_core.errors import StructureError
from jaxlayer_core.variables import VariableTree

_ESCAPES = str.maketrans({"%": "%25", ".": "%2E", "\0": "%00", "/": "."})


def named(*trees: VariableTree) -> dict[str, keras.Variable]:
    """Variables of several trees by name.

    Returns:
        Name to variable, such as `params.Dense_0.kernel`; `/` would nest in an HDF5 file. Dots
        inside a name, and NUL, where HDF5 ends names, are escaped, so that names stay distinct.
    """
    return {
        name.translate(_ESCAPES): variable
        for tree in trees
        for name, variable in zip(tree.names, tree.variables, strict=True)
    }


def save(variables: Mapping[str, keras.Variable], store: Any) -> None:
    """Stores each variable under its name."""
    for name, variable in variables.items():
        store[name] = variable


def load(layer: str, variables: Mapping[str, keras.Variable], store: Any) -> None:
    """Loads each variable by its name.

    Args:
        layer: the layer's name, for errors.
        variables: what to load into.
        store: Keras' store of the layer.

    Raises:
        StructureError: the store has other names or shapes. Nothing is loaded then.
    """
    stored = set(store.keys())
    if stored != set(variables):
        missing, unknown = sorted(set(variables) - stored), sorted(stored - set(variables))
        raise StructureError(
            f"The file does not hold the variables of the layer {layer!r}. Missing from the "
            f"file: {missing[:10] or 'none'}; in the file but not in the layer: "
            f"{unknown[:10] or 'none'}. Load it into the model that saved it."
        )
    for name, variable in variables.items():
        shape = tuple(store[name].shape)
        if shape != tuple(variable.shape):
            raise StructureError(
                f"The file's `{name}` for the layer {layer!r} has shape {shape}, expected "
                f"{tuple(variable.shape)}."
            )
    for name, variable in variables.items():
        variable.assign(store[name])
