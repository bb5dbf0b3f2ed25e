"""Reading a config that may have come from anywhere: every entry is checked as it is read."""

from __future__ import annotations

from typing import Any, TypeVar

from jaxlayer_core.errors import ProgramError

T = TypeVar("T")


def broken(where: str, what: str, cause: BaseException | None = None) -> ProgramError:
    """The error for a config that is not one.

    Args:
        where: which part of it.
        what: what is wrong there.
        cause: how that showed.
    """
    return ProgramError(
        f"The saved program is broken: {where} {what}. Save the model again, or use another file.",
        cause=cause,
    )


class Reader:
    """One dict of a config.

    Args:
        data: what should be a dict.
        where: what it is, for errors.

    Raises:
        ProgramError: it is none.

    Example:
        >>> Reader({"size": 3}, "blob").number("size", most=5)
        3
    """

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise broken(where, f"is of type {type(data).__name__}, expected a dict")
        self._data = data
        self.where = where

    def _get(self, key: str, kind: type[T]) -> T:
        value = self._data.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            got = f"{value!r:.60}" if key in self._data else "nothing"
            raise broken(f"{self.where}.{key}", f"is {got}, expected a {kind.__name__}")
        return value

    def has(self, key: str) -> bool:
        """Whether there is an entry that is not None."""
        return self._data.get(key) is not None

    def text(self, key: str) -> str:
        """A string."""
        return self._get(key, str)

    def optional_text(self, key: str) -> str | None:
        """A string or None."""
        return self.text(key) if self.has(key) else None

    def flag(self, key: str) -> bool:
        """True or False."""
        return self._get(key, bool)

    def number(self, key: str, *, least: int = 0, most: int) -> int:
        """An integer in a range."""
        value = self._get(key, int)
        if not least <= value <= most:
            raise broken(f"{self.where}.{key}", f"is {value}, expected {least} to {most}")
        return value

    def items(self, key: str) -> list[Any]:
        """A list."""
        return self._get(key, list)

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        values = self.items(key)
        if not all(isinstance(value, str) for value in values):
            raise broken(f"{self.where}.{key}", "is no list of strings")
        return values

    def table(self, key: str) -> dict[str, Any]:
        """A dict with strings as keys."""
        values = self._get(key, dict)
        if not all(isinstance(name, str) for name in values):
            raise broken(f"{self.where}.{key}", "has keys that are no strings")
        return values

    def reader(self, key: str) -> Reader:
        """A dict, to be read in turn."""
        return Reader(self._data.get(key), f"{self.where}.{key}")

    def readers(self, key: str) -> list[Reader]:
        """A list of dicts."""
        return [Reader(item, f"{self.where}.{key}[{i}]") for i, item in enumerate(self.items(key))]
