"""What happens to each Flax variable collection: a declared table."""

from __future__ import annotations

from collections.abc import Iterable

from jaxlayer_core.roles import Policy, Role

COLLECTIONS = Policy(
    {
        "params": Role.PARAM,
        # https://github.com/google/flax/blob/main/flax/linen/fp8_ops.py
        "_overwrite_with_gradient": Role.OVERWRITTEN,
        "cache": Role.CACHE,
        "losses": Role.LOSS,
        "intermediates": Role.DROP,
        "perturbations": Role.DROP,
        # Names of axes, as flax.linen.partitioning and T5X write beside the params.
        "[^/]*_axes": Role.CONSTANT,
    },
    default=Role.STATE,
)
"""Roles by collection; `FlaxLayer(..., state_policy=...)` goes first."""

_DROPPED = ("intermediates", "perturbations")


class Collections:
    """The collections of one model.

    Args:
        policy: their roles.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def role(self, collection: str) -> Role:
        """The role of a collection.

        Example:
            >>> Collections(COLLECTIONS).role("batch_stats")
            <Role.STATE: 'state'>
        """
        return self._policy.role((collection,))

    def trained(self, names: Iterable[str]) -> list[str]:
        """Those that are the layer's params."""
        return [n for n in names if self.role(n) in (Role.PARAM, Role.OVERWRITTEN)]

    def kept(self, names: Iterable[str]) -> list[str]:
        """Those that are the layer's state."""
        return [n for n in names if self.role(n) in (Role.STATE, Role.CACHE, Role.CONSTANT)]

    def immutable(self, names: Iterable[str], training: bool) -> set[str]:
        """Those that a call must not change: nobody would see it, or it would do harm.

        Args:
            names: the collections that the model has.
            training: whether the call is one in training.
        """
        written = (Role.STATE, Role.CACHE) if training else (Role.CACHE,)
        dropped = {n for n in _DROPPED if self.role(n) is Role.DROP}
        return {n for n in names if self.role(n) not in written} | dropped
