"""Running pure functions on Keras' JAX backend: compile the call, slim down the init."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import Var
from jax.interpreters import partial_eval

from jaxlayer_core.backends import sharded

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
    it is the same operations, and leaves out the forward pass. Only whole operations are
    left out: inside of one, such as a `scan`, XLA compiles everything together, and less of
    it would round differently, as `jax.jit` of the whole does.

    Args:
        fn: takes `(key, inputs)`, returns a pytree of arrays.
        key: spec of the key.
        inputs: specs of the inputs.
    """

    def __init__(
        self, fn: Callable[[jax.Array, Arrays], Any], key: Any, inputs: Sequence[Any]
    ) -> None:
        self._program, self.out = jax.make_jaxpr(fn, return_shape=True)(key, list(inputs))

    def evaluate(
        self,
        key: jax.Array,
        inputs: Callable[[int], Any],
        wanted: Mapping[int, jax.sharding.Sharding | None],
    ) -> dict[int, jax.Array]:
        """Computes the wanted leaves.

        Args:
            key: the key.
            inputs: gives an input by its index; asked only for those that are needed.
            wanted: which leaves of the result, by number, and where each is to be; None is
                the default device. A leaf that is split is made in its shards.

        Returns:
            The leaves by number.
        """
        numbers = sorted(wanted)
        jaxpr, needed = _live_part(self._program.jaxpr, numbers)
        # Nothing reads the inputs that are not needed.
        values = [inputs(i) if need else None for i, need in enumerate(needed[1:])]
        # Not `jax.ensure_compile_time_eval`: inside the operations that are compiled here, it
        # would make constants of whatever has no inputs, some as large as the weights.
        with jax.core.eval_context():
            results = sharded.evaluate(
                jaxpr, self._program.consts, [key, *values], [wanted[n] for n in numbers]
            )
        return dict(zip(numbers, results, strict=True))


def _live_part(jaxpr: Any, wanted: Sequence[int]) -> tuple[Any, list[bool]]:
    """A program without the operations that the wanted results do not depend on.

    Returns:
        The program, which returns the wanted results only, and which inputs it reads.
    """
    outputs = [jaxpr.outvars[number] for number in wanted]
    live = {v for v in outputs if isinstance(v, Var)}
    kept = []
    for operation in reversed(jaxpr.eqns):
        if operation.effects or any(v in live for v in operation.outvars):
            kept.append(operation)
            live.update(v for v in operation.invars if isinstance(v, Var))
    reduced = jaxpr.replace(eqns=kept[::-1], outvars=outputs)
    return reduced, [v in live for v in jaxpr.invars]
