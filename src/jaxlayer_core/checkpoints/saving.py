"""Saving a layer's variables to a file, whole or not at all."""

from __future__ import annotations

import concurrent.futures
import functools
import os
from concurrent.futures import Future
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from jaxlayer_core import files, processes
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
        CheckpointError: there is no such format, it cannot hold a leaf, something else than
            such a file is in the way, or several processes cannot save so.
        MissingDependencyError: a package that the format needs is not installed.
    """
    path = Path(path)
    chosen = installed.find(path, format)
    _check_place(path, chosen)
    # Training that goes on meanwhile deletes the arrays that the variables have now.
    contents = trees.contents(params, state, copy=not wait)
    _check_processes(contents, chosen, wait)
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


def _check_processes(contents: Contents, format: Format, wait: bool) -> None:
    """Refuses what several processes cannot do, alone or together."""
    if format.is_shared:
        if jax.process_count() > 1 and not wait:
            # They would wait for each other here and in the training, in any order, for ever.
            raise CheckpointError(
                f"{format.label[0].upper()}{format.label[1:]} is written by all "
                f"{jax.process_count()} processes together, which save_variables cannot do in the "
                "background. Leave out wait=False; or use keras.callbacks.OrbaxCheckpoint(..., "
                "save_on_background=True) in `fit`."
            )
        return
    for name, value in contents.named.items():
        if not processes.is_readable(value):
            raise CheckpointError(
                f"`{name}` is split over several processes, and {format.label} is written by one, "
                "which can reach its own part only. Choose Orbax, a folder that all of them "
                "write together: save_variables('variables.orbax')."
            )


def _write(path: Path, format: Format, contents: Contents) -> None:
    try:
        if jax.process_count() > 1 and format.is_shared:
            _write_together(path, format, contents)
            return
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


def _write_together(path: Path, format: Format, contents: Contents) -> None:
    """Writes one folder from all processes, which see the same disk; the first renames it."""
    shared = path.absolute().with_name(f".together.{path.name}")
    is_first = jax.process_index() == 0
    if is_first:
        files.remove(shared)
    multihost_utils.sync_global_devices(f"jaxlayer is about to write {path.name}")
    format.write(shared, contents)
    multihost_utils.sync_global_devices(f"jaxlayer has written {path.name}")
    if is_first:
        with files.replacing(path) as temporary:
            os.rename(shared, temporary)
    multihost_utils.sync_global_devices(f"jaxlayer has renamed {path.name}")


@functools.cache
def _writer() -> concurrent.futures.Executor:
    """Writes one file after the other, so that the newest of one path stays."""
    return concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="jaxlayer-saving")
