"""A Keras optimizer whose variables are the state of a transformation of Optax."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras

from jaxlayer_core.errors import BuildError, JaxLayerError, StructureError
from jaxlayer_core.pure import PyTree
from jaxlayer_core.variables import VariableTree
from jaxlayer_optax import rates, states
from jaxlayer_optax.errors import OptaxError
from jaxlayer_optax.rates import StateRate
from jaxlayer_optax.transformation import Maker
from jaxlayer_optax.weights import Weights


class StatefulOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]  # keras has no types
    """Makes and keeps the state. Abstract; see `OptaxOptimizer` for the arguments."""

    def __init__(self, tx: Any, learning_rate: Any, **options: Any) -> None:
        make = Maker(tx, has_rate=learning_rate is not None)
        rate: Any = StateRate(lambda: self._state)
        if make.has_rate:
            rate = rates.as_keras(learning_rate)
        super().__init__(learning_rate=rate, **options)
        self._make = make
        self._weights = Weights(())
        self._state: VariableTree | None = None
        self._is_updating = False
        if make.has_rate:
            make(self._current_rate())  # what is wrong shows at once

    # The state.

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the state for some weights.

        Args:
            variables: the weights that are trained. Those with `overwrite_with_gradient`, which
                Keras sets itself, are not handed to Optax.

        Raises:
            OptaxError: the transformation's `init` raised.
            StructureError: a weight is given twice, or the optimizer was built for other weights.
        """
        if self.built:
            self._check_known(variables)
            return
        weights = Weights(v for v in variables if not self._overwrite_variable_with_gradient(v))
        with jax.core.eval_context():
            initial = self._run("init", self._make(self._current_rate()).init, weights.tree())
        super().build(variables)
        with keras.name_scope(self.name, caller=self):
            state = states.create(initial, weights)
        for variable in state.variables:
            self._track_variable(variable)
        self._weights, self._state = weights, state

    @property
    def state(self) -> PyTree:
        """The transformation's state: Optax' own pytree, with Keras variables as leaves.

        Raises:
            BuildError: the optimizer is not built.
        """
        return self._built_state().tree

    def state_tree(self) -> PyTree:
        """The transformation's state as Optax takes it. The arrays are copies.

        Raises:
            BuildError: the optimizer is not built.
        """
        state = self._built_state()
        return state.restore([jnp.array(value) for value in state.values()])

    def weights_tree(self) -> dict[str, Any]:
        """The weights as the transformation gets them: a nested dict. The arrays are copies.

        Raises:
            BuildError: the optimizer is not built.

        Example:
            >>> import optax
            >>> from jaxlayer_optax import OptaxOptimizer
            >>> optimizer = OptaxOptimizer(optax.adam(1e-3))
            >>> optimizer.build([keras.Variable([1.0, 2.0], name="weight")])
            >>> optimizer.weights_tree()
            {'weight': Array([1., 2.], dtype=float32)}
        """
        self._built_state()
        return self._weights.nest([jnp.array(value) for value in self._weights.values()])

    def nest(self, values: Sequence[Any]) -> dict[str, Any]:
        """Values or gradients of the weights as Optax takes them: a nested dict.

        Args:
            values: one for each weight, in the order that the optimizer was built with.

        Raises:
            BuildError: the optimizer is not built.
            StructureError: there are more or fewer than weights.

        Example:
            >>> import optax
            >>> from jaxlayer_optax import OptaxOptimizer
            >>> optimizer = OptaxOptimizer(optax.adam(1e-3))
            >>> optimizer.build([keras.Variable([1.0, 2.0], name="weight")])
            >>> optimizer.nest(["gradient"])
            {'weight': 'gradient'}
            >>> optimizer.flatten({"weight": "gradient"})
            ['gradient']
        """
        self._built_state()
        if len(values) != len(self._weights.variables):
            raise StructureError(
                f"{self.name}.nest takes a value for each of the {len(self._weights.variables)} "
                f"weights, and got {len(values)}. Give those of model.trainable_variables."
            )
        return self._weights.nest(values)

    def flatten(self, tree: PyTree) -> list[Any]:
        """What a nested dict has for each weight, as Keras takes it: the reverse of `nest`.

        Args:
            tree: a dict like `weights_tree()`.

        Raises:
            BuildError: the optimizer is not built.
            StructureError: it is another tree.
        """
        self._built_state()
        try:
            return self._weights.flatten(tree)
        except ValueError as error:
            raise StructureError(
                f"{self.name}.flatten takes a nested dict of the weights by path, as "
                f"optimizer.weights_tree() gives it, and got another tree: {error}",
                cause=error,
            ) from error

    @contextlib.contextmanager
    def swapped(self, function: Callable[[PyTree, PyTree], PyTree]) -> Iterator[None]:
        """Puts other values into the weights, for a `with` block.

        Args:
            function: from the state and the weights, as Optax has them, to the values: such as
                `optax.contrib.schedule_free_eval_params`.

        Raises:
            BuildError: the optimizer is not built.
            OptaxError: the function raised, or gave a tree that is not like the weights.

        Example:
            >>> import optax
            >>> from jaxlayer_optax import OptaxOptimizer
            >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
            >>> optimizer = OptaxOptimizer(optax.contrib.schedule_free_sgd(0.1))
            >>> model.compile(optimizer, "mse")
            >>> _ = model.fit(jnp.ones((4, 3)), jnp.ones((4, 1)), verbose=0)
            >>> with optimizer.swapped(optax.contrib.schedule_free_eval_params):
            ...     loss = model.evaluate(jnp.ones((4, 3)), jnp.ones((4, 1)), verbose=0)
        """
        state, values = self._built_state(), self._weights.values()

        def others() -> list[Any]:
            tree = function(state.restore(state.values()), self._weights.nest(values))
            return self._weights.flatten(tree)

        # Copies: they may be arrays of the state, which Keras would delete with the weights'.
        for variable, other in zip(
            self._weights.variables, self._run("swapped function", others), strict=True
        ):
            variable.assign(jnp.array(other))
        try:
            yield
        finally:
            for variable, value in zip(self._weights.variables, values, strict=True):
                variable.assign(value)

    def _built_state(self) -> VariableTree:
        if self._state is None:
            raise BuildError(
                f"{self.name} has no state before it is built. Train, or use "
                "optimizer.build(model.trainable_variables)."
            )
        return self._state

    def _check_known(self, variables: Sequence[keras.Variable]) -> None:
        """Refuses other weights than those that the optimizer was built for."""
        if {id(variable) for variable in variables} != set(map(id, self._trainable_variables)):
            raise self._other_weights(len(variables))

    def _other_weights(self, count: int) -> StructureError:
        return StructureError(
            f"{self.name} was built for {len(self._trainable_variables)} weights, and is now given "
            f"{count}, or others. Optax updates all weights at once, and an optimizer belongs to "
            "the weights of one model: make a new one for another model, and compile again with a "
            "new one after freezing."
        )

    def _run(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """Calls what the user gave, or Optax."""
        try:
            return function(*args)
        except JaxLayerError:
            raise
        except Exception as error:
            raise OptaxError(self._explain(what, error), cause=error) from error

    def _explain(self, what: str, error: Exception) -> str:
        """What to say of an error of a user's function."""
        return (
            f"The {what} of the transformation of {self.name} raised {type(error).__name__}: "
            f"{error}. It works on one nested dict of the weights by path, and one of gradients."
        )

    # The learning rate.

    @property
    def learning_rate(self) -> Any:
        """The learning rate: a Keras variable, or the value that the schedule now has.

        Raises:
            OptaxError: nobody can see it, as it is inside the functions of a transformation.
            BuildError: it is part of the state, which is not made yet.
        """
        # Keras reads it for each update, and Optax needs no such argument.
        if self._is_updating and isinstance(self._learning_rate, StateRate):
            return None
        return keras.optimizers.Optimizer.learning_rate.fget(self)

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if isinstance(self._learning_rate, StateRate):
            self._learning_rate.assign(value)
        else:
            rate = rates.as_keras(value) if callable(value) else value
            keras.optimizers.Optimizer.learning_rate.fset(self, rate)

    def _current_rate(self) -> Any:
        """The learning rate for the function that makes the transformation, if it takes one."""
        if not self._make.has_rate:
            return None
        return jnp.asarray(keras.ops.convert_to_tensor(self.learning_rate))
