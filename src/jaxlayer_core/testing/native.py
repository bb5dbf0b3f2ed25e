"""The referee: the case in the hands of its framework, and what that shows of it.

All but `init` is one `jax.jit` program, as in a native training loop. It owes nothing to the
layer but `key_from_seed`, the published way to make the key of a call by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlayer_core.rng import key_from_seed
from jaxlayer_core.testing.cases import ConformanceCase
from jaxlayer_core.testing.comparing import is_same, require
from jaxlayer_core.testing.trees import casted, is_array, is_inexact, loss_of, split

SEED = 7
"""The seed of the layers that are tested."""


class Result(NamedTuple):
    """What a native call gives: outputs, the state that is kept, the sum of all losses."""

    outputs: Any
    state: Any
    loss: Any


class Native:
    """A case in the hands of its framework.

    Args:
        case: the case.
        model: its model; None to make it.
    """

    def __init__(self, case: ConformanceCase, model: Any = None) -> None:
        self.case = case
        self.model = case.make() if model is None else model
        given = case.arguments()
        require(
            isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict),
            f"{case}: `arguments` must return a tuple of args and a dict of kwargs, got {given!r}.",
        )
        arrays, self.restore = split((tuple(given[0]), given[1]), is_array)
        self.arrays: list[Any] = [np.asarray(array) for array in arrays]

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(case: ConformanceCase) -> Native:
        """The referee of a case, shared by all properties: what it compiles, it compiles once."""
        return Native(case)

    def init(self, seed: Any = (SEED, 0), arrays: Sequence[Any] | None = None) -> tuple[Any, Any]:
        """Params and state, made eagerly; the arrays are the caller's own."""
        given = self.arrays if arrays is None else arrays
        key = key_from_seed(np.asarray(seed, "uint32"))
        args, kwargs = self.restore(list(map(jnp.asarray, given)))
        made = self.case.init(self.model, key, args, kwargs)
        require(
            isinstance(made, tuple) and len(made) == 2,
            f"{self.case}: `init` must return params and state, got {made!r}.",
        )
        params, state = jax.tree.map(jnp.array, made)
        return params, state

    @functools.cached_property
    def start(self) -> tuple[Any, Any]:
        """Params and state for the seed that is tested."""
        return self.init()

    def run(
        self,
        params: Any,
        state: Any,
        seed: Any,
        training: bool,
        arrays: Sequence[Any] | None = None,
    ) -> Result:
        """One compiled call, with the key of a `[seed, counter]`."""
        given = self.arrays if arrays is None else arrays
        return self._compiled(params, state, key_from_seed(seed), list(given), training)

    @functools.cached_property
    def _compiled(self) -> Callable[..., Result]:
        return jax.jit(self._apply, static_argnums=4)

    def run_with(self, params: Any, state: Any, seed: Any, kwargs: dict[str, Any]) -> Result:
        """One compiled call in inference, with all arguments by name."""
        arrays, put_back = split(kwargs, is_array)

        def run(params: Any, state: Any, key: Any, arrays: Any) -> Result:
            return self._apply_to(params, state, key, (), put_back(arrays), False)

        result: Result = jax.jit(run)(params, state, key_from_seed(seed), arrays)
        return result

    def gradients(
        self, params: Any, state: Any, seed: Any, arrays: Any, cast: Any = None
    ) -> tuple[Any, Any]:
        """Gradients of the params and of the arrays that have any, and the new state.

        Args:
            params: differentiated at these.
            state: of the model.
            seed: `[seed, counter]` of the key.
            arrays: of the arguments.
            cast: what params and arrays are cast to for compute, None for their own.
        """
        return self._gradients(params, state, key_from_seed(seed), list(arrays), cast)

    @functools.cached_property
    def _gradients(self) -> Callable[..., tuple[Any, Any]]:
        def gradients(params: Any, state: Any, key: Any, arrays: Any, cast: Any) -> Any:
            trained, put_back = split((params, arrays), is_inexact)

            def loss(trained: Any) -> Any:
                own, data = casted(put_back(trained), cast)
                result = self._apply(own, state, key, data, True)
                return loss_of(result.outputs) + result.loss, result.state

            grads, after = jax.grad(loss, has_aux=True)(trained)
            count = len(split(params, is_inexact)[0])
            return (grads[:count], grads[count:]), after

        return jax.jit(gradients, static_argnums=4)

    def steps(
        self, variables: tuple[Any, Any], seed: Any, count: int, rate: float, trains: Any = None
    ) -> tuple[Any, Any]:
        """Params and state after steps of SGD; each step of a model that draws has the next key.

        Args:
            variables: params and state.
            seed: `[seed, counter]` of the first step's key.
            count: how many steps.
            rate: the learning rate.
            trains: per inexact param whether it is trained; None for all.
        """
        params, state = variables
        counter = np.asarray(seed, "uint32")
        for number in range(count):
            now = counter + np.asarray([0, number * self.draws(True)], "uint32")
            (gradients, _), state = self.gradients(params, state, now, self.arrays)
            weights, put_back = split(params, is_inexact)
            params = put_back(
                [
                    weight - rate * gradient if train else weight
                    for weight, gradient, train in zip(
                        weights, gradients, trains or [True] * len(weights), strict=True
                    )
                ]
            )
        return params, state

    def _apply(self, params: Any, state: Any, key: Any, arrays: Any, training: bool) -> Result:
        args, kwargs = self.restore(arrays)
        return self._apply_to(params, state, key, args, kwargs, training)

    def _apply_to(
        self, params: Any, state: Any, key: Any, args: Any, kwargs: Any, training: bool
    ) -> Result:
        made = self.case.apply(self.model, params, state, key, args, kwargs, training)
        require(
            isinstance(made, tuple) and len(made) in (2, 3),
            f"{self.case}: `apply` must return outputs, state and perhaps losses, got {made!r}.",
        )
        losses = jax.tree.leaves(made[2:])
        return Result(made[0], made[1], sum(map(jnp.sum, losses), start=jnp.zeros(())))

    # What the framework shows.

    @functools.cache  # noqa: B019  # a referee lives as long as its case
    def draws(self, training: bool) -> bool:
        """Whether a call depends on its key."""
        one, *others = (self.run(*self.start, (9, n), training) for n in range(3))
        return not all(is_same(one, other) for other in others)

    @functools.cached_property
    def has_modes(self) -> bool:
        """Whether training and inference give different outputs.

        State does not tell: in inference a native user drops what a model without modes wrote.
        """
        training, inference = (self.run(*self.start, (9, 0), mode) for mode in (True, False))
        return not is_same(training.outputs, inference.outputs)

    @functools.cached_property
    def is_random(self) -> bool:
        """Whether the initial values depend on the key."""
        return not is_same(self.start, self.init((SEED + 1, 0)))

    def shapes(self, longer: int) -> Any:
        """Specs of the outputs in inference, for a batch that is so much longer."""
        arrays = [
            jax.ShapeDtypeStruct((a.shape[0] + longer, *a.shape[1:]) if a.ndim else (), a.dtype)
            for a in self.arrays
        ]
        run = functools.partial(self._apply, training=False)
        return jax.eval_shape(run, *self.start, key_from_seed((9, 0)), arrays).outputs

    @functools.cached_property
    def is_batched(self) -> bool:
        """Whether the first axes of all arrays may grow together."""
        try:
            self.shapes(1)
        except Exception:  # each framework has its own errors for shapes that do not fit
            return False
        return any(array.ndim for array in self.arrays)
