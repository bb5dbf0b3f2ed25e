"""The adapter for Flax linen modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn

from jaxlayer_core import Adapter, PureModule
from jaxlayer_core.capturing import Capture
from jaxlayer_core.roles import Role
from jaxlayer_flax.model import LinenModel
from jaxlayer_flax.roles import COLLECTIONS, Collections
from jaxlayer_flax.trees import clean


class LinenAdapter(Adapter):
    """Adapts instances of `flax.linen.Module`.

    Args:
        rngs: streams to supply in training besides those that a module demands: `make_rng`
            demands, `has_rng` only looks.

    Example:
        >>> LinenAdapter().accepts(nn.Dense(3))
        True
    """

    framework = "flax.linen"

    def __init__(self, rngs: Iterable[str] = ()) -> None:
        self._rngs = tuple(rngs)

    def accepts(self, obj: Any) -> bool:
        """Whether `obj` is a linen module."""
        return isinstance(obj, nn.Module)

    def purify(
        self,
        obj: Any,
        *,
        method: Any = None,
        training_arg: str | Iterable[str] | None = None,
        state_policy: Mapping[str, Role | str] | None = None,
        capture: str | Iterable[str] = (),
    ) -> PureModule:
        """Makes the canonical form of a module and one of its methods."""
        collections = _collections(state_policy)
        return LinenModel(
            obj, method, training_arg, self._rngs, collections, Capture(capture)
        ).pure()

    def variables(
        self, given: Any, state_policy: Mapping[str, Role | str] | None = None
    ) -> tuple[Any, Any]:
        """Splits a dict of collections into params and state.

        Args:
            given: as `module.init` returns it.
            state_policy: the user's roles, before `jaxlayer_flax.roles.COLLECTIONS`.
        """
        params, state = _collections(state_policy).split(clean(given))
        return params or None, state or None


def _collections(state_policy: Mapping[str, Role | str] | None) -> Collections:
    return Collections(COLLECTIONS.extended(state_policy))
