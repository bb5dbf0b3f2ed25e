"""A model's methods in canonical form, each with its train flags settled.

Most flags stand in a signature. One hidden in `**kwargs` is found by tracing: a keyword of
the table is a flag if the model takes it and its value changes the program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxlayer_core import rng, specs
from jaxlayer_core.calls import CallForm
from jaxlayer_core.initialization import init_function
from jaxlayer_core.pure import Arguments, PureModule
from jaxlayer_core.roles import Role
from jaxlayer_core.signature import CallSignature
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.variables import VariableTree


class Methods:
    """The model's methods, made when they are first asked for.

    Args:
        make: gives the canonical form of a method; None is the layer's own.
        state_policy: entries that go before the policy of the model, or None.
    """

    def __init__(
        self,
        make: Callable[[str | None], PureModule],
        state_policy: Mapping[str, Role | str] | None = None,
    ) -> None:
        self._make = make
        self._state_policy = state_policy
        self._made: dict[str | None, PureModule] = {}

    def __getitem__(self, method: str | None) -> PureModule:
        if method not in self._made:
            module = self._make(method)
            policy = module.policy.extended(self._state_policy)
            self._made[method] = dataclasses.replace(module, policy=policy)
        return self._made[method]

    def settle_init(self, form: CallForm, key: jax.Array) -> PureModule:
        """The method of a call that the model is initialised for, its init's flags found."""
        module = self[form.structure.method]
        signature = module.init_signature or module.signature
        if signature.hides_flags:
            # Those of the call wait for a call: a flag may change nothing but the output.
            settled = signature.discover(_init_program(module, form, key))
            module = dataclasses.replace(module, init_signature=settled)
            self._made[form.structure.method] = module
        return module

    def settle_call(self, form: CallForm, params: VariableTree, state: VariableTree) -> PureModule:
        """The method of a call of a model whose variables exist, its flags found."""
        method = form.structure.method
        module = self[method]
        if module.signature.hides_flags:
            program = _call_program(module, form, params, state)
            module = _with_signature(module, module.signature.discover(program))
        elif not module.has_modes:
            if module.shows_modes() is None:
                _call_program(module, form, params, state)({})
            module = dataclasses.replace(module, has_modes=bool(module.shows_modes()))
        self._made[method] = module
        return module


def _with_signature(module: PureModule, signature: CallSignature) -> PureModule:
    has_modes = module.has_modes or bool(signature.flags)
    return dataclasses.replace(module, signature=signature, has_modes=has_modes)


Trace = Callable[[dict[str, bool]], str | None]


def _init_program(module: PureModule, form: CallForm, key: jax.Array) -> Trace:
    inputs = [ArraySpec.of(key), *form.specs]

    def program(extra: dict[str, bool]) -> str | None:
        init = init_function(module, form.structure, extra)
        return specs.program_text(lambda arrays: init(arrays[0], arrays[1:]), inputs)

    return program


def _call_program(
    module: PureModule, form: CallForm, params: VariableTree, state: VariableTree
) -> Trace:
    own, rest = params.specs(), state.specs()
    first, last = len(own), len(own) + len(rest)
    inputs = [*own, *rest, ArraySpec.of(rng.unused_key()), *form.specs]

    def program(extra: dict[str, bool]) -> str | None:
        def call(arrays: list[Any]) -> Any:
            key, *data = arrays[last:]
            args, kwargs = form.structure.restore(data)
            arguments = module.signature.complete(args, {**kwargs, **extra}, training=False)
            outcome = module.call(
                params.restore(arrays[:first]),
                state.restore(arrays[first:last]),
                key,
                Arguments(*arguments),
                False,
            )
            return jax.tree.leaves(outcome.outputs)

        return specs.program_text(call, inputs)

    return program
