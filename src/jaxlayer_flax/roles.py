"""What happens to each Flax variable collection: a declared table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax

from jaxlayer_core.roles import MADE_BESIDE, Policy, Role

COLLECTIONS = Policy(
    {
        "params": Role.PARAM,
        "LoRAParam": Role.PARAM,  # what `nnx.bridge` calls the collection of `nnx.LoRAParam`
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


_TRAINED = {Role.PARAM, Role.OVERWRITTEN}
_KEPT = {Role.STATE, Role.CACHE, Role.CONSTANT}


class Collections:
    """The collections of one model.

    Args:
        policy: their roles.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def role(self, collection: str) -> Role:
        """The role of a collection.

        Example:
            >>> Collections(COLLECTIONS).role("batch_stats")
            <Role.STATE: 'state'>
        """
        return self.policy.role((collection,))

    def split(self, variables: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The layer's params, and its state; the rest is made anew in each call."""
        return (
            {name: tree for name, tree in variables.items() if self.role(name) in _TRAINED},
            {name: tree for name, tree in variables.items() if self.role(name) in _KEPT},
        )

    def made_anew(self, names: Iterable[str]) -> set[str]:
        """The collections that are neither trained nor kept."""
        return {name for name in names if self.role(name) not in _TRAINED | _KEPT}

    def made_anew_by_choice(self, names: Iterable[str]) -> list[str]:
        """The collections that would be kept if the user had not given them another role."""
        return [
            name
            for name in names
            if self.role(name) in MADE_BESIDE and COLLECTIONS.role((name,)) is not self.role(name)
        ]

    def immutable(self, variables: Mapping[str, Any], training: bool) -> set[str]:
        """The collections that a call must not change: nobody would see it, or it would harm.

        Args:
            variables: what the model has.
            training: whether the call is one in training.
        """
        dropped = {
            name
            for name in _DROPPED
            if self.role(name) is Role.DROP and not self.policy.mentions(name)
        }
        return dropped | {
            name for name, tree in variables.items() if not self._is_written(name, tree, training)
        }

    def _is_written(self, name: str, tree: Any, training: bool) -> bool:
        paths = flax.traverse_util.flatten_dict(flax.core.unfreeze(tree))
        roles = {self.policy.role((name, *path)) for path in paths} or {self.role(name)}
        if self.role(name) in _TRAINED:
            return False
        if not training:
            return Role.CACHE in roles
        # A model may insist on writing what its user made constant; the layer does not keep it.
        return COLLECTIONS.role((name,)) is not Role.CONSTANT or roles != {Role.CONSTANT}
