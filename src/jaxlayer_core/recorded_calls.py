"""The kinds of calls that a layer has seen: what a program of its model has to answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from jaxlayer_core.calls import CallForm
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.structure import CallStructure

T = TypeVar("T")

_MOST = 32
"""How many kinds of calls are kept; a static argument that changes in each call makes many."""


class RecordedCalls:
    """Calls by structure, number of dimensions and dtypes; dimensions that vary are unknown.

    Neither a list nor an object of Keras, and so not tracked: it changes inside of traces.
    """

    def __init__(self) -> None:
        self._forms: dict[tuple[CallStructure, tuple[object, ...]], CallForm] = {}
        self._made: dict[Hashable, Any] = {}

    def add(self, form: CallForm) -> None:
        """Records a call."""
        if not form.structure.is_cacheable:
            return
        key = (form.structure, tuple((len(spec.shape), spec.dtype) for spec in form.specs))
        known = self._forms.get(key)
        if known is None and len(self._forms) < _MOST:
            self._forms[key] = form.without_values()
            self._made.clear()
        elif known is not None and known.specs != form.specs:
            specs = tuple(map(_common, known.specs, form.specs))
            self._forms[key] = dataclasses.replace(known, specs=specs)
            self._made.clear()

    @property
    def forms(self) -> list[CallForm]:
        """The kinds of calls, in the order in which they were first made."""
        return list(self._forms.values())

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes of the calls, kept until there is a new kind of call."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made


def _common(one: ArraySpec, other: ArraySpec) -> ArraySpec:
    """The spec that both have, with None where they differ."""
    dims = zip(one.shape, other.shape, strict=True)
    return ArraySpec(tuple(a if a == b else None for a, b in dims), one.dtype)
