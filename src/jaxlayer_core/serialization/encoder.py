"""Values to JSON data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from jaxlayer_core.errors import JaxLayerError, NotExpressibleError
from jaxlayer_core.serialization import references
from jaxlayer_core.serialization.decoder import Decoder
from jaxlayer_core.serialization.references import Reference
from jaxlayer_core.serialization.rules import TABLE, TAG, Data, Node


class Encoded(NamedTuple):
    """A value as data.

    Attributes:
        data: what JSON can hold.
        objects: the classes and functions that it names.
    """

    data: Data
    objects: Mapping[Reference, Any]

    @property
    def is_importable(self) -> bool:
        """Whether another process, with the same packages, finds all that it names."""
        return all(reference.is_importable for reference in self.objects)


class Encoder:
    """Encodes one value and what is inside of it.

    Args:
        root: what the value is called in errors.
    """

    def __init__(self, root: str) -> None:
        self.objects: dict[Reference, Any] = {}
        self._where = [root]
        self._open: set[int] = set()
        self._done: dict[int, tuple[Any, Node]] = {}

    @property
    def where(self) -> str:
        """Where in the value the encoder is, such as `module.layers[1].kernel_init`."""
        return "".join(self._where)

    def encode(self, value: Any, step: str = "") -> Data:
        """Encodes a value.

        Args:
            value: the value.
            step: how it is reached from what is around it, such as `.kernel_init`.

        Raises:
            NotExpressibleError: no rule fits.
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float and math.isfinite(value):
            return value
        with self._at(value, step):
            if type(value) is list:
                return [self.encode(item, f"[{i}]") for i, item in enumerate(value)]
            if type(value) is dict and TAG not in value and all(type(k) is str for k in value):
                return {key: self.encode(item, f"[{key!r}]") for key, item in value.items()}
            return self._by_rule(value)

    @contextmanager
    def _at(self, value: Any, step: str) -> Iterator[None]:
        if id(value) in self._open:
            raise NotExpressibleError(f"{self.where}{step} contains itself.")
        self._where.append(step)
        self._open.add(id(value))
        try:
            yield
        finally:
            self._open.discard(id(value))
            self._where.pop()

    def _by_rule(self, value: Any) -> Node:
        if id(value) in self._done:
            return {TAG: "same", "id": self._done[id(value)][1]["id"]}
        rule = next((rule for rule in TABLE if rule.matches(value)), None)
        if rule is None:
            raise self.failure(value, "there is no rule for its type")
        node = {TAG: rule.tag, **rule.encode(value, self)}
        if rule.has_identity:
            node["id"] = len(self._done)
            self._done[id(value)] = (value, node)  # kept, so that the id stays its own
        return node

    def name(self, obj: Any) -> Data:
        """The name of a class or function, as `Decoder.named` reads it.

        Raises:
            NotExpressibleError: it has none.
        """
        reference = references.find(obj)
        if reference is None:
            raise self.failure(obj, "it has no name")
        self.objects[reference] = obj
        registered = {"registered": reference.registered} if reference.registered else {}
        return {"module": reference.module, "name": reference.name, **registered}

    def failure(self, value: Any, reason: str) -> NotExpressibleError:
        """The error for a value that cannot be encoded."""
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        return NotExpressibleError(
            f"{self.where} is {_short(value)}, of type {kind}, which no config can express: "
            f"{reason}."
        )


def encode(value: Any, root: str = "value") -> Encoded:
    """Data that JSON can hold, for a value that is made of named and plain things.

    What is encoded has been decoded again, and encoded to the same data: an object that its
    class does not make again from its parts is refused.

    Args:
        value: modules, functions, options, containers of these.
        root: what it is called in errors.

    Raises:
        NotExpressibleError: it holds something that has no name, such as a lambda, or that does
            not come back as it was.

    Example:
        >>> import functools, jax
        >>> data = encode(functools.partial(jax.nn.gelu, approximate=False)).data
        >>> data["function"]["of"], data["kwargs"]
        ({'module': 'jax.nn', 'name': 'gelu'}, {'approximate': False})
    """
    encoder = Encoder(root)
    try:
        data = encoder.encode(value)
    except RecursionError as error:
        raise NotExpressibleError(
            f"{root} is {_short(value)}, which contains itself, or is nested too deeply.",
            cause=error,
        ) from error
    try:
        again = Encoder(root).encode(Decoder(root, known=encoder.objects).decode(data))
    except JaxLayerError as error:
        raise _does_not_return(root, value, str(error), error) from error
    except Exception as error:  # of a class that is made from its parts
        raise _does_not_return(root, value, f"{type(error).__name__}: {error}", error) from error
    if again != data:
        raise _does_not_return(root, value, f"it comes back with {_difference(data, again)}")
    return Encoded(data, encoder.objects)


def _does_not_return(
    root: str, value: Any, reason: str, cause: Exception | None = None
) -> NotExpressibleError:
    return NotExpressibleError(
        f"{root} is {_short(value)}, which does not come back from its config as it was: {reason}",
        cause=cause,
    )


def _difference(one: Data, other: Data, where: str = "") -> str:
    """The first place in which two data differ."""
    if isinstance(one, dict) and isinstance(other, dict) and set(one) == set(other):
        pairs = [(one[key], other[key], f"{where}.{key}") for key in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return f"{where.lstrip('.') or 'all of it'} {_short(other)} in place of {_short(one)}"
    return next(_difference(a, b, place) for a, b, place in pairs if a != b)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
