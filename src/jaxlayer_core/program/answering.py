"""As few stored calls as answer all the calls of one kind that were made, in one mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from jaxlayer_core.errors import MissingDependencyError, NotExpressibleError, ProgramError
from jaxlayer_core.program import exporting
from jaxlayer_core.program.calls import Call
from jaxlayer_core.program.exporting import NOT_DIFFERENTIABLE, Stored
from jaxlayer_core.program.flattening import FlatCall
from jaxlayer_core.program.kinds import CallKind, Specs
from jaxlayer_core.program.library import KEY_DATA
from jaxlayer_core.program.method import method_name
from jaxlayer_core.pure import PureModule
from jaxlayer_core.specs import PROBES
from jaxlayer_core.variables import VariableTree

WAY_OUT = (
    "Give the model a config instead: make it of importable functions and modules, give its own "
    "classes get_config() and from_config(), and load it with custom_objects={...}."
)


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was stored, and what could not be.

    Attributes:
        held: blobs with their calls, the most general first.
        failures: errors for the calls that are not answered as they could be.
    """

    held: list[tuple[Stored, Call]]
    failures: list[ProgramError]


def answer(
    module: PureModule,
    kind: CallKind,
    training: bool,
    params: VariableTree,
    state: VariableTree,
    own: Sequence[jax.ShapeDtypeStruct],
) -> Answers:
    """Stores one call for all sizes, and then those that it does not take or has no gradient for.

    Args:
        module: the model.
        kind: the calls.
        training: the mode.
        params: the model's params.
        state: its state.
        own: what a call sees of both.

    Raises:
        MissingDependencyError: a package that storing needs is not installed.
    """
    try:
        call = FlatCall(module, kind.form, training, params, state)
    except NotExpressibleError as error:
        owner = module.signature.owner
        return Answers([], [_not_stored(owner, kind, kind.form.specs, training, error)])
    answering = _Answering(call, kind, own)
    failures = []
    for wanted in (None, *(specs for specs in kind.seen if specs != kind.form.specs)):
        try:
            answering.add(wanted)
        except MissingDependencyError:
            raise
        except Exception as error:
            specs = wanted or kind.form.specs
            failures.append(_not_stored(module.signature.owner, kind, specs, training, error))
    if answering.held:
        for specs in kind.seen:
            answering.add_probes(specs)
    return Answers(answering.held, failures)


class _Answering:
    """Stores one call after the other."""

    def __init__(self, call: FlatCall, kind: CallKind, own: Sequence[jax.ShapeDtypeStruct]) -> None:
        self._call, self._kind, self._own = call, kind, own
        self.held: list[tuple[Stored, Call]] = []

    def _taking(self, specs: Specs) -> list[Call]:
        inputs = self._call.ordered(specs)
        return [known for _, known in self.held if known.takes(inputs)]

    def add(self, wanted: Specs | None) -> None:
        """Stores a call, unless it is answered; None stands for all of them together."""
        taking = [] if wanted is None else self._taking(wanted)
        if any(known.no_gradient in (None, NOT_DIFFERENTIABLE) for known in taking):
            return
        stored, record = self._store(wanted)
        if not taking or record.no_gradient is None:
            self.held.append((stored, record))

    def add_probes(self, specs: Specs) -> None:
        """Stores two calls from which `specs.infer` concludes what one of unknown sizes returns.

        A Keras model with an input of unknown size asks for that when it is loaded.
        """
        if not any(None in spec.shape for spec in specs) or self._taking(specs):
            return
        for sizes in PROBES:
            filled = [tuple(spec.with_size(size) for spec in specs) for size in sizes]
            try:
                missing = [self._store(one) for one in filled if not self._taking(one)]
            except Exception:
                continue  # the next pair; that such a call is not answered was noted already
            self.held += missing
            return

    def _store(self, wanted: Specs | None) -> tuple[Stored, Call]:
        key = len(self._own)
        stored = exporting.store(
            self._call,
            [*self._own, KEY_DATA],
            self._call.ladder(self._kind, wanted),
            droppable=lambda index: index == key,
            gradient=True,
        )
        return stored, self._call.record(stored, stored.kept[key], stored.kept[key + 1 :])


def _not_stored(
    owner: str, kind: CallKind, specs: Specs, training: bool, error: Exception
) -> ProgramError:
    shown = ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in specs)
    name = method_name(kind.form.structure.method) or "__call__"
    mode = "training" if training else "inference"
    what = "contains something that no data can express" * isinstance(error, NotExpressibleError)
    return ProgramError(
        f"The call {name}({shown}) of {owner} in {mode} cannot be stored as a program"
        f"{what and ': it '}{what}: {type(error).__name__}: {error}\n{WAY_OUT}",
        cause=error,
    )
