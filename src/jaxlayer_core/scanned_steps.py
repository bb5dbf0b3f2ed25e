"""Many steps of `fit`, `evaluate` and `predict` in one program.

Keras' JAX trainer runs the steps of `steps_per_execution` one by one from Python, so what a step
costs outside of its program it still costs. Here they are the body of one `jax.lax.scan`.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import keras
import numpy as np

from jaxlayer_core import backends, operations, processes
from jaxlayer_core.errors import JaxLayerError

Function = Callable[[Any, Iterator[Any]], tuple[Any, Any]]
"""What Keras' trainer calls: state and batches to outputs and state."""


_CONVOLUTION = "conv_general_dilated"


class Gather(NamedTuple):
    """What Keras makes of the outputs of many steps: the last, or all of them joined.

    Attributes:
        stacked: does it for outputs that are stacked.
        listed: for a list of them, which may differ in size.
    """

    stacked: Callable[[Any], Any]
    listed: Callable[[list[Any]], Any]


def scan_steps(model: keras.Model, *, unroll: bool | int | None = None) -> keras.Model:
    """Makes one program of the steps that `compile(steps_per_execution=...)` puts together.

    For steps so short that Python and Keras cost more than they do. The same steps run in the
    same order on the same batches, whatever the model's layers are; as with Keras' own
    `steps_per_execution`, callbacks see the last step of each group. Groups that are not full,
    or whose batches differ in shape (the last of an epoch), run step by step. With
    `steps_per_execution=1`, `run_eagerly` or `jit_compile=False` nothing changes.

    Args:
        model: any Keras model, compiled now or later, any number of times. A copy or a loaded
            model is another one.
        unroll: as in `jax.lax.scan`: how many steps stand one behind another in a round of the
            loop. True is all of them and no loop, which takes longer to compile. None, the
            default, is True for steps with convolutions on the CPU, where XLA leaves those in a
            loop in a slow form, which rounds differently, too; for all others it is 1.

    Returns:
        The same model.

    Raises:
        BackendError: the backend of Keras is not JAX.
        JaxLayerError: it is not a `keras.Model`, or `unroll` is less than 1, or Keras was told
            to make its variables NNX variables, which a `jax.lax.scan` cannot carry.

    Example:
        >>> import flax.linen as nn, keras, numpy as np
        >>> from jaxlayer_core import as_layer, scan_steps
        >>> model = scan_steps(keras.Sequential([as_layer(nn.Dense(1))]))
        >>> model.compile("adam", "mse", steps_per_execution=8)
        >>> x = np.ones((128, 4), "float32")
        >>> history = model.fit(x, x[:, :1], batch_size=4, verbose=0)
        >>> int(model.optimizer.iterations)
        32
    """
    backends.current()
    if not isinstance(model, keras.Model):
        raise JaxLayerError(
            f"scan_steps takes a keras.Model, got {model!r:.80} of type {type(model).__name__}."
        )
    if unroll is not None and (not isinstance(unroll, int) or (unroll < 1 and unroll is not False)):
        raise JaxLayerError(
            f"unroll={unroll!r} is not a number of steps. Use unroll=True for all steps one behind "
            "another, a number from 1 up, or leave it out for a loop."
        )
    if keras.config.is_nnx_enabled():
        raise JaxLayerError(
            "scan_steps does not work with KERAS_NNX_ENABLED: then Keras' train step changes "
            "objects, and the steps of a scan may not. Unset KERAS_NNX_ENABLED, or leave it to "
            "steps_per_execution alone."
        )
    is_gathering = processes.is_gathering(model)
    for kind, gather in _GATHERS.items():
        # Keras' own place for this: `fit` calls `make_train_function`, which a model may define.
        name = f"make_{kind}_function"
        make = functools.partial(_make, model, getattr(model, name), kind, gather, unroll)
        setattr(model, name, make)
        setattr(model, f"{kind}_function", None)  # one made before is not to be used
    # Processes cannot meet inside of the scan, but around it.
    return processes.gather_predictions(model) if is_gathering else model


def _make(
    model: Any,
    make: Callable[..., Any],
    kind: str,
    gather: Gather,
    unroll: bool | int | None,
    force: bool = False,
) -> Any:
    """Stands for `make_train_function` and the like of a model."""
    attribute = f"{kind}_function"
    if getattr(model, attribute) is not None and not force:
        return getattr(model, attribute)
    steps = model.steps_per_execution
    if steps == 1 or model.run_eagerly or not model.jit_compile:
        return make(force)
    model.steps_per_execution = 1
    try:
        make(force=True)
    finally:
        model.steps_per_execution = steps
    function = _scanned(getattr(model, attribute), steps, gather, unroll)
    setattr(model, attribute, function)
    return function


def _scanned(single: Function, steps: int, gather: Gather, unroll: bool | int | None) -> Function:
    """The function of many steps.

    Args:
        single: Keras' function of one step.
        steps: how many at most.
        gather: what Keras makes of the outputs of many steps.
        unroll: of `jax.lax.scan`.
    """

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        # What XLA fused over the ends of a step would round otherwise than the step alone.
        state, batch = jax.lax.optimization_barrier((state, batch))
        outputs, state = jax.lax.optimization_barrier(single(state, iter((batch,))))
        return state, outputs

    @functools.partial(jax.jit, donate_argnums=0)
    def together(state: Any, batches: Any) -> tuple[Any, Any]:
        chosen = _is_without_loops(step, state, batches) if unroll is None else unroll
        state, outputs = jax.lax.scan(step, state, batches, unroll=chosen)
        return gather.stacked(outputs), state

    def function(state: Any, iterator: Iterator[Any]) -> tuple[Any, Any]:
        batches = list(itertools.islice(iterator, steps))
        if len(batches) == steps and all(_form(b) == _form(batches[0]) for b in batches[1:]):
            return together(state, jax.tree.map(_stacked, *batches))
        if not batches:
            raise StopIteration  # as Keras' own function, whose caller ends the epoch
        results = []
        for batch in batches:
            outputs, state = single(state, iter((batch,)))
            results.append(outputs)
        return gather.listed(results), state

    return function


def _is_without_loops(step: Any, state: Any, batches: Any) -> bool:
    """Whether XLA does better without a loop: convolutions on the CPU."""
    if jax.default_backend() != "cpu":
        return False
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches)
    traced = jax.make_jaxpr(step)(state, batch)
    return _CONVOLUTION in operations.names(traced.jaxpr)


def _form(batch: Any) -> Any:
    leaves, treedef = jax.tree.flatten(batch)
    return treedef, [(np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves]


def _stacked(*leaves: Any) -> Any:
    on_device = any(isinstance(leaf, jax.Array) for leaf in leaves)
    return jax.numpy.stack(leaves) if on_device else np.stack(leaves)


def _last(outputs: Any) -> Any:
    return jax.tree.map(lambda stacked: stacked[-1], outputs)


def _joined(outputs: Any) -> Any:
    return jax.tree.map(lambda stacked: stacked.reshape(-1, *stacked.shape[2:]), outputs)


def _concatenated(outputs: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jax.numpy.concatenate(leaves), *outputs)


_LAST = Gather(_last, operator.itemgetter(-1))
_GATHERS = {"train": _LAST, "test": _LAST, "predict": Gather(_joined, _concatenated)}
