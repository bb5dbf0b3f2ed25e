"""Running pure functions on Keras' JAX backend: compile the call, slim down the init."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from jax.interpreters import partial_eval

Arrays = Sequence[Any]


class Program:
    """One call of a model with everything but its arrays fixed.

    Inside somebody else's trace, such as Keras' train step, it is inlined, so the step is
    what a hand-written `jax.jit` would see. Called eagerly it runs compiled. Either way
    the model is traced once per shape.

    Args:
        fn: takes `(params, state, key, inputs)`, three lists of arrays and one typed key.
    """

    def __init__(self, fn: Callable[[Arrays, Arrays, jax.Array, Arrays], Any]) -> None:
        self._run = jax.jit(fn, inline=True)
        self._draws: dict[Hashable, bool] = {}

    def __call__(self, params: Arrays, state: Arrays, key: jax.Array, inputs: Arrays) -> Any:
        """Runs the call."""
        return self._run(params, state, key, inputs)

    def draws(self, params: Arrays, state: Arrays, key: jax.Array, inputs: Arrays) -> bool:
        """Whether the result depends on `key`, found by tracing."""
        signature = tuple((x.shape, x.dtype) for x in (*inputs, *params))
        known = self._draws.get(signature)
        if known is None:
            arguments = jax.tree.map(_abstract, (params, state, key, inputs))
            jaxpr = self._run.trace(*arguments).jaxpr.jaxpr
            _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
            known = self._draws[signature] = used[len(params) + len(state)]
        return known


def _abstract(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


class InitProgram:
    """The part of an initialisation that its results depend on.

    Evaluating it operation by operation gives the very bits of the eager `init`, because
    it is the same operations, and never runs the forward pass for its own sake. (Under
    `jax.jit` XLA would fuse them and round differently.)

    Args:
        fn: takes `(key, inputs)`, returns a pytree of arrays.
        key: spec of the key.
        inputs: specs of the inputs.
    """

    def __init__(
        self, fn: Callable[[jax.Array, Arrays], Any], key: Any, inputs: Sequence[Any]
    ) -> None:
        self._jaxpr, self.out = jax.make_jaxpr(fn, return_shape=True)(key, list(inputs))

    def evaluate(
        self, key: jax.Array, inputs: Callable[[int], Any], wanted: Sequence[bool]
    ) -> list[jax.Array | None]:
        """Computes the wanted leaves.

        Args:
            key: the key.
            inputs: gives an input by its index; asked only for those that are needed.
            wanted: which leaves of the result, in order.

        Returns:
            The leaves, None where not wanted.
        """
        constants = dict(zip(self._jaxpr.jaxpr.constvars, self._jaxpr.consts, strict=True))
        jaxpr, used = partial_eval.dce_jaxpr(self._jaxpr.jaxpr, list(wanted))
        arguments = [key if index == 0 else inputs(index - 1) for index, u in enumerate(used) if u]
        with jax.ensure_compile_time_eval():
            results = iter(
                jax.core.eval_jaxpr(jaxpr, [constants[v] for v in jaxpr.constvars], *arguments)
            )
        return [next(results) if want else None for want in wanted]
