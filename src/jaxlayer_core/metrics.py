"""Means of scalars that a model reports while it runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import keras

from jaxlayer_core import keras_bridge
from jaxlayer_core.errors import JaxLayerError


class ReportedMean(keras.metrics.Metric):  # type: ignore[misc]  # keras has no types
    """The mean of a scalar over the calls since the last reset.

    Keras' JAX trainer carries the variables of layers, but not of metrics, out of a call.
    The sums are therefore variables of the layer, and this metric reads them. While a step
    is being traced they cannot be read: the logs of single batches have NaN, those of epochs
    and of `evaluate` the mean.

    Args:
        name: the metric's name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        sums = [
            # A layer's precision is not for its sums: bfloat16 counts to 256.
            keras.Variable(
                jnp.zeros, shape=(), dtype="float32", trainable=False, autocast=False, name=part
            )
            for part in ("total", "count")
        ]
        # Past Keras' own `__setattr__`, which would claim them for the metric.
        object.__setattr__(self, "sums", tuple(sums))
        self._is_in_step = False

    def update_state(self, value: Any) -> None:
        """Adds one value."""
        total, count = self.sums
        total.assign(total.value + value)
        count.assign(count.value + 1)
        self._is_in_step = keras_bridge.in_stateless_scope()

    def result(self) -> Any:
        """The mean; `{}`, for which Keras reports nothing, where no call gave a value."""
        if keras_bridge.in_stateless_scope():
            if not self._is_in_step:
                return {}
            # JAX refuses NaN where it looks for it.
            unknown = jnp.inf if jax.config.jax_debug_nans else jnp.nan  # type: ignore[attr-defined]
            return jnp.full((), unknown, "float32")
        total, count = self.sums
        return total.value / count.value if count.value > 0 else {}

    def reset_state(self) -> None:
        """Starts anew."""
        self._is_in_step = False
        for variable in self.sums:
            variable.assign(jnp.zeros((), "float32"))


class Reports:
    """The metrics of one layer.

    Neither a list nor an object of Keras: Keras would track what is in it as weights of the
    layer, and let nothing be added once the layer is built.
    """

    def __init__(self) -> None:
        self._means: dict[str, ReportedMean] = {}
        self._calls: set[Hashable] = set()

    @property
    def metrics(self) -> list[ReportedMean]:
        """The metrics."""
        return list(self._means.values())

    @property
    def variables(self) -> list[keras.Variable]:
        """What the metrics sum up in."""
        return [variable for metric in self.metrics for variable in metric.sums]

    def is_new(self, call: Hashable) -> bool:
        """Whether this is the first time that a kind of call is made."""
        is_new = call not in self._calls
        self._calls.add(call)
        return is_new

    def add(self, layer: keras.layers.Layer, names: Iterable[str]) -> None:
        """Makes what a call reports; the layer's name keeps it apart from other layers'.

        Raises:
            JaxLayerError: a step is being traced, and there is a new one among them.
        """
        new = [name for name in names if name not in self._means]
        if new and keras_bridge.is_in_step():
            raise JaxLayerError(
                f"{layer.name} learns of the metrics {', '.join(new)} while a step is traced, "
                "where nothing can be made to hold them: no such call has been made before. Make "
                "one on data or on keras.Input(...) first, with the same method and arguments."
            )
        for name in new:
            with (
                keras.name_scope(layer.name, caller=layer),
                keras.name_scope("metrics"),
                keras.name_scope(name.replace("/", ".")),
            ):
                self._means[name] = ReportedMean(f"{layer.name}/{name}")

    def update(self, layer: keras.layers.Layer, values: Mapping[str, Any]) -> None:
        """Adds scalars to the metrics of their names; in a trace that is not Keras', none."""
        if not keras_bridge.is_foreign_trace(values):
            self.add(layer, values)
            for name, value in values.items():
                self._means[name].update_state(value)
