"""Names for the leaves of a pytree: the segments of their paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax

Path = tuple[str, ...]


def segments(key_path: Iterable[Any]) -> Path:
    """Segments of one JAX key path; Haiku's `mlp/~/linear_0` counts as three.

    Args:
        key_path: keys as `jax.tree_util.tree_flatten_with_path` gives them.

    Returns:
        Non-empty strings without `/`, as Keras demands of names.

    Example:
        >>> import jax
        >>> (path, _), = jax.tree_util.tree_flatten_with_path({"mlp/~/linear_0": {"w": 1}})[0]
        >>> segments(path)
        ('mlp', '~', 'linear_0', 'w')
    """
    parts = (
        part for key in key_path for part in jax.tree_util.keystr((key,), simple=True).split("/")
    )
    return tuple(part or "_" for part in parts)


def flatten(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[list[tuple[Path, Any]], Any]:
    """Leaves of `tree` with their paths, and the treedef.

    Two leaves never share a path: where cutting at `/` makes them equal, the later one
    gets a numbered last segment.
    """
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    taken: set[Path] = set()
    named: list[tuple[Path, Any]] = []
    for key_path, leaf in pairs:
        path = base = segments(key_path)
        number = 0
        while path in taken:
            number += 1
            path = (*base[:-1], f"{base[-1]}_{number}") if base else (f"_{number}",)
        taken.add(path)
        named.append((path, leaf))
    return named, treedef


def show(path: Path) -> str:
    """A path as users write it: `Dense_0/kernel`."""
    return "/".join(path) or "(the whole value)"
