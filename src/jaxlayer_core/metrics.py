"""Means of scalars that a model reports while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras

from jaxlayer_core import keras_bridge


class ReportedMean(keras.metrics.Metric):  # type: ignore[misc]  # keras has no types
    """The mean of a scalar over the calls since the last reset.

    Keras' JAX trainer carries the variables of layers, but not of metrics, out of a call.
    The sums are therefore variables of the layer, and this metric reads them. While a step
    is being traced they cannot be read: the logs of single batches have NaN, those of epochs
    and of `evaluate` the mean.

    Args:
        sums: variables of the layer: the sum, and the number of calls.
        name: the metric's name.
    """

    def __init__(self, sums: Sequence[keras.Variable], name: str) -> None:
        super().__init__(name=name)
        # Past Keras' own `__setattr__`, which would claim them for the metric.
        object.__setattr__(self, "_sums", tuple(sums))

    def update_state(self, value: Any) -> None:
        """Adds one value."""
        total, count = self._sums
        total.assign(total.value + value)
        count.assign(count.value + 1)

    def result(self) -> Any:
        """The mean; 0 before the first value."""
        if keras_bridge.in_stateless_scope():
            # JAX refuses NaN where it looks for it.
            unknown = jnp.inf if jax.config.jax_debug_nans else jnp.nan  # type: ignore[attr-defined]
            return jnp.full((), unknown, "float32")
        total, count = self._sums
        return total.value / jnp.maximum(count.value, 1)

    def reset_state(self) -> None:
        """Starts anew."""
        for variable in self._sums:
            variable.assign(jnp.zeros((), "float32"))
