"""Eager calls to which Keras has nothing to add, and which therefore skip it.

`keras.layers.Layer.__call__` costs a few hundred microseconds: more than many a compiled
model. It converts inputs, opens scopes, tracks masks and losses. When a call has been
made once and needed none of that, the next one like it runs the compiled program directly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import keras
import numpy as np

from jaxlayer_core import keras_bridge, rng

Call = Callable[[Any], Any]


class EagerCalls:
    """Remembers compiled programs for calls of one array that neither draw nor write."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, Call] = {}

    def remember(
        self,
        inputs: Any,
        training: bool | None,
        trainable: bool,
        program: Callable[..., Any],
        params: Sequence[keras.Variable],
        state: Sequence[keras.Variable],
    ) -> None:
        """Notes that this call gave a result without drawing, writing state or adding losses."""
        if not _is_eager(inputs):
            return
        values = keras_bridge.raw_value
        key = rng.unused_key()

        def call(array: Any) -> Any:
            arrays = [values(v) for v in params], [values(v) for v in state]
            return program(*arrays, key, [array]).outputs.unpack()

        self._calls[_describe(inputs, training, trainable)] = call

    def find(self, inputs: Any, training: bool | None, trainable: bool) -> Call | None:
        """The remembered call, if this one is like it and no Keras context is open."""
        if not self._calls or not _is_eager(inputs):
            return None
        call = self._calls.get(_describe(inputs, training, trainable))
        return call if call is not None and keras_bridge.is_idle() else None


def _is_eager(value: Any) -> bool:
    """Whether a value is one array with data, without a Keras mask."""
    if not isinstance(value, jax.Array | np.ndarray) or isinstance(value, jax.core.Tracer):
        return False
    return keras_bridge.mask(value) is None


def _describe(inputs: Any, training: bool | None, trainable: bool) -> Hashable:
    return inputs.shape, inputs.dtype, training, trainable
