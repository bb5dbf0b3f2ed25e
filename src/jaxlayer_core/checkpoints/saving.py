"""Saving a layer's variables to a file, whole or not at all."""

from __future__ import annotations

import concurrent.futures
import functools
import os
from concurrent.futures import Future
from pathlib import Path

from jaxlayer_core import files
from jaxlayer_core.checkpoints import installed, trees
from jaxlayer_core.checkpoints.format import Contents, Format
from jaxlayer_core.errors import CheckpointError, JaxLayerError
from jaxlayer_core.variables import VariableTree


def save(
    params: VariableTree,
    state: VariableTree,
    path: str | os.PathLike[str],
    *,
    format: str | Format | type[Format] | None = None,
    wait: bool = True,
) -> Future[None] | None:
    """Saves variables; see `StoringLayer.save_variables`.

    Args:
        params: the layer's params.
        state: its state.
        path: the file or folder to write or replace.
        format: None to go by the suffix.
        wait: whether to return only when it is written.

    Returns:
        None, or with `wait=False` what to wait on.

    Raises:
        CheckpointError: there is no such format, it cannot hold a leaf, or something else than
            such a file is in the way.
        MissingDependencyError: a package that the format needs is not installed.
    """
    path = Path(path)
    chosen = installed.find(path, format)
    _check_place(path, chosen)
    # Training that goes on meanwhile deletes the arrays that the variables have now.
    contents = trees.contents(params, state, copy=not wait)
    _check_reachable(contents)
    if not wait:
        return _writer().submit(_write, path, chosen, contents)
    _write(path, chosen, contents)
    return None


def _check_place(path: Path, format: Format) -> None:
    """Refuses to write where it would fail, or would remove what is no checkpoint."""
    if not path.absolute().parent.is_dir():
        raise CheckpointError(f"There is no folder {path.absolute().parent} to save {path} in.")
    if not path.is_dir():
        if format.markers and path.exists():
            raise CheckpointError(
                f"{path} is a file, and {format.label} makes a folder. Choose another path."
            )
        return
    if not any((path / marker).exists() for marker in format.markers) and any(path.iterdir()):
        raise CheckpointError(
            f"{path} is a folder with something else in it than variables saved as "
            f"{format.label}; it is not replaced. Choose another path."
        )


def _check_reachable(contents: Contents) -> None:
    """Refuses arrays that other processes have parts of."""
    for name, value in contents.named.items():
        if not value.is_fully_addressable:
            raise CheckpointError(
                f"`{name}` is spread over several processes, and save_variables writes what one "
                "process can reach. Use a checkpointer of the framework with the values of "
                "layer.variables_tree()."
            )


def _write(path: Path, format: Format, contents: Contents) -> None:
    try:
        with files.replacing(path) as temporary:
            format.write(temporary, contents)
    except JaxLayerError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"The variables cannot be written to {path} as {format.label}: "
            f"{type(error).__name__}: {error}. What was there is as it was.",
            cause=error,
        ) from error


@functools.cache
def _writer() -> concurrent.futures.Executor:
    """Writes one file after the other, so that the newest of one path stays."""
    return concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="jaxlayer-saving")
