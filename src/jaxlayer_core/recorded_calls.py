"""The kinds of calls that a layer has seen: what a program of its model has to answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from jaxlayer_core.calls import CallForm
from jaxlayer_core.program.kinds import CallKind
from jaxlayer_core.structure import CallStructure

T = TypeVar("T")

_MOST = 32
"""How many kinds of calls are kept; a static argument that changes in each call makes many."""


class RecordedCalls:
    """Calls by structure, number of dimensions and dtypes; dimensions that vary are unknown.

    Neither a list nor an object of Keras, and so not tracked: it changes inside of traces.

    Attributes:
        dropped: how many calls were of a kind that is not kept, as there were too many kinds.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._kinds: dict[tuple[CallStructure, tuple[object, ...]], CallKind] = {}
        self._made: dict[Hashable, Any] = {}

    def add(self, form: CallForm) -> None:
        """Records a call."""
        if not form.structure.is_cacheable:
            return
        key = (form.structure, tuple((len(spec.shape), spec.dtype) for spec in form.specs))
        known = self._kinds.get(key)
        if known is None and len(self._kinds) == _MOST:
            self.dropped += 1
            return
        kind = CallKind.of(form) if known is None else known.with_call(form.specs)
        if kind is not known:
            self._kinds[key] = kind
            self._made.clear()

    @property
    def kinds(self) -> list[CallKind]:
        """The kinds of calls, in the order in which they were first made."""
        return list(self._kinds.values())

    @property
    def gaps(self) -> list[str]:
        """What is not in a program of these calls, as there were too many kinds."""
        if not self.dropped:
            return []
        return [
            f"{self.dropped} calls of further kinds (other methods, static arguments, dtypes or "
            f"numbers of dimensions): the first {_MOST} kinds of calls are kept"
        ]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes of the calls, kept until a call says something new."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made
