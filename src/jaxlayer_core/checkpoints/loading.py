"""Loading a layer's variables from a file or a tree: whole or, if asked, what fits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import keras

from jaxlayer_core import files, matching, placing
from jaxlayer_core.checkpoints import installed, naming
from jaxlayer_core.checkpoints.format import Format, Source
from jaxlayer_core.checkpoints.trees import TreeSource
from jaxlayer_core.errors import CheckpointError, JaxLayerError, StructureError
from jaxlayer_core.pure import PyTree
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.variables import VariableTree


class Loaded(NamedTuple):
    """What came of loading, by the layer's paths.

    Attributes:
        loaded: path to the name that the source has for it.
        missing: variables that the source has not, with what is expected.
        unexpected: arrays that only the source has, with what is there.
        misshapen: arrays of another shape or kind of dtype, with what is expected and what is
            there.
    """

    loaded: dict[str, str]
    missing: dict[str, ArraySpec]
    unexpected: dict[str, ArraySpec]
    misshapen: dict[str, tuple[ArraySpec, ArraySpec]]


def load(
    layer: str,
    trees: Sequence[VariableTree],
    source: str | os.PathLike[str] | PyTree,
    *,
    prefix: str = "",
    rename: Mapping[str, str] | None = None,
    strict: bool = True,
    format: str | Format | type[Format] | None = None,
    passed_over: Collection[str] = (),
) -> Loaded:
    """Loads variables; see `StoringLayer.load_variables`.

    Args:
        layer: the layer's name, for errors.
        trees: its params and its state.
        source: a path, or a pytree of arrays.
        prefix: where in the source the variables stand.
        rename: regular expression to replacement, for the source's paths.
        strict: whether everything must fit.
        format: of the file; None to go by its suffix.
        passed_over: paths of the model that are no variables of the layer.

    Raises:
        StructureError: names, shapes or dtypes do not fit. Nothing is loaded then.
        CheckpointError: a file is not there, is damaged, or is of no known format. Likewise.
        MissingDependencyError: a package that its format needs is not installed.
        PatternError: `rename` is malformed.
    """
    naming.check(rename or {})
    with _opened(source, format) as (found, shown):
        variables = {
            n: v for tree in trees for n, v in zip(tree.names, tree.variables, strict=True)
        }
        own = [tree.names for tree in trees]
        translated = naming.translate(found.specs, own, prefix, rename or {})
        names = {n: path for n, path in translated.items() if path not in passed_over}
        mismatch = matching.compare(
            {path: _spec(variable) for path, variable in variables.items()},
            {path: found.specs[name] for name, path in names.items()},
        )
        if strict and mismatch:
            raise StructureError(
                f"{shown} does not hold the variables of the layer {layer!r}. Nothing was "
                f"loaded.\n{mismatch.describe('the source')}\nprefix= says where in it the "
                "variables stand, rename={expression: replacement} what they are called there; "
                "strict=False loads what fits."
            )
        matched = set(mismatch.matched)
        loaded = {path: name for name, path in names.items() if path in matched}
        _assign(found, {name: variables[path] for path, name in loaded.items()})
    return Loaded(loaded, mismatch.missing, mismatch.unexpected, mismatch.misshapen)


def _opened(
    source: Any, format: str | Format | type[Format] | None
) -> AbstractContextManager[tuple[Source, str]]:
    """What to read from, and what it is called."""
    if isinstance(source, str | os.PathLike):
        return _opened_file(Path(source), format)
    return contextlib.nullcontext((TreeSource(source), f"The {type(source).__name__}"))


@contextlib.contextmanager
def _opened_file(
    path: Path, format: str | Format | type[Format] | None
) -> Iterator[tuple[Source, str]]:
    there = files.current(path)
    chosen = installed.find(there, format)
    if not there.exists():
        raise CheckpointError(f"There is no file or folder {path}.")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_explained(path, chosen))
        yield stack.enter_context(chosen.open(there)), str(path)


@contextlib.contextmanager
def _explained(path: Path, format: Format) -> Iterator[None]:
    """Turns what a format's library raises into our error."""
    try:
        yield
    except JaxLayerError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as {format.label}: {type(error).__name__}: {error}. It is "
            "damaged, cut off, or of another format (format= says which).",
            cause=error,
        ) from error


def _spec(variable: keras.Variable) -> ArraySpec:
    return ArraySpec(tuple(variable.shape), jax.numpy.dtype(variable.dtype))


def _assign(source: Source, variables: Mapping[str, keras.Variable]) -> None:
    """Gives variables the values of a source, each in the sharding that it has already."""
    wanted = {
        name: jax.ShapeDtypeStruct(v.shape, v.value.dtype, sharding=v.value.sharding)
        for name, v in variables.items()
    }
    for name, value in source.read(wanted):
        target = wanted[name]
        value = placing.moved(value.astype(target.dtype, copy=False), target.sharding)
        variables[name].assign(value)
