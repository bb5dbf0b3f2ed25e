"""Orbax: a folder, in which each device's part of each array is on its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxlayer_core import paths, rng
from jaxlayer_core.checkpoints import installed
from jaxlayer_core.checkpoints.format import Contents, Format, Source
from jaxlayer_core.errors import CheckpointError
from jaxlayer_core.leaves import is_array
from jaxlayer_core.specs import ArraySpec

_PACKAGE = "orbax.checkpoint"


class OrbaxFormat(Format):
    """What `StandardCheckpointer` and `PyTreeCheckpointer` write and read.

    Arrays are restored straight into the sharding of the variables, in parallel, so they are all
    there before the first variable gets its own: for a moment, old and new values are held.
    """

    label = "an Orbax checkpoint"
    markers = ("_METADATA", "_CHECKPOINT_METADATA")
    is_shared = True

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[Source]:
        """Reads the tree of shapes and dtypes."""
        package = installed.require(_PACKAGE)
        with package.Checkpointer(package.PyTreeCheckpointHandler()) as checkpointer:
            yield OrbaxSource(_item(path), package, checkpointer)

    def write(self, path: Path, contents: Contents) -> None:
        """Writes all arrays; leaves that are none become None."""
        package = installed.require(_PACKAGE)
        for name, value in contents.named.items():
            if value.size == 0:
                raise CheckpointError(
                    f"Orbax cannot hold `{name}`, of shape {value.shape}: it refuses arrays "
                    "without elements. npz, safetensors and msgpack can."
                )
        tree = jax.tree.map(lambda leaf: leaf if is_array(leaf) else None, contents.tree)
        with package.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), tree)


class OrbaxSource(Source):
    """The arrays of a folder."""

    def __init__(self, path: Path, package: Any, checkpointer: Any) -> None:
        self._path = path.absolute()
        self._package = package
        self._checkpointer = checkpointer
        tree = checkpointer.metadata(self._path).item_metadata.tree
        named, self._treedef = paths.flatten(tree)
        self._names = ["/".join(path_of_leaf) for path_of_leaf, _ in named]
        self._specs = {
            name: ArraySpec(tuple(leaf.shape), jax.numpy.dtype(leaf.dtype))
            for name, (_, leaf) in zip(self._names, named, strict=True)
            if getattr(leaf, "shape", None) is not None and leaf.dtype is not None
        }

    @property
    def specs(self) -> Mapping[str, ArraySpec]:
        """Shapes and dtypes by path."""
        return self._specs

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[tuple[str, Any]]:
        """Restores all that is wanted, and only that, each array in its sharding."""
        placeholder = self._package.PLACEHOLDER
        arguments = {name: self._arguments(target) for name, target in wanted.items()}
        restored = self._checkpointer.restore(
            self._path,
            args=self._package.args.PyTreeRestore(
                item=self._tree(wanted, placeholder),
                restore_args=self._tree(arguments, self._package.RestoreArgs()),
            ),
        )
        leaves = self._treedef.flatten_up_to(restored)
        del restored
        for number, name in enumerate(self._names):
            if name in wanted:
                value, leaves[number] = leaves[number], None  # held no longer than it must be
                yield name, jax.random.key_data(value) if rng.is_key(value) else value

    def _arguments(self, target: jax.ShapeDtypeStruct) -> Any:
        return self._package.ArrayRestoreArgs(
            sharding=target.sharding, global_shape=target.shape, dtype=target.dtype
        )

    def _tree(self, values: Mapping[str, Any], rest: Any) -> Any:
        """The tree that is stored, with a value for each name and `rest` everywhere else."""
        leaves = [values.get(name, rest) for name in self._names]
        return jax.tree_util.tree_unflatten(self._treedef, leaves)


def _item(path: Path) -> Path:
    """The folder of the tree itself: a `CheckpointManager` puts items into a step's folder."""
    if _is_tree(path):
        return path
    items = [child for child in sorted(path.iterdir()) if child.is_dir() and _is_tree(child)]
    if len(items) == 1:
        return items[0]
    inside = ", ".join(child.name for child in items or _folders(path)) or "none"
    raise CheckpointError(
        f"{path} is not an Orbax checkpoint of one tree: it has no file _METADATA. Folders in it: "
        f"{inside}. Give the path of the one that is meant."
    )


def _is_tree(path: Path) -> bool:
    return (path / "_METADATA").exists()


def _folders(path: Path) -> Iterable[Path]:
    return (child for child in sorted(path.iterdir()) if child.is_dir())
