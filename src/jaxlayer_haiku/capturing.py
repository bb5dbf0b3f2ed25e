"""Intermediate results of a Haiku model, by the names of the modules that gave them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import haiku as hk
import jax
from jax.extend import core

from jaxlayer_core import PatternError
from jaxlayer_core.capturing import Capture

# Before jax 0.8 it is in jax.core.
_trace_state = getattr(core, "get_opaque_trace_state", None) or jax.core.get_opaque_trace_state


@contextlib.contextmanager
def recording(capture: Capture, owner: str) -> Iterator[dict[str, Any]]:
    """Records while the model runs.

    Args:
        capture: names such as `mlp/~/linear_0` for what that module returns, `encoder/embed`
            for its method `embed`.
        owner: the model's name, for errors.

    Yields:
        What is wanted, by name, once the model has run; a tuple where a module was called
        several times.

    Raises:
        PatternError: nothing was found for a name, or only inside a transformation.
    """
    captured: dict[str, Any] = {}
    if not capture:
        yield captured
        return
    results: dict[str, list[Any]] = {}
    called: dict[str, None] = {}
    outside = _trace_state(convention="jaxlayer")

    def record(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = method(*args, **kwargs)
        if context.method_name == "__init__":
            return result
        name = context.module.module_name
        if context.method_name != "__call__":
            name += f"/{context.method_name}"
        called[name] = None
        if capture.wants(name):
            if _trace_state(convention="jaxlayer") != outside:
                raise PatternError(
                    f"capture: {name!r} of {owner} runs inside a transformation (hk.remat, "
                    "hk.scan, hk.layer_stack, hk.vmap, hk.grad or the like), and what it computes "
                    "does not leave that. Capture the module around it, or have the model "
                    "return it."
                )
            results.setdefault(name, []).append(result)
        return result

    with hk.intercept_methods(record):
        yield captured
    captured.update(capture.take(results, owner, called))
