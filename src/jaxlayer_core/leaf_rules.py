"""Regularizers, constraints and full precision for weights chosen by path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from jaxlayer_core import patterns


class LeafRules:
    """What a user asks of single weights.

    Args:
        regularizers: pattern to Keras regularizer, by object or name; the first that matches
            a weight's path counts.
        constraints: pattern to Keras constraint, likewise.
        keep_float32: patterns of weights that a mixed-precision policy does not cast.

    Raises:
        PatternError: something is not a pattern.
    """

    def __init__(
        self,
        regularizers: Mapping[str, Any] | None = None,
        constraints: Mapping[str, Any] | None = None,
        keep_float32: str | Iterable[str] = (),
    ) -> None:
        self._regularizers = _rules(regularizers, keras.regularizers.get, "regularizers")
        self._constraints = _rules(constraints, keras.constraints.get, "constraints")
        self._keep_float32 = [keep_float32] if isinstance(keep_float32, str) else [*keep_float32]
        for pattern in self._keep_float32:
            patterns.check(pattern, "keep_float32", functions=False)

    def keeps_float32(self, name: str) -> bool:
        """Whether a weight is not cast for compute."""
        return any(patterns.matches(pattern, name) for pattern in self._keep_float32)

    def apply(self, weights: Mapping[str, keras.Variable]) -> None:
        """Sets what belongs to each weight.

        Args:
            weights: all trained weights, by path.

        Raises:
            PatternError: a pattern matches none of them.
        """
        names = list(weights)
        for pattern in self._keep_float32:
            patterns.select(pattern, names, "keep_float32")
        rules = {"regularizer": self._regularizers, "constraint": self._constraints}
        for attribute, table in rules.items():
            # Backwards, so that the first that matches is the last that is set.
            for pattern, rule in reversed(table.items()):
                for name in patterns.select(pattern, names, f"{attribute}s"):
                    setattr(weights[name], attribute, rule)

    def get_config(self) -> dict[str, Any]:
        """The arguments, as Keras serialises them."""
        return {
            "regularizers": {
                p: keras.regularizers.serialize(rule) for p, rule in self._regularizers.items()
            },
            "constraints": {
                p: keras.constraints.serialize(rule) for p, rule in self._constraints.items()
            },
            "keep_float32": list(self._keep_float32),
        }


def _rules(
    table: Mapping[str, Any] | None, get: Callable[[Any], Any], purpose: str
) -> dict[str, Any]:
    table = table or {}
    for pattern in table:
        patterns.check(pattern, purpose, functions=False)
    return {pattern: get(rule) for pattern, rule in table.items()}
