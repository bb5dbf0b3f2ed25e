"""A user's transformation, or what makes one, in one form."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import optax

from jaxlayer_optax.errors import OptaxError

WAY_OUT = (
    "Give what makes the transformation, and the rate apart: OptaxOptimizer(optax.adamw, "
    "learning_rate=1e-3); other arguments go into functools.partial(optax.adamw, "
    "weight_decay=1e-2). Or make it with optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3)."
)


class Maker:
    """Makes the transformation, for a learning rate where it takes one.

    Args:
        tx: a transformation; or a function that makes one, with an argument `learning_rate` or
            without arguments.
        has_rate: whether the user gave a learning rate.

    Raises:
        OptaxError: it is none of these, or does not go with a learning rate.
    """

    def __init__(self, tx: Any, has_rate: bool) -> None:
        self.tx = tx
        self.has_rate = has_rate
        self._made: optax.GradientTransformationExtraArgs | None = None
        if is_transformation(tx):
            if has_rate:
                raise OptaxError(
                    "OptaxOptimizer got a transformation, which has its learning rate inside, and "
                    f"learning_rate= beside it. {WAY_OUT}"
                )
            self._made = _normal(tx)
        elif not callable(tx):
            raise OptaxError(
                f"OptaxOptimizer takes a transformation of Optax, such as optax.adam(1e-3), or a "
                f"function that makes one, such as optax.adam; got {tx!r:.200} of type "
                f"{type(tx).__name__}."
            )
        elif has_rate and not _takes_rate(tx):
            raise OptaxError(
                f"{_name(tx)} takes no argument `learning_rate`, but OptaxOptimizer was given one. "
                f"{WAY_OUT}"
            )

    def __call__(self, rate: Any) -> optax.GradientTransformationExtraArgs:
        """The transformation.

        Args:
            rate: the learning rate, a number or an array; ignored where the user gave none.

        Raises:
            OptaxError: the user's function fails, or makes something else.
        """
        if self._made is not None:
            return self._made
        make: Callable[..., Any] = self.tx
        arguments = {"learning_rate": rate} if self.has_rate else {}
        try:
            made = make(**arguments)
        except Exception as error:
            hint = "" if self.has_rate else " If it needs a learning rate, give learning_rate=."
            raise OptaxError(
                f"{_name(make)}({', '.join(f'{name}=...' for name in arguments)}), which should "
                f"make the transformation, raised {type(error).__name__}: {error}.{hint}",
                cause=error,
            ) from error
        if not is_transformation(made):
            raise OptaxError(
                f"{_name(make)} should make a transformation of Optax, and made {made!r:.200} of "
                f"type {type(made).__name__}."
            )
        made = _normal(made)
        if not self.has_rate:
            self._made = made
        return made


def is_transformation(tx: Any) -> bool:
    """Whether something has the two functions that make a transformation."""
    has_both = callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))
    return has_both and not isinstance(tx, type)


def _normal(tx: Any) -> optax.GradientTransformationExtraArgs:
    if isinstance(tx, optax.MultiSteps):
        tx = tx.gradient_transformation()
    elif not isinstance(tx, optax.GradientTransformation):
        tx = optax.GradientTransformation(tx.init, tx.update)
    return optax.with_extra_args_support(tx)


def _takes_rate(make: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # it does not say
        return True
    return any(p.name == "learning_rate" or p.kind is p.VAR_KEYWORD for p in parameters)


def _name(make: Any) -> str:
    return str(getattr(make, "__name__", None) or f"{make!r:.80}")
