"""Intermediate results that a user wants beside the output, chosen by their paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxlayer_core import effort, patterns
from jaxlayer_core.errors import PatternError


class Capture:
    """What to capture.

    Args:
        paths: one or several regular expressions for whole paths.

    Raises:
        PatternError: something is not a regular expression.

    Example:
        >>> Capture("encoder/block_.").wants("encoder/block_0")
        True
    """

    def __init__(self, paths: str | Iterable[str] = ()) -> None:
        self._paths = [paths] if isinstance(paths, str) else list(paths)
        for path in self._paths:
            patterns.check(path, "capture", functions=False)

    def __bool__(self) -> bool:
        return bool(self._paths)

    def wants(self, path: str) -> bool:
        """Whether this result is wanted."""
        return any(_is_meant(expression, path) for expression in self._paths)

    def missing(self, found: Iterable[str]) -> list[str]:
        """The expressions that match none of these paths."""
        names = list(found)
        return [e for e in self._paths if not any(_is_meant(e, name) for name in names)]

    def take(
        self, results: Mapping[str, list[Any]], owner: str, there: Iterable[str]
    ) -> dict[str, Any]:
        """What is wanted among the results of a call.

        Args:
            results: by path, those of all calls of a module.
            owner: the model's name, for errors.
            there: the paths that could have been wanted, for errors.

        Returns:
            By path; a tuple where a module was called several times.

        Raises:
            PatternError: there is nothing for an expression.
        """
        if missing := self.missing(results):
            raise PatternError(
                f"capture: {missing[0]!r} matches nothing that {owner} computed. "
                f"{patterns.near(missing[0], list(there))}"
            )
        return {
            path: values[0] if len(values) == 1 else tuple(values)
            for path, values in results.items()
            if self.wants(path)
        }


def _is_meant(expression: str, path: str) -> bool:
    effort.check(expression, path)
    return re.fullmatch(expression, path) is not None
