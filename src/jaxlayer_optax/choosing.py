"""Weights chosen by their paths, for Optax' masks and labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import optax

from jaxlayer_core import effort, keras_bridge, paths, patterns
from jaxlayer_core.errors import PatternError
from jaxlayer_core.pure import PyTree


class _Chooser:
    """Expressions for paths, some of them out of a file that nobody vouches for."""

    _is_stored = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "_is_stored", keras_bridge.is_reading_safely())

    def _matches(self, pattern: str, path: str) -> bool:
        return patterns.matches(effort.stored(pattern) if self._is_stored else pattern, path)

    def _check_used(self, expressions: Iterable[str], params: PyTree) -> None:
        """Refuses an expression that matches nothing, where all weights are there."""
        leaves = jax.tree.leaves(params, is_leaf=_is_masked)
        if any(map(_is_masked, leaves)):
            return
        names = ["/".join(path) for path, _ in paths.flatten(params)[0]]
        for expression in expressions:
            pattern = effort.stored(expression) if self._is_stored else expression
            patterns.select(pattern, names, type(self).__name__)


@dataclasses.dataclass(frozen=True)
class Matching(_Chooser):
    """A mask for the weights whose paths match: what `optax.masked` and `mask=` take.

    Unlike a lambda, it is saved with the model.

    Attributes:
        pattern: a regular expression, searched in paths such as `encoder/dense/kernel`.

    Raises:
        PatternError: the expression is malformed; later, that it matches no weight.

    Example:
        >>> Matching("kernel$")({"dense": {"kernel": 1.0, "bias": 2.0}})
        {'dense': {'bias': False, 'kernel': True}}
    """

    pattern: str

    def __post_init__(self) -> None:
        patterns.check(self.pattern, "Matching", functions=False)
        super().__post_init__()

    def __call__(self, params: PyTree) -> PyTree:
        """True for the weights that match."""
        self._check_used([self.pattern], params)
        return _map(lambda path: self._matches(self.pattern, path), params)


@dataclasses.dataclass(frozen=True)
class Labels(_Chooser):
    """A label for each weight by its path: what `optax.multi_transform` takes.

    Attributes:
        rules: regular expression, searched in paths, to label. Those that match one weight
            have to agree.
        default: the label of weights that none matches; None to have none.

    Raises:
        PatternError: an expression is malformed; later, that one matches no weight, or that a
            weight has no label, or several.

    Example:
        >>> labels = Labels({"^encoder/": "slow"}, default="fast")
        >>> labels({"encoder": {"kernel": 1.0}, "head": {"kernel": 2.0}})
        {'encoder': {'kernel': 'slow'}, 'head': {'kernel': 'fast'}}
    """

    rules: Mapping[str, str]
    default: str | None = None

    def __post_init__(self) -> None:
        for pattern in self.rules:
            patterns.check(pattern, "Labels", functions=False)
        super().__post_init__()

    def __call__(self, params: PyTree) -> PyTree:
        """The labels."""
        self._check_used(self.rules, params)
        return _map(self._label, params)

    def _label(self, path: str) -> str:
        found = {p: label for p, label in self.rules.items() if self._matches(p, path)}
        if len(set(found.values())) > 1:
            claims = ", ".join(f"{pattern!r} says {label!r}" for pattern, label in found.items())
            raise PatternError(
                f"Labels: the weight `{path}` would be updated twice: {claims}. Make the "
                "expressions exclude each other, for example with ^ and $."
            )
        label = next(iter(found.values()), self.default)
        if label is None:
            raise PatternError(
                f"Labels: no expression matches the weight `{path}`. Add one, or give default=."
            )
        return label


def _map(function: Callable[[str], Any], params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda key_path, _: function("/".join(paths.segments(key_path))), params
    )


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)
