"""A Keras optimizer whose updates are those of a transformation of Optax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax.numpy as jnp
import keras
import optax

from jaxlayer_core.pure import PyTree
from jaxlayer_optax.errors import OptaxError
from jaxlayer_optax.extra_args import ExtraArgs
from jaxlayer_optax.stateful import StatefulOptimizer

NO_DECAY = (
    "weight_decay= is Keras' own, and needs a learning rate that Optax keeps to itself. Give it "
    "to Optax: optax.adamw(1e-3, weight_decay=1e-2), or optax.add_decayed_weights in a chain; "
    "mask= says which weights."
)


class UpdatingOptimizer(StatefulOptimizer):
    """Updates weights and state. Abstract; see `OptaxOptimizer` for the arguments."""

    def __init__(self, tx: Any, learning_rate: Any, **options: Any) -> None:
        super().__init__(tx, learning_rate, **options)
        self._extra_args = ExtraArgs()

    def extra_args(self, **arguments: Any) -> AbstractContextManager[None]:
        """Gives the transformation extra arguments, for the updates in a `with` block.

        Args:
            **arguments: such as `value=loss`. They go before those of Keras' train step.

        Example:
            >>> import optax
            >>> from jaxlayer_optax import OptaxOptimizer
            >>> weight = keras.Variable([3.0], name="weight")
            >>> optimizer = OptaxOptimizer(optax.polyak_sgd())
            >>> with optimizer.extra_args(value=weight[0] ** 2):
            ...     optimizer.apply([2 * weight.value], [weight])
            >>> float(weight[0])
            1.5
        """
        return self._extra_args.given(arguments)

    def apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Updates all weights.

        Args:
            grads: a gradient for each weight. Instead of None, which Keras warns of, Optax gets
                zeros, as `jax.grad` gives them.
            trainable_variables: the weights, all of them; None for those that it was built for.

        Raises:
            StructureError: these are not all the weights that the optimizer was built for.
            OptaxError: the transformation's `update` raised.
        """
        if trainable_variables is not None and self.built:
            self._check_known(trainable_variables)
        super().apply(grads, trainable_variables)

    def stateless_apply(
        self, optimizer_variables: Sequence[Any], grads: Sequence[Any], trainable_variables: Any
    ) -> tuple[list[Any], list[Any]]:
        """`apply` as a function of values; see Keras.

        Raises:
            StructureError: the values are not those of the weights it was built for.
            OptaxError: the transformation's `update` raised.
        """
        shapes = [tuple(variable.shape) for variable in self._trainable_variables]
        if self.built and [tuple(value.shape) for value in trainable_variables] != shapes:
            raise self._other_weights(len(trainable_variables))
        updated: tuple[list[Any], list[Any]] = super().stateless_apply(
            optimizer_variables, grads, trainable_variables
        )
        return updated

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Keras' own, which is refused.

        Raises:
            OptaxError: always.
        """
        raise OptaxError(NO_DECAY)

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Replaces the weights by Keras' averages, with `use_ema`."""
        super().finalize_variable_values(var_list)
        if self.use_ema:
            # Keras leaves one array to a weight and its average, and deletes it for both when the
            # model is next evaluated.
            for variable in var_list:
                variable.assign(jnp.array(variable.value))

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Any) -> None:
        self._is_updating = True
        try:
            super()._backend_apply_gradients(grads, trainable_variables)
        finally:
            self._is_updating = False

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Any, learning_rate: Any
    ) -> None:
        weights, state = self._weights, self._built_state()
        found = {id(v): grad for v, grad in zip(trainable_variables, grads, strict=True)}
        values = weights.values()
        gradients = [
            found[id(v)] if id(v) in found else jnp.zeros_like(value)
            for v, value in zip(weights.variables, values, strict=True)
        ]
        new_values, new_state = self._run(
            "update",
            self._updated,
            weights.nest(gradients),
            state.restore(state.values()),
            weights.nest(values),
            self._rate_for(gradients),
        )
        for variable, value in zip(weights.variables, weights.flatten(new_values), strict=True):
            variable.assign(value)
        new_leaves = state.extract(new_state, f"the transformation of {self.name}")
        for variable, value in zip(state.variables, new_leaves, strict=True):
            variable.assign(value)

    def _rate_for(self, gradients: Sequence[Any]) -> Any:
        """The learning rate, in the widest dtype of the gradients.

        JAX has no array that widens nothing, as a number does. Where weights have several dtypes,
        the steps of the narrower ones are therefore computed in the widest.
        """
        rate = self._current_rate()
        return None if rate is None else rate.astype(jnp.result_type(*gradients))

    def _updated(
        self, gradients: PyTree, state: PyTree, params: PyTree, rate: Any
    ) -> tuple[PyTree, PyTree]:
        update: Callable[..., Any] = self._make(rate).update
        extra_args = self._extra_args.collect(
            update, self._weights, gradients, self._changing_option()
        )
        updates, new_state = self._extra_args.call(update, extra_args, gradients, state, params)
        return optax.apply_updates(params, updates), new_state

    def _explain(self, what: str, error: Exception) -> str:
        raised = super()._explain(what, error)
        if what != "update":
            return raised
        needs, may_need = self._extra_args.explain(error)
        if needs:
            kind = type(error).__name__
            return (
                f"The transformation of {self.name} needs {needs} Its update raised {kind}: {error}"
            )
        return f"{raised} It may need {may_need}" if may_need else raised

    def _changing_option(self) -> str | None:
        """The option by which Keras makes other gradients of those of the loss."""
        options = ("gradient_accumulation_steps", "clipnorm", "clipvalue", "global_clipnorm")
        return next((option for option in options if getattr(self, option)), None)
