"""How a user of `(init, apply)` runs a case: as `jax.example_libraries.stax` says, or with data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax

from .cases import Apply, Case, Result


def init_and_apply(case: Case, model: Any) -> tuple[Callable[..., tuple[Any, Any]], Apply]:
    """Init and apply of a pair, or of an object that has both."""
    is_stax = isinstance(model, tuple)
    model_init, model_apply = model if is_stax else (model.init, model.apply)
    takes_rng = is_stax or "rng" in inspect.signature(model_apply).parameters

    def init(key: jax.Array, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        if not is_stax:
            return model_init(key, *args, **kwargs), {}
        _, params = model_init(key, jax.tree.map(lambda x: x.shape, args[0]))
        return params, {}

    def run(params: Any, state: Any, key: Any, args: tuple, kwargs: dict, training: bool) -> Result:
        rng = {"rng": key} if takes_rng else {}
        return Result(model_apply(params, *args, **kwargs, **case.flags(training), **rng), {}, 0.0)

    return init, run
