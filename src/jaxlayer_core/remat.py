"""Rematerialisation: computing values again in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxlayer_core.errors import JaxLayerError


class Rematerialization:
    """What a user asked for.

    Args:
        remat: True to keep nothing, False for no rematerialisation; a policy that says what
            to keep, or the name of one in `jax.checkpoint_policies`.

    Raises:
        JaxLayerError: it is none of these.
    """

    def __init__(self, remat: bool | str | Callable[..., Any] | None) -> None:
        self.is_on = bool(remat)
        self._remat = remat
        if isinstance(remat, str):
            self._policy = getattr(jax.checkpoint_policies, remat, None)
            if self._policy is None or _makes_policies(self._policy):
                names = dir(jax.checkpoint_policies)
                named = [
                    n for n in names if not _makes_policies(getattr(jax.checkpoint_policies, n))
                ]
                raise JaxLayerError(
                    f"remat={remat!r} is not the name of a policy of jax.checkpoint_policies; "
                    f"these are: {', '.join(n for n in named if n[:1] != '_')}. What one of the "
                    "others makes of arguments is given as it is: "
                    "remat=jax.checkpoint_policies.save_only_these_names('attention')."
                )
        elif callable(remat):
            if _makes_policies(remat):
                raise JaxLayerError(
                    f"remat={getattr(remat, '__name__', remat)} makes policies, and is not one. "
                    "Call it: remat=jax.checkpoint_policies.save_only_these_names('attention')."
                )
            self._policy = remat
        elif remat is None or isinstance(remat, bool):
            self._policy = None
        else:
            raise JaxLayerError(
                "remat is True, False, or a policy of jax.checkpoint_policies or its name, got "
                f"{remat!r}."
            )

    def wrap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The function, rematerialised under the policy."""
        wrapped: Callable[..., Any] = jax.checkpoint(fn, policy=self._policy)
        return wrapped

    def get_config(self) -> bool | str | None:
        """The argument, with a policy by its name."""
        if self._remat is None or isinstance(self._remat, bool | str):
            return self._remat
        for name in dir(jax.checkpoint_policies):
            if getattr(jax.checkpoint_policies, name) is self._remat:
                return name
        raise JaxLayerError(
            f"The layer cannot be saved with remat={self._remat!r}, which is not one of "
            "jax.checkpoint_policies. Use one of those, by name."
        )


def _makes_policies(function: Any) -> bool:
    """Whether a function is one of JAX's that take names or policies and return a policy."""
    if function not in vars(jax.checkpoint_policies).values():
        return False
    try:
        return callable(function(jax.lax.add_p))
    except TypeError:  # it wants other arguments than a policy gets
        return True
