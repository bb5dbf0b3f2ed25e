"""What a transformation is given beside gradients, state and weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from jaxlayer_core.pure import PyTree
from jaxlayer_optax import train_step
from jaxlayer_optax.weights import Weights

_FROM_KERAS = ("value", "value_fn", "grad", "grad_fn", "obj_fn")


class ExtraArgs:
    """The extra arguments of an update: the user's, and those that Keras' train step has."""

    def __init__(self) -> None:
        self._given: Mapping[str, Any] = {}
        self._withheld: dict[str, str] = {}

    @contextmanager
    def given(self, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Adds arguments to the updates in a `with` block."""
        before = self._given
        self._given = {**before, **arguments}
        try:
            yield
        finally:
            self._given = before

    def collect(
        self,
        update: Callable[..., Any],
        weights: Weights,
        gradients: PyTree,
        changes: str | None,
    ) -> dict[str, Any]:
        """The arguments of one update: those of the user, and those of Keras that it takes.

        Args:
            update: the function that takes them.
            weights: what is updated.
            gradients: their gradients, nested.
            changes: which option of Keras has made other gradients of those of the loss.
        """
        found = self._of_step(weights, gradients, changes)
        taken = inspect.signature(update).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            found = {name: value for name, value in found.items() if name in taken}
        return {**found, **self._given}

    def explain(self) -> str:
        """Lines of what the last update was not given, and why; empty if nothing."""
        return "".join(
            f"\nIt is not given `{name}`: {why}"
            for name, why in self._withheld.items()
            if name not in self._given
        )

    def _of_step(self, weights: Weights, gradients: PyTree, changes: str | None) -> dict[str, Any]:
        step = train_step.find(weights)
        if step is None:
            self._withheld = {
                name: "this is not Keras' own train step. Give it: with "
                f"optimizer.extra_args({name}=...): around the update."
                for name in _FROM_KERAS
            }
            return {}
        value_fn = step.value_fn(weights)
        found: dict[str, Any] = {
            "value": step.loss,
            "value_fn": value_fn,
            "grad": gradients,
            "grad_fn": jax.tree_util.Partial(lambda params, step=None: jax.grad(value_fn)(params)),
            "obj_fn": value_fn,
        }
        lost, instead = _LOST.get(changes or "", _NOTHING)
        self._withheld = dict.fromkeys(
            lost, f"{changes}= makes other gradients than those of the loss. {instead}"
        )
        return {name: value for name, value in found.items() if name not in lost}


_NOTHING: tuple[tuple[str, ...], str] = ((), "")
_CLIPPED = (("grad",), "Clip in Optax: optax.chain(optax.clip_by_global_norm(1.0), ...).")
_LOST: Mapping[str, tuple[tuple[str, ...], str]] = {
    "clipnorm": _CLIPPED,
    "clipvalue": _CLIPPED,
    "global_clipnorm": _CLIPPED,
    "gradient_accumulation_steps": (_FROM_KERAS, "Accumulate in Optax: optax.MultiSteps(...)."),
}
"""What is not given under options of Keras, and what to do instead."""
