"""What happens to each Flax variable collection: a declared table."""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Role(enum.Enum):
    """What a collection is to the layer."""

    PARAMS = "trained"
    STATE = "kept from call to call, written in training only"
    CACHE = "kept from call to call, written in inference too"
    LOSS = "sown scalars that are added to the loss"
    DROP = "made anew in every call and not kept"


ROLES = {
    "params": Role.PARAMS,
    "cache": Role.CACHE,
    "losses": Role.LOSS,
    "intermediates": Role.DROP,
    "perturbations": Role.DROP,
}
"""Collections with a role of their own; every other one is `Role.STATE`."""


def role(collection: str) -> Role:
    """The role of a collection.

    Example:
        >>> role("batch_stats")
        <Role.STATE: 'kept from call to call, written in training only'>
    """
    return ROLES.get(collection, Role.STATE)


def keep(collections: Iterable[str]) -> list[str]:
    """Those that become variables of the layer's state."""
    return [name for name in collections if role(name) in (Role.STATE, Role.CACHE)]


def sown(collections: Iterable[str]) -> list[str]:
    """Those whose scalars are losses."""
    return [name for name in collections if role(name) is Role.LOSS]
