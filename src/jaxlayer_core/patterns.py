"""Choosing variables by their paths: with a regular expression, or with a function.

Paths are those inside the layer, such as `params/Dense_0/kernel`. An expression is searched
in them, as `keras.distribution.LayoutMap` and `exclude_from_weight_decay` do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxlayer_core import effort
from jaxlayer_core.errors import PatternError

Pattern = str | Callable[[str], bool]


def exactly(name: str) -> str:
    """The expression that only this path matches."""
    return rf"^{re.escape(name)}\Z"


def check(pattern: Any, purpose: str, functions: bool = True) -> None:
    """Refuses what is no pattern.

    Args:
        pattern: what the user gave.
        purpose: what it is for, for the error.
        functions: whether functions are patterns, too; what goes into a config is not.

    Raises:
        PatternError: it is not a pattern.
    """
    if functions and callable(pattern):
        return
    if not isinstance(pattern, str):
        raise PatternError(
            f"{purpose} takes regular expressions for paths, as strings"
            f"{', or functions of a path' if functions else ''}; got {pattern!r} of type "
            f"{type(pattern).__name__}."
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise PatternError(
            f"{purpose} got {pattern!r}, which is not a regular expression: {error}.", cause=error
        ) from error


def as_list(patterns: Pattern | Iterable[Pattern]) -> list[Pattern]:
    """One or several patterns as a list."""
    return [patterns] if isinstance(patterns, str) or callable(patterns) else list(patterns)


def matches(pattern: Pattern, name: str) -> bool:
    """Whether a path is meant."""
    if callable(pattern):
        return bool(pattern(name))
    effort.check(pattern, name)
    return re.search(pattern, name) is not None


def select(pattern: Pattern, names: Sequence[str], purpose: str) -> list[str]:
    """The paths that a pattern means.

    Args:
        pattern: an expression or a function.
        names: the paths there are.
        purpose: what it is for, for the error.

    Returns:
        At least one path, in the order of `names`.

    Raises:
        PatternError: it means none; the message has those that come near.

    Example:
        >>> select("kernel", ["params/Dense_0/bias", "params/Dense_0/kernel"], "freeze")
        ['params/Dense_0/kernel']
    """
    chosen = [name for name in names if matches(pattern, name)]
    if chosen:
        return chosen
    shown = getattr(pattern, "__name__", "the function") if callable(pattern) else repr(pattern)
    raise PatternError(
        f"{purpose}: {shown} matches no path of the layer. {near(str(pattern), names)}"
    )


def near(wanted: str, names: Sequence[str]) -> str:
    """A sentence that names the paths most like one that is not there."""
    if not names:
        return "There are none."
    by_segment = {segment: name for name in reversed(names) for segment in name.split("/")}
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    for part in re.findall(r"\w+", wanted):
        close += [by_segment[s] for s in difflib.get_close_matches(part, by_segment, n=3)]
    if close:
        return f"Near it are: {', '.join(dict.fromkeys(close))}."
    rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"The paths are: {', '.join(names[:8])}{rest}."
