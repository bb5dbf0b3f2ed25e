"""What becomes of what a model owns or makes besides its params: a declared table."""

from __future__ import annotations

import enum
import re
import warnings
from collections.abc import Mapping, Sequence

from jaxlayer_core import effort, patterns
from jaxlayer_core.errors import PatternError
from jaxlayer_core.paths import Path


class Role(enum.Enum):
    """What a leaf is to the layer. The values are the words that users write."""

    PARAM = "param"
    """Trained."""
    OVERWRITTEN = "overwritten"
    """Trained by being replaced by its gradient, as the scales of fp8 are."""
    STATE = "state"
    """Kept from call to call; written in training."""
    CACHE = "cache"
    """Kept from call to call; written in inference, too."""
    LOSS = "loss"
    """Added to the loss. A leaf of the state is kept, too."""
    METRIC = "metric"
    """Averaged, and reported by `fit` and `evaluate`. A leaf of the state is kept, too."""
    OUTPUT = "output"
    """Returned beside the output. A leaf of the state is kept, too."""
    CONSTANT = "constant"
    """Kept as it was initialised: saved with the weights, but never written, and none of
    `layer.weights`."""
    DROP = "drop"
    """Not kept: a collection is made anew in every call, a leaf has its initial value in each."""


class Policy:
    """A table from path patterns to roles; the first that matches counts.

    A pattern is a regular expression for a leaf's path or for the first segments of it:
    `batch_stats` and `batch_stats/.*/mean` both match `batch_stats/norm/mean`.

    Args:
        table: pattern to `Role`, or to its word.
        default: the role of all other paths.

    Raises:
        PatternError: a word is no role, or a pattern no regular expression.

    Example:
        >>> Policy({"cache": "cache"}).role(("cache", "attention", "key"))
        <Role.CACHE: 'cache'>
    """

    def __init__(self, table: Mapping[str, Role | str], default: Role = Role.STATE) -> None:
        self._table = {pattern: _role(pattern, role) for pattern, role in table.items()}
        self._expressions = {pattern: _expression(pattern) for pattern in self._table}
        self._default = default
        self._known: dict[Path, Role] = {}

    def role(self, path: Path) -> Role:
        """The role of a leaf."""
        if path not in self._known:
            name = "/".join(path)
            found = (role for p, role in self._table.items() if self._is_meant(p, name))
            self._known[path] = next(found, self._default)
        return self._known[path]

    def _is_meant(self, pattern: str, name: str) -> bool:
        effort.check(pattern, name)
        return self._expressions[pattern].match(name) is not None

    def writes(self, path: Path, training: bool) -> bool:
        """Whether a call in this mode writes a leaf of the state."""
        role = self.role(path)
        return role not in (Role.DROP, Role.CONSTANT) if training else role is Role.CACHE

    def uses(self, role: Role) -> bool:
        """Whether any path may have this role."""
        return role is self._default or role in self._table.values()

    def mentions(self, collection: str) -> bool:
        """Whether an entry is about leaves of a collection."""
        return any(pattern.startswith(f"{collection}/") for pattern in self._table)

    def extended(self, table: Mapping[str, Role | str] | None) -> Policy:
        """This policy, after entries that go first."""
        return Policy({**table, **self._without(table)}, self._default) if table else self

    def get_config(self) -> dict[str, object]:
        """The table and the default, in the words of users."""
        table = {pattern: role.value for pattern, role in self._table.items()}
        return {"table": table, "default": self._default.value}

    def _without(self, table: Mapping[str, Role | str]) -> dict[str, Role]:
        return {pattern: role for pattern, role in self._table.items() if pattern not in table}


MADE_BESIDE = frozenset({Role.LOSS, Role.METRIC, Role.OUTPUT})
"""Roles of what a call may make beside output and state."""

STATE_ONLY = Policy({})
"""All state is written in training."""


def check_used(
    table: Mapping[str, Role | str],
    state: Sequence[str],
    params: Sequence[str],
) -> None:
    """Refuses entries that mean nothing.

    Args:
        table: the user's entries.
        state: paths of the state and of what is made beside the output.
        params: paths of the params.

    Raises:
        PatternError: an entry matches no path that could have its role.

    Warns:
        UserWarning: one matches nothing, but is for what another call may still make.
    """
    for pattern, word in table.items():
        role = _role(pattern, word)
        trained = role in (Role.PARAM, Role.OVERWRITTEN)
        names = params if trained else state
        if role is Role.DROP or any(map(_expression(pattern).match, names)):
            continue
        kind = "params" if trained else "the state, nor anything that the model makes beside it"
        if not trained and any(map(_expression(pattern).match, params)):
            kind += ", but params, which cannot have the role " + repr(role.value)
        message = (
            f"state_policy: {pattern!r} matches no path of {kind}. {patterns.near(pattern, names)}"
        )
        if role not in MADE_BESIDE or any(map(_expression(pattern).match, params)):
            raise PatternError(message)
        warnings.warn(f"{message} Another method or argument may make it.", stacklevel=2)


def _role(pattern: str, role: Role | str) -> Role:
    try:
        return Role(role)
    except ValueError as error:
        words = ", ".join(repr(r.value) for r in Role)
        raise PatternError(
            f"state_policy: {pattern!r} has {role!r}, which is no role. Roles are {words}.",
            cause=error,
        ) from error


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(?:{pattern})(?:/|$)")
    except re.error as error:
        raise PatternError(
            f"state_policy: {pattern!r} is not a regular expression: {error}.", cause=error
        ) from error
