"""The adapter for Flax linen modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxlayer_core import PureModule, stream_key
from jaxlayer_core.capturing import Capture
from jaxlayer_core.roles import Role
from jaxlayer_flax.adapting import FlaxAdapter
from jaxlayer_flax.model import LinenModel
from jaxlayer_flax.roles import COLLECTIONS, Collections
from jaxlayer_flax.trees import clean


class LinenAdapter(FlaxAdapter):
    """Adapts instances of `flax.linen.Module`.

    Args:
        rngs: streams to supply in training besides those that a module demands: `make_rng`
            demands, `has_rng` only looks.

    Example:
        >>> LinenAdapter().accepts(nn.Dense(3))
        True
    """

    framework = "flax.linen"

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
        self, obj: Any, given: Any, state_policy: Mapping[str, Role | str] | None = None
    ) -> tuple[Any, Any]:
        """Splits a dict of collections into params and state.

        Args:
            obj: the module that they are for.
            given: as `module.init` returns it.
            state_policy: the user's roles, before `jaxlayer_flax.roles.COLLECTIONS`.
        """
        params, state = _collections(state_policy).split(clean(given))
        return params or None, state or None

    def live(self, obj: Any, variables: Mapping[str, Any], key: jax.Array) -> Any:
        """The module bound to these variables.

        Args:
            obj: the module.
            variables: dict of collections.
            key: each stream of the layer's `rngs=` is `stream_key(key, name)`.
        """
        return obj.bind(dict(variables), rngs={name: stream_key(key, name) for name in self._rngs})


def _collections(state_policy: Mapping[str, Role | str] | None) -> Collections:
    return Collections(COLLECTIONS.extended(state_policy))
