"""A model's calls as functions of arrays: compiled, or traced for their shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import keras

from jaxlayer_core import backends, rng, specs
from jaxlayer_core.calls import CallForm
from jaxlayer_core.methods import Methods
from jaxlayer_core.pure import Arguments, PureModule
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.structure import CallStructure, Packed, only_arrays
from jaxlayer_core.variables import VariableTree

Writes = Literal["all", "inference", "none"]
"""Which state a call writes: all of it, what the model also writes in inference, or none."""

Result = tuple[Packed, list[Any], dict[str, Any]]
"""Outputs, values of the state variables that are written, and losses."""


class Runner:
    """Runs one model with one set of variables.

    Args:
        methods: the model.
        params: its params.
        state: its state.
        drop: whether results that are not arrays are dropped.
    """

    def __init__(
        self, methods: Methods, params: VariableTree, state: VariableTree, drop: bool
    ) -> None:
        self._methods = methods
        self._params = params
        self._state = state
        self._drop = drop
        self._programs: dict[Any, Any] = {}
        self._outputs: dict[Any, Packed] = {}

    def program(self, structure: CallStructure, training: bool, writes: Writes) -> Any:
        """The compiled program of a call."""
        key = structure, training, writes
        if structure.is_cacheable and key in self._programs:
            return self._programs[key]
        module = self._methods[structure.method]
        function = self._function(module, structure, training, writes)
        program = backends.current().Program(function)
        if structure.is_cacheable:
            self._programs[key] = program
        return program

    def output_specs(self, form: CallForm, training: bool) -> Packed:
        """Specs of a call's outputs, with unknown dimensions as None."""
        if not form.structure.is_cacheable:
            return self._infer(form, training)
        known = form.structure, form.specs, training, tuple(v.dtype for v in self._params.variables)
        if known not in self._outputs:
            self._outputs[known] = self._infer(form, training)
        return self._outputs[known]

    def _infer(self, form: CallForm, training: bool) -> Packed:
        module = self._methods[form.structure.method]
        function = self._function(module, form.structure, training, "none")
        params, state = self._params.specs(), self._state.specs()
        first, last = len(params), len(params) + len(state)

        def outputs(arrays: list[Any]) -> Packed:
            key, *inputs = arrays[last:]
            return function(arrays[:first], arrays[first:last], key, inputs)[0]

        key = ArraySpec.of(rng.unused_key())
        packed: Packed = specs.infer(outputs, [*params, *state, key, *form.specs])
        return packed

    def written(self, method: str | None, writes: Writes) -> list[keras.Variable]:
        """The state variables that a call writes."""
        chosen = self._writes(self._methods[method], writes)
        return [v for v, write in zip(self._state.variables, chosen, strict=True) if write]

    def _writes(self, module: PureModule, writes: Writes) -> list[bool]:
        always = module.writes_in_inference
        return [
            writes == "all" or (writes == "inference" and always(path))
            for path in self._state.paths
        ]

    def _function(
        self, module: PureModule, structure: CallStructure, training: bool, writes: Writes
    ) -> Callable[[Sequence[Any], Sequence[Any], jax.Array, Sequence[Any]], Result]:
        owner = module.signature.owner
        chosen = self._writes(module, writes)

        def function(
            params: Sequence[Any], state: Sequence[Any], key: jax.Array, inputs: Sequence[Any]
        ) -> Result:
            arguments = structure.restore(inputs)
            outcome = module.call(
                self._params.restore(params),
                self._state.restore(state),
                key,
                Arguments(*module.signature.complete(*arguments, training)),
                training,
            )
            new_state = self._state.extract(outcome.state, owner)
            written = [v for v, write in zip(new_state, chosen, strict=True) if write]
            outputs = Packed.of(only_arrays(outcome.outputs, owner, self._drop))
            return outputs, written, outcome.losses

        return function
