"""Several processes: what one of them can read, and predictions that every one can."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax
import keras
from jax.experimental import multihost_utils

from jaxlayer_core import backends, keras_bridge
from jaxlayer_core.errors import JaxLayerError, ProcessWarning

_GATHERING: ContextVar[bool] = ContextVar("gathering", default=False)


def gather_predictions(model: keras.Model) -> keras.Model:
    """Lets `model.predict` work in several processes.

    Keras gives each process the outputs of all, of which it can read its own part only, and
    fails. Here every process gets every output. Each passes its own rows of a batch, as in
    `fit`; the rows of all are in the order of the devices. In one process nothing changes.

    Args:
        model: any Keras model. A copy or a loaded model is another one.

    Returns:
        The same model.

    Raises:
        BackendError: the backend of Keras is not JAX.
        JaxLayerError: it is not a `keras.Model`.

    Example:
        >>> import flax.linen as nn, keras, numpy as np
        >>> from jaxlayer_core import as_layer, gather_predictions
        >>> model = gather_predictions(keras.Sequential([as_layer(nn.Dense(1))]))
        >>> model.predict(np.ones((8, 4), "float32"), verbose=0).shape
        (8, 1)
    """
    backends.current()
    if not isinstance(model, keras.Model):
        raise JaxLayerError(
            f"gather_predictions takes a keras.Model, got {model!r:.80} of type "
            f"{type(model).__name__}."
        )
    # Keras' own place for this, as in `scan_steps`.
    model.make_predict_function = functools.partial(_make, model, model.make_predict_function)
    model.predict_function = None  # one made before is not to be used
    return model


def _make(model: Any, make: Callable[..., Any], force: bool = False) -> Any:
    if model.predict_function is not None and not force:
        return model.predict_function
    make(force)
    predict = model.predict_function

    def function(state: Any, iterator: Any) -> tuple[Any, Any]:
        token = _GATHERING.set(True)
        try:
            outputs, state = predict(state, iterator)
        finally:
            _GATHERING.reset(token)
        return jax.tree.map(_whole, outputs), state

    model.predict_function = function
    return function


def is_gathering(model: keras.Model) -> bool:
    """Whether `gather_predictions` was called for a model."""
    return getattr(model.make_predict_function, "func", None) is _make


def is_readable(array: jax.Array) -> bool:
    """Whether this process has all of an array: its own, or a copy of what every process has."""
    return bool(array.is_fully_addressable or array.is_fully_replicated)


def _whole(output: Any) -> Any:
    is_there = not isinstance(output, jax.Array) or isinstance(output, jax.core.Tracer)
    if is_there or is_readable(output):
        return output
    return multihost_utils.process_allgather(output, tiled=True)


def warn_of_predict(name: str) -> None:
    """Says what to do where Keras' `predict` will fail when the work is done.

    It cannot be an error: raised here, inside of `predict`, it would cost the model its weights,
    which Keras has taken out of the variables for the time.

    Args:
        name: of the layer that is called.

    Warns:
        ProcessWarning: it is `predict` of several processes, and nobody gathers its outputs.
    """
    if jax.process_count() == 1 or keras.distribution.distribution() is None:
        return
    if keras_bridge.is_predicting() and not _GATHERING.get():
        warnings.warn(
            f"{name} is called by `predict` in {jax.process_count()} processes. Keras gives each "
            "the outputs of all, and will then fail to read those of the others. Use "
            "jaxlayer.gather_predictions(model) before model.predict(...), which gives all "
            "outputs to all processes; or predict in one process, with the weights of a "
            "checkpoint. `fit` and `evaluate` work as they are.",
            ProcessWarning,
            stacklevel=2,
        )
