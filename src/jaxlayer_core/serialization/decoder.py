"""JSON data to values. The data may come from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jaxlayer_core.errors import ConfigError, JaxLayerError
from jaxlayer_core.serialization import references
from jaxlayer_core.serialization.references import Reference
from jaxlayer_core.serialization.rules import TAG, Data, Node, find

_DEEPEST = 200
"""How deep data may be nested; models are not, and Python's stack has an end."""
_LARGEST = 1_000_000
"""How many values there may be, counting what is the same as another as often as it is met. Each
could be the one before twice, and what walks through such data would not come to an end."""

T = TypeVar("T")


class Decoder:
    """Decodes one value and what is inside of it.

    Args:
        root: what the value is called in errors.
        safe: whether only what is registered with Keras, given or trusted may be named.
        known: objects that are at hand for their names.
        stand_ins: whether a named tuple may be replaced by one that looks like it, where its own
            class may not be had.
    """

    def __init__(
        self,
        root: str,
        *,
        safe: bool = True,
        known: Mapping[Reference, Any] | None = None,
        stand_ins: bool = False,
    ) -> None:
        self.is_safe = safe and known is None
        self.has_stand_ins = stand_ins
        self._known = known or {}
        self._where = [root]
        self._shared: dict[int, tuple[Any, int]] = {}
        self._size = 0

    @property
    def where(self) -> str:
        """Where in the data the decoder is, such as `module.fields.kernel_init`."""
        return "".join(self._where)

    def decode(self, data: Data, step: str = "") -> Any:
        """Decodes data.

        Args:
            data: the data.
            step: how they are reached from what is around them.

        Raises:
            ConfigError: they are broken, or name what may not be had.
        """
        self.grow(1)
        if data is None or isinstance(data, bool | int | float | str):
            return data
        if len(self._where) > _DEEPEST:
            raise self.failure("is nested too deeply")
        self._where.append(step)
        try:
            if isinstance(data, list):
                return [self.decode(item, f"[{i}]") for i, item in enumerate(data)]
            if not isinstance(data, dict):
                raise self.failure(f"is of type {type(data).__name__}, which is no data")
            if TAG in data:
                return self._by_rule(data)
            return {key: self.decode(item, f"[{key!r}]") for key, item in data.items()}
        finally:
            self._where.pop()

    def _by_rule(self, node: Node) -> Any:
        tag = self.get(node, TAG, str)
        if tag == "same":
            number = self.get(node, "id", int)
            if number not in self._shared:
                raise self.failure("is the same as something that does not come before it")
            value, size = self._shared[number]
            self.grow(size)
            return value
        rule, size = find(tag), self._size
        if rule is None:
            raise self.failure(f"is of the unknown kind {tag!r}; a newer version may know it")
        try:
            value = rule.decode(node, self)
        except JaxLayerError:
            raise
        except RecursionError as error:
            raise self.failure("is nested too deeply", error) from error
        except Exception as error:  # of a class that is made from its parts
            raise self.failure(f"cannot be made: {type(error).__name__}: {error}", error) from error
        if "id" in node:
            self._shared[self.get(node, "id", int)] = value, self._size - size
        return value

    def grow(self, count: int) -> None:
        """Counts values.

        Raises:
            ConfigError: there are too many.
        """
        self._size += count
        if self._size > _LARGEST:
            raise self.failure(f"makes a value of more than {_LARGEST} parts")

    def get(self, node: Node, key: str, kind: type[T]) -> T:
        """An entry of a node, which must be of a type.

        Raises:
            ConfigError: it is missing, or is of another type.
        """
        value = node.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            got = "nothing" if value is None else f"{value!r:.80}"
            raise self.failure(f"needs {key!r}, a {kind.__name__}, and has {got}")
        return value

    def named(self, node: Node, key: str) -> Any:
        """The object that `Encoder.name` has named.

        Raises:
            TrustError: it may not be had.
            ConfigError: there is no such object.
        """
        data = self.get(node, key, dict)
        registered = self.get(data, "registered", str) if "registered" in data else None
        reference = Reference(
            self.get(data, "module", str), self.get(data, "name", str), registered
        )
        if reference in self._known:
            return self._known[reference]
        return references.load(reference, safe=self.is_safe, where=self.where)

    def named_class(self, node: Node, fits: Callable[[type], bool], kind: str) -> Any:
        """A class that is named by the entry `class`.

        Args:
            node: the node.
            fits: whether it is one of the right kind.
            kind: what that is, for the error.
        """
        cls = self.named(node, "class")
        if not (isinstance(cls, type) and fits(cls)):
            raise self.failure(f"names {cls!r:.80}, which is not {kind}")
        return cls

    def failure(self, what: str, cause: BaseException | None = None) -> ConfigError:
        """The error for broken data."""
        return ConfigError(f"The config is broken: {self.where} {what}.", cause=cause)


def decode(data: Data, *, safe: bool = True, root: str = "value", stand_ins: bool = False) -> Any:
    """The value that `encode` made data of.

    Args:
        data: the data, from anywhere.
        safe: whether only what is registered with Keras, given in `custom_objects` or of a
            trusted package may be named; nothing else is imported then.
        root: what the value is called in errors.
        stand_ins: whether a named tuple may be replaced by one that looks like it, where its own
            class may not be had.

    Raises:
        TrustError: something may not be had.
        MissingDependencyError: a package is not installed.
        ConfigError: the data are broken.

    Example:
        >>> decode({"$": "items", "type": "tuple", "items": [1, 2]})
        (1, 2)
    """
    return Decoder(root, safe=safe, stand_ins=stand_ins).decode(data)
