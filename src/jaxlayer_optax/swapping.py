"""A callback that evaluates with other weights than it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras

from jaxlayer_core.pure import PyTree
from jaxlayer_optax.errors import OptaxError
from jaxlayer_optax.optimizer import OptaxOptimizer


class SwapWeights(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Puts other values into the weights while a model is evaluated or predicts.

    For transformations whose weights to evaluate are not those that are trained, such as
    `optax.contrib.schedule_free`. After training, use `optimizer.swapped`.

    Args:
        function: from the state and the weights, as Optax has them, to the values: such as
            `optax.contrib.schedule_free_eval_params`.
        on_epoch_end: whether the weights are also swapped from the end of an epoch to the
            beginning of the next, so that callbacks that come later, such as `ModelCheckpoint`,
            save the other weights. Training cannot go on from such a file.

    Raises:
        OptaxError: when training begins: the model's optimizer is no `OptaxOptimizer`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile(OptaxOptimizer(optax.contrib.schedule_free_sgd(0.1)), "mse")
        >>> data = jnp.ones((4, 3)), jnp.ones((4, 1))
        >>> swap = SwapWeights(optax.contrib.schedule_free_eval_params)
        >>> history = model.fit(*data, validation_data=data, callbacks=[swap], verbose=0)
    """

    def __init__(
        self, function: Callable[[PyTree, PyTree], PyTree], on_epoch_end: bool = False
    ) -> None:
        super().__init__()
        self._function = function
        self._on_epoch_end = on_epoch_end
        self._swap: contextlib.ExitStack | None = None
        self._is_for_epoch = False

    def on_test_begin(self, logs: Any = None) -> None:
        """Swaps, if nobody has."""
        self._enter()

    def on_test_end(self, logs: Any = None) -> None:
        """Swaps back."""
        if not self._is_for_epoch:
            self._leave()

    on_predict_begin = on_test_begin
    on_predict_end = on_test_end

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Swaps, if it was asked for."""
        if self._on_epoch_end:
            self._enter()
            self._is_for_epoch = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Swaps back."""
        self._is_for_epoch = False
        self._leave()

    def on_train_end(self, logs: Any = None) -> None:
        """Swaps back."""
        self._is_for_epoch = False
        self._leave()

    def _enter(self) -> None:
        if self._swap is not None:
            return
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if not isinstance(optimizer, OptaxOptimizer):
            raise OptaxError(
                f"SwapWeights needs an OptaxOptimizer, and the model is compiled with a "
                f"{type(optimizer).__name__}."
            )
        self._swap = contextlib.ExitStack()
        self._swap.enter_context(optimizer.swapped(self._function))

    def _leave(self) -> None:
        if self._swap is not None:
            self._swap.close()
            self._swap = None
