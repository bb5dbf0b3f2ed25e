"""How an Equinox user runs a case: `partition`, `make_with_state`, `vmap`, `inference_mode`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .cases import Apply, Case, Result


def _path(*keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _is_index(node: Any) -> bool:
    return isinstance(node, eqx.nn.StateIndex)


def _state_names(model: Any) -> list[str]:
    """Paths of what an `eqx.nn.State` holds, in its order."""
    nodes = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_index)[0]
    return [
        _path(*keys, *inside)
        for keys, node in nodes
        if _is_index(node)
        for inside, _ in jax.tree_util.tree_flatten_with_path(node.init)[0]
    ]


def init_and_apply(case: Case, model: Any) -> tuple[Callable[..., tuple[Any, Any]], Apply]:
    """Init and apply of an Equinox case, with params and state by path.

    Args:
        case: its option `batch_axis` says whether the module is mapped; the batch has the name
            "batch".
        model: a module, or a function of `key` that makes one.
    """

    def make(key: jax.Array) -> Any:
        return model if isinstance(model, eqx.Module) else model(key=key)

    # Templates: everything but the arrays.
    module, held = eqx.nn.make_with_state(make)(jax.random.key(0))
    arrays, static = eqx.partition(module, eqx.is_array)
    names = [_path(*keys) for keys, _ in jax.tree_util.tree_flatten_with_path(arrays)[0]]
    state_names = _state_names(make(jax.random.key(0)))
    is_mapped = case.layer.get("batch_axis", 0) is not None
    parameters = inspect.signature(getattr(type(module), case.method or "__call__")).parameters

    def init(key: jax.Array, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        made, state = eqx.nn.make_with_state(make)(key)
        params = jax.tree.leaves(eqx.filter(made, eqx.is_array))
        named = dict(zip(names, map(jax.numpy.asarray, params), strict=True))
        return named, dict(zip(state_names, jax.tree.leaves(state), strict=True))

    def run(params: Any, state: Any, key: Any, args: tuple, kwargs: dict, training: bool) -> Result:
        own = jax.tree.unflatten(jax.tree.structure(arrays), [params[name] for name in names])
        whole = eqx.nn.inference_mode(eqx.combine(own, static), value=not training)
        before = jax.tree.unflatten(jax.tree.structure(held), [state[name] for name in state_names])

        def one(args: tuple, kwargs: dict, key: Any) -> tuple[Any, Any]:
            if "key" in parameters:
                kwargs = {**kwargs, "key": key}
            if state_names:
                kwargs = {**kwargs, "state": before}
            outputs = getattr(whole, case.method or "__call__")(
                *args, **kwargs, **case.flags(training)
            )
            return outputs if state_names else (outputs, before)

        if is_mapped:
            axes = jax.tree.map(lambda leaf: 0 if np.ndim(leaf) else None, (args, kwargs))
            batch = next(len(x) for x in jax.tree.leaves((args, kwargs)) if np.ndim(x))
            keys = jax.random.split(key, batch)
            mapped = jax.vmap(one, (*axes, 0), (0, None), axis_name="batch")
            outputs, after = mapped(args, kwargs, keys)
        else:
            outputs, after = one(args, kwargs, key)
        after = dict(zip(state_names, jax.tree.leaves(after), strict=True))
        return Result(outputs, after if training else {}, 0.0)

    return init, run
