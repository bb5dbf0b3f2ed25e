"""Train flags hidden in `**kwargs`, found by tracing whether the program changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxlayer_core import rng, specs
from jaxlayer_core.initialization import CallForm, init_function
from jaxlayer_core.pure import Arguments, PureModule
from jaxlayer_core.signature import CallSignature
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.variables import VariableTree

Trace = Callable[[dict[str, bool]], str | None]


def find_in_init(module: PureModule, form: CallForm, key: jax.Array) -> PureModule:
    """Settles the flags of the module's init, and of its calls where they are called alike."""
    signature = module.init_signature or module.signature
    if not signature.hides_flags:
        return module

    def program(extra: dict[str, bool]) -> str | None:
        init = init_function(module, form.structure, extra)
        inputs = [ArraySpec.of(key), *form.specs]
        return specs.program_text(lambda arrays: init(arrays[0], arrays[1:]), inputs)

    settled = signature.discover(program)
    if module.init_signature is not None:
        return dataclasses.replace(module, init_signature=settled)
    return _with_signature(module, settled)


def find_in_call(
    module: PureModule, form: CallForm, params: VariableTree, state: VariableTree
) -> PureModule:
    """Settles the flags of a call of a module whose variables exist."""
    own, rest = params.specs(), state.specs()
    first, last = len(own), len(own) + len(rest)

    def program(extra: dict[str, bool]) -> str | None:
        def call(arrays: list[Any]) -> Any:
            key, *inputs = arrays[last:]
            args, kwargs = form.structure.restore(inputs)
            arguments = module.signature.complete(args, {**kwargs, **extra}, training=False)
            outcome = module.call(
                params.restore(arrays[:first]),
                state.restore(arrays[first:last]),
                key,
                Arguments(*arguments),
                False,
            )
            return jax.tree.leaves(outcome.outputs)

        inputs = [*own, *rest, ArraySpec.of(rng.unused_key()), *form.specs]
        return specs.program_text(call, inputs)

    return _with_signature(module, module.signature.discover(program))


def _with_signature(module: PureModule, signature: CallSignature) -> PureModule:
    has_modes = module.has_modes or bool(signature.flags)
    return dataclasses.replace(module, signature=signature, has_modes=has_modes)
