"""The few places where Keras has no public word for what we need."""

from __future__ import annotations

from typing import Any

import jax
import keras
import optree
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.backend.common.masking import get_keras_mask as mask
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

__all__ = [
    "adopt",
    "in_stateless_scope",
    "in_symbolic_scope",
    "is_foreign_trace",
    "is_idle",
    "is_in_step",
    "mask",
    "raw_value",
    "uniterable",
]

_NAMESPACE = "keras"
_adopted: set[type] = set()
_CONTEXTS = ("current_call_ctx", "stateless_scope", "autocast_scope", "distribution")


def is_idle() -> bool:
    """Whether no Keras context is open that would change what a layer's call does."""
    return all(get_global_attribute(name) is None for name in _CONTEXTS)


def is_foreign_trace(values: Any) -> bool:
    """Whether values are of a JAX trace in which Keras does not collect assignments."""
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))
    return traced and not in_stateless_scope()


def is_in_step() -> bool:
    """Whether Keras collects assignments, and not only shapes: no variable can be made now."""
    return in_stateless_scope() and not in_symbolic_scope()


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
