"""Pickles of params and state: read only where a user says that they trust them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jaxlayer_core.checkpoints import Contents, Format, Source
from jaxlayer_core.errors import CheckpointError

_NPY = b"\x93NUMPY"


def unpickle(path: str | os.PathLike[str], trust: bool = False) -> Any:
    """Reads params, or what else was pickled: with `pickle.dump`, `np.save` or `jnp.save`.

    **A pickle is a program, and reading it runs it.** Whoever made the file, or could change it,
    can do on this machine whatever you can do. Only read what you made yourself, or got from
    somebody whom you would let run code here.

    Args:
        path: of the file.
        trust: whether you trust whoever made the file.

    Returns:
        What was pickled, with Haiku's own mappings turned into dicts. `layer.load_variables`
        takes it: params, or the tuple `(params, state)`.

    Raises:
        CheckpointError: `trust` is not True, or the file is no pickle.

    Example:
        >>> import pathlib, pickle, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "params.pkl"
        >>> _ = path.write_bytes(pickle.dumps({"linear": {"w": np.ones((3, 2))}}))
        >>> unpickle(path, trust=True)["linear"]["w"].shape
        (3, 2)
    """
    if trust is not True:
        raise CheckpointError(
            f"{path} may be a pickle, which runs code when it is read: whoever made the file "
            "could do anything on this machine. If you trust it, use "
            "jaxlayer_haiku.unpickle(path, trust=True); better, get the arrays as npz or "
            "safetensors."
        )
    try:
        with Path(path).open("rb") as file:
            is_npy = file.read(len(_NPY)) == _NPY
            file.seek(0)
            found = np.load(file, allow_pickle=True) if is_npy else pickle.load(file)
    except Exception as error:  # what a pickle raises is up to the pickle
        raise CheckpointError(
            f"{path} cannot be unpickled: {type(error).__name__}: {error}.", cause=error
        ) from error
    if isinstance(found, np.ndarray) and found.dtype == object and found.shape == ():
        found = found.item()
    return _plain(found)


class PickleFormat(Format):
    """Says what to do instead: `load_variables` and `save_variables` do not pickle."""

    label = "pickle"

    def open(self, path: Path) -> AbstractContextManager[Source]:
        """Refuses.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            f"{path} looks like a pickle, which runs code when it is read, so load_variables does "
            "not read it. If you trust whoever made it: "
            f"layer.load_variables(jaxlayer_haiku.unpickle({str(path)!r}, trust=True))."
        )

    def write(self, path: Path, contents: Contents) -> NoReturn:
        """Refuses.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            "save_variables does not pickle, since a pickle runs code when it is read. Choose "
            "another suffix, such as .npz or .safetensors."
        )


def _plain(tree: Any) -> Any:
    """The tree with dicts in place of Haiku's mappings, wherever they are."""

    def plain(node: Any) -> Any:
        return {key: _plain(value) for key, value in node.items()} if is_mapping(node) else node

    def is_mapping(node: Any) -> bool:
        return isinstance(node, Mapping)

    return jax.tree.map(plain, tree, is_leaf=is_mapping)
