"""What a transformation is given beside gradients, state and weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

    def call(self, update: Callable[..., Any], extra_args: Mapping[str, Any], *args: Any) -> Any:
        """Calls an update, without those arguments of Keras that a part of it refuses.

        What `optax.chain` makes takes any, and hands them on to parts that may take none.
        """
        while True:
            try:
                return update(*args, **extra_args)
            except TypeError as error:
                found = _UNEXPECTED.search(str(error))
                name = found[1] if found else ""
                if name not in extra_args or name in self._given:
                    raise
                extra_args = {key: value for key, value in extra_args.items() if key != name}
                self._withheld[name] = _REFUSED

    def explain(self, error: Exception) -> tuple[str, str]:
        """What the last update was not given, why, and what to do.

        Args:
            error: what it raised.

        Returns:
            What it needs, by its own words; and what it may need, where it names nothing. Either
            may be empty.
        """
        withheld = {name: why for name, why in self._withheld.items() if name not in self._given}
        named = [name for name in _named(str(error), withheld) if name not in self._given]
        return _reasons(named, withheld), "" if named else _reasons(withheld, withheld)

    def _of_step(self, weights: Weights, gradients: PyTree, changes: str | None) -> dict[str, Any]:
        step = train_step.find(weights)
        if step is None:
            self._withheld = dict.fromkeys(_FROM_KERAS, _OWN_LOOP)
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


_UNEXPECTED = re.compile(r"got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r"missing \d+ required keyword-only arguments?: (.*)")


def _named(message: str, withheld: Iterable[str]) -> list[str]:
    """The arguments that an error says are missing."""
    found = _MISSING.search(message)
    if found:
        return re.findall(r"'(\w+)'", found[1])
    return [name for name in withheld if re.search(rf"(['\"`]){name}\1|^{name}\b", message)]


def _reasons(names: Iterable[str], withheld: Mapping[str, str]) -> str:
    """A sentence for all that are not given for one reason."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        reasons.setdefault(withheld.get(name, _UNKNOWN), []).append(name)
    return " It also needs ".join(_reason(why, found) for why, found in reasons.items())


def _reason(why: str, names: Sequence[str]) -> str:
    *others, last = (f"`{name}`" for name in names)
    listed = f"{', '.join(others)} and {last}" if others else last
    them = "them" if others else "it"
    arguments = ", ".join(f"{name}=..." for name in names)
    trees = "" if set(names) <= {"value"} else _TREES
    return f"{listed}, and is not given {them}: {why}".format(
        them=them, arguments=arguments, trees=trees
    )


_TREES = " Optax has nested dicts: optimizer.nest and optimizer.flatten convert."
_OWN_LOOP = (
    "this is not Keras' own train step. Train with fit, which gives {them}, or give {them} around "
    "the update: with optimizer.extra_args({arguments}): optimizer.apply(...).{trees}"
)
_UNKNOWN = (
    "Keras has no such thing. Give {them} around the update, or around fit if that never changes: "
    "with optimizer.extra_args({arguments}): model.fit(...)."
)
_REFUSED = (
    "another part of the transformation does not take {them}. Hide {them} from that part: "
    "optax.GradientTransformation(part.init, part.update)."
)
_NOTHING: tuple[tuple[str, ...], str] = ((), "")
_CLIPPED = (("grad",), "Clip in Optax: optax.chain(optax.clip_by_global_norm(1.0), ...).")
_LOST: Mapping[str, tuple[tuple[str, ...], str]] = {
    "clipnorm": _CLIPPED,
    "clipvalue": _CLIPPED,
    "global_clipnorm": _CLIPPED,
    "gradient_accumulation_steps": (_FROM_KERAS, "Accumulate in Optax: optax.MultiSteps(...)."),
}
"""What is not given under options of Keras, and what to do instead."""
