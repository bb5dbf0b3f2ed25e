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

__all__ = ["adopt", "in_stateless_scope", "in_symbolic_scope", "is_idle", "mask", "raw_value"]

_NAMESPACE = "keras"
_CONTEXTS = ("current_call_ctx", "stateless_scope", "autocast_scope", "distribution")


def is_idle() -> bool:
    """Whether no Keras context is open that would change what a layer's call does."""
    return all(get_global_attribute(name) is None for name in _CONTEXTS)


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
        optree.register_pytree_node(cls, _flatten_once, _unflatten, namespace=_NAMESPACE)
        adopt(leaf)


def _flatten_once(node: Any) -> tuple[list[Any], Any]:
    return jax.tree_util.tree_flatten(node, is_leaf=lambda child: child is not node)


def _unflatten(treedef: Any, children: Any) -> Any:
    return jax.tree_util.tree_unflatten(treedef, children)
