"""Saving and loading variables under their own paths, in the stores of Keras' files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from jaxlayer_core import matching, placing, processes, weight_index, weight_sources
from jaxlayer_core.errors import CheckpointError, StructureError
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.weight_index import Record, UnreadableError
from jaxlayer_core.weight_sources import Source


def save(variables: Mapping[str, keras.Variable], store: Any) -> None:
    """Stores each variable under its path, and an index of them all.

    Args:
        variables: by path, such as `params/Dense_0/kernel`.
        store: Keras' store of the layer, or a dict.

    Raises:
        CheckpointError: other processes have parts of a variable. Nothing is stored.
    """
    for variable in variables.values():
        if not processes.is_readable(variable.value):
            raise CheckpointError(
                f"`{variable.path}` is split over several processes, and Keras' files are "
                "written by one, which can reach its own part only. All of them write an Orbax "
                "folder together: keras.callbacks.OrbaxCheckpoint in `fit`, for the whole model, "
                "or layer.save_variables('variables.orbax')."
            )
    records = {}
    for path, variable in variables.items():
        value = keras.ops.convert_to_numpy(variable.value)
        store[weight_sources.entry(path)] = weight_index.pack(value)
        records[path] = Record.of(value)
    store[weight_index.ENTRY] = weight_index.encode(records)


def load(
    layer: str,
    variables: Mapping[str, keras.Variable],
    store: Any,
    *,
    skip_mismatch: bool = False,
) -> None:
    """Loads each variable by its path. All is checked before the first one is assigned.

    Leaves are read one by one, twice: the weights are never in memory a second time.

    Args:
        layer: the layer's name, for messages.
        variables: what to load into, by path.
        store: Keras' store of the layer. Also read: those of earlier versions, without an
            index, and those of Keras' own layers for JAX, which number the weights (a
            UserWarning then says how they were understood).
        skip_mismatch: whether to load only the leaves that fit, and say in a UserWarning
            which do not.

    Raises:
        StructureError: other leaves, shapes or kinds of dtypes, or damage. Nothing is loaded.
    """
    expected = {path: _spec(variable) for path, variable in variables.items()}
    source = weight_sources.open_store(layer, expected, store)
    for name in source.lacks:
        expected.pop(name, None)
    mismatch = matching.compare(expected, source.specs)
    if mismatch and not skip_mismatch:
        raise StructureError(
            f"The file does not hold the variables of the layer {layer!r}. Nothing was loaded.\n"
            f"{mismatch.describe()}\n"
            "Load it into the model that saved it, or load only what fits with skip_mismatch=True."
        )
    _check(layer, source, mismatch.matched)
    for path in mismatch.matched:
        _assign(variables[path], source.read(path))
    if mismatch:
        warnings.warn(
            f"The layer {layer!r} loaded {len(mismatch.matched)} of its {len(expected)} "
            f"variables and skipped the others.\n{mismatch.describe()}",
            UserWarning,
            stacklevel=2,
        )


def _assign(variable: keras.Variable, value: Any) -> None:
    """Gives a variable its value; one that is split gets it in its shards."""
    present = variable.value
    if not present.sharding.is_fully_replicated:
        value = placing.copy_of(np.asarray(value), present.sharding, present.dtype)
    variable.assign(value)


def _check(layer: str, source: Source, paths: Iterable[str]) -> None:
    """Reads all leaves, so that damage shows before anything is assigned."""
    damaged = {}
    for path in paths:
        try:
            source.read(path)
        except UnreadableError as error:
            damaged[path] = error
    if damaged:
        lines = matching.cut([f"{path}: {error}" for path, error in damaged.items()])
        first = next(iter(damaged.values()))
        raise StructureError(
            f"The file's weights of the layer {layer!r} are damaged. Nothing was loaded.\n"
            + "\n".join(lines)
            + "\nTake another copy of the file.",
            cause=first,
        ) from first


def _spec(variable: keras.Variable) -> ArraySpec:
    return ArraySpec(tuple(variable.shape), np.dtype(variable.dtype))
