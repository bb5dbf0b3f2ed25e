"""Where an optimizer's learning rate is: a variable of Keras, a schedule, or in Optax' state."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras

from jaxlayer_core.errors import BuildError
from jaxlayer_core.variables import VariableTree
from jaxlayer_optax.errors import OptaxError
from jaxlayer_optax.transformation import WAY_OUT

_NAME = "learning_rate"


class Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # no types
    """One of Optax' schedules as Keras calls schedules.

    Args:
        function: from the number of steps made to the learning rate.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, step: Any) -> Any:
        """The learning rate for a step."""
        return self.function(keras.ops.convert_to_tensor(step))

    def get_config(self) -> dict[str, Any]:
        """Not asked for: the optimizer stores the function."""
        raise NotImplementedError


def as_keras(rate: Any) -> Any:
    """A learning rate in the form that Keras' optimizers take.

    Args:
        rate: a number, an array of one, a schedule of Keras, or one of Optax.

    Raises:
        OptaxError: it is none of these.
    """
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return rate
    if callable(rate):
        return Schedule(rate) if _takes_step(rate) else rate
    try:
        return float(rate)
    except (TypeError, ValueError) as error:
        raise OptaxError(
            f"A learning rate is a number or a schedule, got {rate!r:.80} of type "
            f"{type(rate).__name__}.",
            cause=error,
        ) from error


def as_given(rate: Any) -> Any:
    """What `as_keras` made this of, as a user gives it."""
    if isinstance(rate, keras.Variable):
        return float(keras.ops.convert_to_numpy(rate))
    return rate.function if isinstance(rate, Schedule) else rate


class StateRate:
    """A learning rate that is part of Optax' state, if it is one at all.

    Args:
        state: gives the state's variables, or None before there are any.
    """

    def __init__(self, state: Callable[[], VariableTree | None]) -> None:
        self._state = state

    def __call__(self) -> keras.Variable:
        """The variable that holds it.

        Raises:
            BuildError: there is no state yet.
            OptaxError: there is no learning rate in it, or there are several.
        """
        state = self._state()
        if state is None:
            raise BuildError(
                "The learning rate is part of Optax' state, which is not made "
                "yet. Build it first: optimizer.build(model.trainable_variables)."
            )
        found = self._found(state)
        if not found:
            raise OptaxError(
                f"The learning rate cannot be seen or set: it is inside the "
                f"functions of its transformation. {WAY_OUT}"
            )
        if len(found) > 1:
            raise OptaxError(
                f"The transformation has {len(found)} learning rates: {', '.join(found)}. Read and "
                "assign them one by one: optimizer.state has them as Keras variables."
            )
        return next(iter(found.values()))

    def assign(self, value: Any) -> None:
        """Sets it.

        Raises:
            BuildError: there is no state yet.
            OptaxError: there is none to set, or a schedule sets it.
        """
        variable = self()
        if any(path[-3:-1] == ("hyperparams_states", _NAME) for path in self._paths()):
            raise OptaxError(
                "The learning rate comes from the schedule that was given to "
                "optax.inject_hyperparams, which sets it in each step. Give a number to set it "
                "yourself."
            )
        if callable(value):
            raise OptaxError(
                f"The learning rate is part of Optax' state, and takes a number, "
                f"got {value!r:.80}. Give the schedule to optax.inject_hyperparams."
            )
        variable.assign(value)

    def _paths(self) -> list[tuple[str, ...]]:
        state = self._state()
        return [] if state is None else state.paths

    def _found(self, state: VariableTree) -> dict[str, keras.Variable]:
        return {
            name: variable
            for name, path, variable in zip(state.names, state.paths, state.variables, strict=True)
            if path[-2:] == ("hyperparams", _NAME)
        }


def _takes_step(function: Callable[..., Any]) -> bool:
    """Whether a function is a schedule of Optax; Keras also takes functions without arguments."""
    try:
        inspect.signature(function).bind(0)
    except TypeError:
        return False
    except ValueError:  # it does not say
        return True
    return True
