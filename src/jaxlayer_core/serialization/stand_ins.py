"""Containers for data whose own class is not to be had."""

from __future__ import annotations

import collections
import functools
from typing import Any


@functools.cache
def named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    """A named tuple class that looks like another one; one for each name and fields.

    Raises:
        ValueError: these are no names.

    Example:
        >>> named_tuple("Point", ("x", "y"))(1, 2)
        Point(x=1, y=2)
    """
    return collections.namedtuple(name, fields, module=__name__)
