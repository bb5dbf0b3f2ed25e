"""How long matching a regular expression may take: one out of a file could take for ever.

Python's matcher tries one way after the other. For `(a+)+b` there are more of them than anybody
can wait for, in a path of thirty letters, so patterns that a file brings are only matched where
there are few.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from typing import Any

from jaxlayer_core.errors import TrustError

_MOST = 10**8
"""How many ways are few: trying them takes about a second."""

# The parser that `re.compile` uses; there is no other way to see what is in an expression.
_parser: Any = re._parser  # type: ignore[attr-defined]
_REPEATS = frozenset({"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"})


class Stored(str):
    """A regular expression out of a file that nobody vouches for."""

    __slots__ = ()


def stored(patterns: Any) -> Any:
    """An entry of a config, all its strings marked.

    Args:
        patterns: a pattern, or patterns in lists and dicts.

    Example:
        >>> type(next(iter(stored({"kernel": "l2"})))).__name__
        'Stored'
    """
    if isinstance(patterns, str):
        return Stored(patterns)
    if isinstance(patterns, list):
        return [stored(pattern) for pattern in patterns]
    if isinstance(patterns, dict):
        return {stored(key): stored(value) for key, value in patterns.items()}
    return patterns


def check(pattern: str, name: str) -> None:
    """Refuses to match a pattern out of a file that may take for ever.

    Args:
        pattern: the expression. Only a `Stored` one is looked at.
        name: what it is to be matched with.

    Raises:
        TrustError: there are too many ways to match it.
    """
    if isinstance(pattern, Stored) and ways(pattern, len(name)) > _MOST:
        raise TrustError(
            f"The file has the pattern {str(pattern)!r:.200} for paths of variables, and to match "
            f"it with {name!r:.80} could take for ever: it repeats what can be matched in several "
            "ways. If you trust the file, load it with safe_mode=False."
        )


@functools.lru_cache
def ways(pattern: str, length: int) -> float:
    """About how many ways there are to match an expression somewhere in a text, at the most.

    Args:
        pattern: a valid regular expression.
        length: of the text.

    Example:
        >>> ways("kernel", 30), ways(".*kernel", 30) < 1000, ways("(a+)+b", 30)
        (30.0, True, inf)
    """
    return length * _of_sequence(_parser.parse(pattern), length)


def _of_sequence(items: Iterable[Any], length: int) -> float:
    """The ways of parts that follow each other, and share the text."""
    product, repeats = 1.0, 0
    for operation, argument in items:
        own = _of_item(str(operation), argument, length)
        product *= own
        repeats += own >= length
    return product / math.factorial(repeats)


def _of_item(operation: str, argument: Any, length: int) -> float:
    if operation in _REPEATS:
        least, most, inside = argument
        return _of_repeat(min(least, length), min(most, length), inside, length)
    if operation == "BRANCH":
        return sum(_of_sequence(branch, length) for branch in argument[1])
    if operation == "GROUPREF_EXISTS":
        return sum(_of_sequence(branch or (), length) for branch in argument[1:])
    if operation in ("SUBPATTERN", "ATOMIC_GROUP", "ASSERT", "ASSERT_NOT"):
        inside = argument if operation == "ATOMIC_GROUP" else argument[-1]
        return _of_sequence(inside, length)
    return 1


def _of_repeat(least: int, most: int, inside: Any, length: int) -> float:
    once = _of_sequence(inside, length)
    if most > 1 and math.log2(once) * most > 64:
        return math.inf
    return (most - least + 1) * once**most
