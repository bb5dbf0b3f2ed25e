"""A model's calls as functions of arrays: compiled, or traced for their shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import keras

from jaxlayer_core import backends, layouts, rng, specs
from jaxlayer_core.beside import sort
from jaxlayer_core.calls import CallForm
from jaxlayer_core.methods import Methods
from jaxlayer_core.packed import Packed, only_arrays
from jaxlayer_core.pure import Arguments, PureModule
from jaxlayer_core.remat import Rematerialization
from jaxlayer_core.roles import Role
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.structure import CallStructure
from jaxlayer_core.variables import VariableTree

Writes = Literal["all", "inference", "none"]
"""Which state a call writes: all of it, what the model also writes in inference, or none."""


class Result(NamedTuple):
    """What a program gives.

    Attributes:
        outputs: what the model returns, and what is returned beside it.
        state: values of the state variables that are written.
        losses: scalars by path.
        metrics: scalars by path.
        sown: paths of all that was made beside output and state.
    """

    outputs: Packed
    state: list[Any]
    losses: dict[str, Any]
    metrics: dict[str, Any]
    sown: dict[str, None]


class Runner:
    """Runs one model with one set of variables.

    Args:
        methods: the model.
        params: its params.
        state: its state.
        drop: whether results that are not arrays are dropped.
        remat: how programs are rematerialised that are.
    """

    def __init__(
        self,
        methods: Methods,
        params: VariableTree,
        state: VariableTree,
        *,
        drop: bool,
        remat: Rematerialization,
    ) -> None:
        self._methods = methods
        self._params = params
        self._state = state
        self._drop = drop
        self._remat = remat
        self._programs: dict[Any, Any] = {}
        self._outputs: dict[Any, Packed] = {}

    def program(
        self, structure: CallStructure, training: bool, writes: Writes, remat: bool = False
    ) -> Any:
        """The compiled program of a call, which returns a `Result`."""
        key = structure, training, writes, remat, layouts.active_mesh()
        if structure.is_cacheable and key in self._programs:
            return self._programs[key]
        module = self._methods[structure.method]
        function = self._function(module, structure, training, writes)
        program = backends.current().Program(self._remat.wrap(function) if remat else function)
        if structure.is_cacheable:
            self._programs[key] = program
        return program

    def output_specs(self, form: CallForm, training: bool) -> Packed:
        """Specs of a call's outputs, with unknown dimensions as None."""
        if not form.structure.is_cacheable:
            return self._infer(form, training).outputs
        known = form.structure, form.specs, training, tuple(v.dtype for v in self._params.variables)
        if known not in self._outputs:
            self._outputs[known] = self._infer(form, training).outputs
        return self._outputs[known]

    def metric_names(self, form: CallForm) -> list[str]:
        """Paths of the metrics that a call reports, in either mode."""
        return list(self._infer(form, True).metrics | self._infer(form, False).metrics)

    def made_beside(self, form: CallForm) -> list[str]:
        """Paths of all that a call makes beside output and state, in either mode."""
        return list(self._infer(form, True).sown | self._infer(form, False).sown)

    def _infer(self, form: CallForm, training: bool) -> Result:
        module = self._methods.settle_call(form, self._params, self._state)
        function = self._function(module, form.structure, training, "none")
        params, state = self._params.specs(), self._state.specs()
        first, last = len(params), len(params) + len(state)

        def outputs(arrays: list[Any]) -> Result:
            key, *inputs = arrays[last:]
            return function(arrays[:first], arrays[first:last], key, inputs)

        key = ArraySpec.of(rng.unused_key())
        result: Result = specs.infer(outputs, [*params, *state, key, *form.specs])
        return result

    def written(self, method: str | None, writes: Writes) -> dict[str, keras.Variable]:
        """The state variables that a call writes, by name."""
        chosen = self._writes(self._methods[method], writes)
        named = zip(self._state.names, self._state.variables, chosen, strict=True)
        return {name: variable for name, variable, write in named if write}

    def _writes(self, module: PureModule, writes: Writes) -> list[bool]:
        if writes == "none":
            return [False] * len(self._state.paths)
        return [module.policy.writes(path, writes == "all") for path in self._state.paths]

    def _function(
        self, module: PureModule, structure: CallStructure, training: bool, writes: Writes
    ) -> Callable[[Sequence[Any], Sequence[Any], jax.Array, Sequence[Any]], Result]:
        owner = module.signature.owner
        chosen = self._writes(module, writes)
        returns_beside = module.captures or module.policy.uses(Role.OUTPUT)

        def function(
            params: Sequence[Any], state: Sequence[Any], key: jax.Array, inputs: Sequence[Any]
        ) -> Result:
            arguments = structure.restore(inputs)
            with layouts.under_mesh():
                outcome = module.call(
                    self._params.restore(params),
                    self._state.restore(state),
                    key,
                    Arguments(*module.signature.complete(*arguments, training)),
                    training,
                )
            new_state = self._state.extract(outcome.state, owner)
            written = [v for v, write in zip(new_state, chosen, strict=True) if write]
            beside = sort(module.policy, outcome, self._state.paths, new_state)
            outputs = (outcome.outputs, beside.outputs) if returns_beside else outcome.outputs
            packed = Packed.of(only_arrays(outputs, owner, self._drop))
            sown = dict.fromkeys(outcome.sown)
            return Result(packed, written, beside.losses, beside.metrics, sown)

        return function
