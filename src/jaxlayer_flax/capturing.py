"""Intermediate results of a Flax module, by the paths of the modules that gave them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax


def name(path: tuple[str, ...]) -> str:
    """A path as users write it.

    Returns:
        `encoder/block_0` for what that module returns, `encoder/attention` for what `encoder`
        sows as `attention`, `encoder/embed` for its method `embed`. The module itself is
        `__call__`.
    """
    return "/".join(path[:-1] if len(path) > 1 and path[-1] == "__call__" else path)


def results(intermediates: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The collection of intermediates by path, with the results of all calls."""
    flat = flax.traverse_util.flatten_dict(dict(intermediates))
    return {
        name(path): list(value) if isinstance(value, tuple) else [value]
        for path, value in flat.items()
    }
