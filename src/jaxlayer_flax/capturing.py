"""Intermediate results of a Flax module, by the paths of the modules that gave them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import flax.linen as nn

from jaxlayer_core import PatternError
from jaxlayer_core.patterns import near


class Capture:
    """What to capture.

    Args:
        paths: `encoder/block_0` for what that module returns, `encoder/attention` for what
            `encoder` sows as `attention`, `encoder/embed` for its method `embed`; or regular
            expressions for whole paths. The module itself is `__call__`.
    """

    def __init__(self, paths: str | Iterable[str]) -> None:
        self._paths = [paths] if isinstance(paths, str) else list(paths)
        self._expressions = [re.compile(path) for path in self._paths]

    def __bool__(self) -> bool:
        return bool(self._paths)

    def wants(self, module: nn.Module, method: str) -> bool:
        """Whether Flax should keep what a method returns; its `capture_intermediates`."""
        name = _name((*module.path, method))
        return any(expression.fullmatch(name) for expression in self._expressions)

    def take(self, intermediates: Mapping[str, Any], owner: str) -> dict[str, Any]:
        """What is wanted among the intermediates of a call.

        Args:
            intermediates: the collection.
            owner: the model's name, for errors.

        Returns:
            By path; a tuple where a module was called several times.

        Raises:
            PatternError: nothing was found for a path.
        """
        found = {
            _name(path): value[0] if isinstance(value, tuple) and len(value) == 1 else value
            for path, value in flax.traverse_util.flatten_dict(dict(intermediates)).items()
        }
        for path, expression in zip(self._paths, self._expressions, strict=True):
            if not any(map(expression.fullmatch, found)):
                raise PatternError(f"capture: {path!r} matches nothing that {owner} computed.")
        return {n: v for n, v in found.items() if any(e.fullmatch(n) for e in self._expressions)}

    def explain(self, intermediates: Mapping[str, Any], error: PatternError) -> PatternError:
        """The error of `take`, with the paths that there are."""
        paths = flax.traverse_util.flatten_dict(dict(intermediates))
        return PatternError(f"{error} {near(', '.join(self._paths), list(map(_name, paths)))}")


def _name(path: tuple[str, ...]) -> str:
    """A path as users write it."""
    return "/".join(path[:-1] if len(path) > 1 and path[-1] == "__call__" else path)
