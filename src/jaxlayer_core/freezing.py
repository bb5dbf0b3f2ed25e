"""Which leaves are frozen: the steps that the user took, and what they come to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jaxlayer_core import patterns
from jaxlayer_core.errors import PatternError
from jaxlayer_core.patterns import Pattern

_VERB = {True: "freeze", False: "unfreeze"}


class Freezing:
    """Freezes and unfreezes leaves by path, before the paths are known or after."""

    def __init__(self) -> None:
        self._steps: list[tuple[Pattern, bool]] = []
        self._names: Sequence[str] | None = None
        self.frozen: frozenset[str] = frozenset()

    def add(self, chosen: Pattern | Iterable[Pattern], frozen: bool) -> None:
        """Freezes or unfreezes what patterns mean; nothing changes if one means nothing."""
        steps = [(pattern, frozen) for pattern in patterns.as_list(chosen)]
        for pattern, _ in steps:
            patterns.check(pattern, _VERB[frozen])
        if self._names is not None:
            self.frozen = self._after(steps, self._names)
        self._steps += steps

    def settle(self, names: Sequence[str]) -> None:
        """Learns the paths that there are, and takes the steps taken so far."""
        self.frozen = frozenset()
        self.frozen = self._after(self._steps, names)
        self._names = names

    def _after(self, steps: Sequence[tuple[Pattern, bool]], names: Sequence[str]) -> frozenset[str]:
        frozen = self.frozen
        for pattern, freezes in steps:
            meant = patterns.select(pattern, names, _VERB[freezes])
            frozen = frozen.union(meant) if freezes else frozen.difference(meant)
        return frozen

    def get_config(self) -> list[dict[str, str]]:
        """The steps, as short as they can be told."""
        if self._names is not None:
            return [{"freeze": patterns.exactly(n)} for n in self._names if n in self.frozen]
        for pattern, frozen in self._steps:
            if not isinstance(pattern, str):
                raise PatternError(
                    f"The layer cannot be saved before it is built: {_VERB[frozen]} was given a "
                    "function, whose paths are not known yet. Build it, or use a regular "
                    "expression."
                )
        return [{_VERB[frozen]: str(pattern)} for pattern, frozen in self._steps]

    def replay(self, steps: Iterable[dict[str, Any]]) -> None:
        """Takes the steps of `get_config()`.

        Raises:
            PatternError: they are none.
        """
        for step in steps:
            for verb, pattern in step.items():
                if verb not in _VERB.values() or not isinstance(pattern, str):
                    raise PatternError(
                        f"A config can freeze and unfreeze what patterns mean, got {step!r:.80}."
                    )
                self.add(pattern, verb == _VERB[True])
