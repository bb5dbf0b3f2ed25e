"""The few places where Keras has no public word for what we need."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import jax
import keras
import optree
from keras.src.backend.common.global_state import get_global_attribute, set_global_attribute
from keras.src.backend.common.masking import get_keras_mask as mask
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.backend.common.variables import AutocastScope as autocast_scope
from keras.src.saving.serialization_lib import in_safe_mode

__all__ = [
    "adopt",
    "autocast_scope",
    "earlier_loading_error",
    "has_layout",
    "in_stateless_scope",
    "in_symbolic_scope",
    "is_foreign_trace",
    "is_idle",
    "is_in_step",
    "is_of_keras",
    "is_predicting",
    "is_reading_safely",
    "is_safe_mode",
    "is_skipping_mismatches",
    "layout_map",
    "loading_failures",
    "mask",
    "outside_of_scopes",
    "place",
    "raw_value",
    "uniterable",
]

_NAMESPACE = "keras"
_adopted: set[type] = set()
_CONTEXTS = ("current_call_ctx", "stateless_scope", "autocast_scope", "distribution")


def is_idle() -> bool:
    """Whether no Keras context is open that would change what a layer's call does."""
    return all(get_global_attribute(name) is None for name in _CONTEXTS)


def has_layout(variable: keras.Variable) -> bool:
    """Whether a variable was made under a distribution."""
    return variable._layout is not None


def place(variable: keras.Variable, layout: Any, value: jax.Array) -> None:
    """Gives a variable a layout, and its value, which is there already."""
    variable._layout = layout
    with outside_of_scopes():
        variable.assign(value)


def layout_map() -> Any:
    """The `LayoutMap` of the active distribution, or None."""
    return getattr(get_global_attribute("distribution"), "_layout_map", None)


@contextlib.contextmanager
def outside_of_scopes() -> Iterator[None]:
    """A block in which variables get their values at once, and not when a scope of Keras ends.

    What Keras defers it runs under `jax.jit` if it is large and sharded, and a value made
    outside of that would be a constant of the program.
    """
    scope = get_global_attribute("stateless_scope")
    set_global_attribute("stateless_scope", None)
    try:
        yield
    finally:
        set_global_attribute("stateless_scope", scope)


def is_foreign_trace(values: Any) -> bool:
    """Whether values are of a JAX trace in which Keras does not collect assignments."""
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))
    return traced and not in_stateless_scope()


def is_predicting() -> bool:
    """Whether the caller is traced for Keras' `predict`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_of_keras(frame, "keras.src.backend.jax.trainer", "predict_step"):
            return True
        frame = frame.f_back
    return False


def is_in_step() -> bool:
    """Whether Keras collects assignments, and not only shapes: no variable can be made now."""
    return in_stateless_scope() and not in_symbolic_scope()


def is_safe_mode() -> bool:
    """Whether a config is being read that must not run what it names; yes, if nobody says no."""
    return in_safe_mode() is not False


def is_reading_safely() -> bool:
    """Whether Keras is reading a config from somewhere, which may not run what it names."""
    return in_safe_mode() is True


def raw_value(variable: keras.Variable) -> Any:
    """The array of a variable, valid where `is_idle()`; None if it is not initialised."""
    return variable._value


def adopt(tree: Any) -> None:
    """Teaches Keras the pytree node types of JAX that `tree` uses.

    Keras flattens arguments and results with optree under its own namespace, where a
    dataclass registered with JAX (`flax.struct`, a model's output class) would be one
    opaque leaf. Registering it there makes functional models, `fit` and `predict` see the
    arrays inside.
    """
    for leaf in keras.tree.flatten(tree):
        if leaf is None or isinstance(leaf, jax.Array) or jax.tree_util.all_leaves([leaf]):
            continue
        cls = type(leaf)
        if cls not in _adopted:  # two leaves may be of one class
            _adopted.add(cls)
            optree.register_pytree_node(cls, _flatten_once, _unflatten, namespace=_NAMESPACE)
        adopt(leaf)


def _flatten_once(node: Any) -> tuple[list[Any], Any]:
    return jax.tree_util.tree_flatten(node, is_leaf=lambda child: child is not node)


def _unflatten(treedef: Any, children: Any) -> Any:
    return jax.tree_util.tree_unflatten(treedef, [uniterable(child) for child in children])


class _Uniterable(keras.KerasTensor):  # type: ignore[misc]  # keras has no types
    """A symbolic tensor that says it cannot be iterated in the way Python asks for."""

    def __iter__(self) -> Any:
        raise TypeError("a symbolic KerasTensor cannot be iterated")


def uniterable(tensor: Any) -> Any:
    """The same `KerasTensor`, fit to be put into a container of any class.

    Some look whether what they are given can be iterated (the outputs of transformers), and
    `KerasTensor` answers with another error than the TypeError of Python's protocol. It must
    stay the same object, since a functional model knows its tensors by identity.
    """
    if type(tensor) is keras.KerasTensor:
        tensor.__class__ = _Uniterable
    return tensor


def is_skipping_mismatches() -> bool:
    """Whether Keras is loading weights with `skip_mismatch=True`.

    Keras does not tell `load_own_variables`, which it calls from the function whose argument
    that is. Without such a caller, mismatches are not skipped.
    """
    return any(frame.f_locals.get("skip_mismatch") for frame in _loading_frames()[:1])


class EarlierError(NamedTuple):
    """What an object raised when Keras first tried to load it.

    Attributes:
        error: the exception.
        is_kept: whether Keras keeps it whatever the present attempt does. Otherwise a success
            clears it, and another error replaces it.
    """

    error: Exception
    is_kept: bool


def earlier_loading_error(saveable: Any) -> EarlierError | None:
    """What an object already raised while Keras is loading the model it is part of.

    Keras tries a failed object again at other places in the file, where there is nothing.
    """
    present, *others = [f.f_locals.get("error_msgs") or {} for f in _loading_frames()] or [{}]
    for failures in (present, *others):
        if id(saveable) in failures:
            return EarlierError(failures[id(saveable)][1], is_kept=failures is not present)
    return None


def loading_failures(error: BaseException) -> list[tuple[Any, Exception]]:
    """All objects that could not be loaded, with what each raised; Keras' error names one.

    Args:
        error: what `keras.saving.load_weights` raised.

    Returns:
        Objects and errors; empty if the error has another origin.
    """
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        if _is_loading(traceback.tb_frame, "load_weights_only"):
            return list((traceback.tb_frame.f_locals.get("error_msgs") or {}).values())
        traceback = traceback.tb_next
    return []


def _loading_frames() -> list[FrameType]:
    """The calls in progress of Keras' function that loads one object, the latest first."""
    frames = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_loading(frame, "_load_state"):
            frames.append(frame)
        frame = frame.f_back
    return frames


def _is_loading(frame: FrameType, function: str) -> bool:
    return is_of_keras(frame, "keras.src.saving.saving_lib", function)


def is_of_keras(frame: FrameType, module: str, function: str) -> bool:
    """Whether a frame is a call of one of Keras' own functions."""
    return frame.f_globals.get("__name__") == module and frame.f_code.co_name == function
