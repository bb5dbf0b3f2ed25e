"""Weights of a whole model from a file: all of them, or none."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import keras

from jaxlayer_core import keras_bridge
from jaxlayer_core.errors import StructureError


def load_weights(
    model: keras.Model, path: str | os.PathLike[str], skip_mismatch: bool = False
) -> None:
    """Loads the weights of a model, as `model.load_weights` does, but whole or not at all.

    Where one layer of many cannot be loaded, Keras leaves the others loaded and tells the
    reason of one. This puts back all variables, those of the optimizer too, and tells all
    reasons. No value is copied.

    Args:
        model: any Keras model that is built, with or without layers of ours.
        path: a file that `model.load_weights` takes: `.weights.h5`, `.weights.json`, `.keras`.
        skip_mismatch: whether to load only what fits, with warnings for the rest.

    Raises:
        StructureError: some objects could not be loaded, all of which it names. The model is
            as before, and so it is where the file cannot be opened, which raises what Keras
            raises.

    Example:
        >>> import keras, jaxlayer, os, tempfile
        >>> def make(units):
        ...     return keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])
        >>> path = os.path.join(tempfile.mkdtemp(), "model.weights.h5")
        >>> make(2).save_weights(path)
        >>> jaxlayer.load_weights(make(2), path)
        >>> jaxlayer.load_weights(make(4), path)
        Traceback (most recent call last):
            ...
        jaxlayer_core.errors.StructureError: 1 part of the model 'sequential_2' could not be ...
    """
    before = [(variable, variable.value) for variable in _variables(model)]
    try:
        # Not `model.load_weights`, which is the same but cuts Keras out of the traceback.
        keras.saving.load_weights(model, path, skip_mismatch=skip_mismatch)
    except BaseException as error:
        for variable, value in before:
            if variable.value is not value:
                variable.assign(value)
        failures = keras_bridge.loading_failures(error)
        if not failures:
            raise
        first = failures[0][1]
        raise StructureError(_message(model, path, failures), cause=first) from first


def _variables(model: keras.Model) -> list[keras.Variable]:
    """All variables of a model that a file may hold, each once."""
    optimizer = getattr(model, "optimizer", None)
    found = [
        *model.variables,
        *model.metrics_variables,
        *(optimizer.variables if optimizer is not None else ()),
    ]
    return list({id(variable): variable for variable in found}.values())


def _message(model: Any, path: Any, failures: Iterable[tuple[Any, Exception]]) -> str:
    parts = list(failures)
    count = f"{len(parts)} part{'s' if len(parts) > 1 else ''}"
    return (
        f"{count} of the model {model.name!r} could not be loaded from {str(path)!r}. The model "
        "is as it was before.\n" + "\n".join(f"- {_name(part)}: {error}" for part, error in parts)
    )


def _name(part: Any) -> str:
    name = getattr(part, "path", None) or getattr(part, "name", "")
    return f"{type(part).__name__} {name!r}"
