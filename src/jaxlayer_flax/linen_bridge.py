"""NNX modules inside of linen modules: `nnx.bridge.ToLinen`, told of the mode wherever it is made.

Such a module makes its NNX module anew in each call, in training mode, and has it draw from a
constant key if nobody gives a stream called `default`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
from flax import nnx

from jaxlayer_core import stream_key
from jaxlayer_flax import nnx_modes

ToLinen: Any = nnx.bridge.ToLinen


@contextmanager
def in_mode(training: bool, named: Mapping[str, bool] | None) -> Iterator[list[nn.Module]]:
    """Has the NNX modules made inside the block by linen modules train, or not.

    Args:
        training: the mode.
        named: see `nnx_modes.set_mode`.

    Yields:
        The linen modules that made one, up to now.
    """
    told: list[nn.Module] = []

    def intercept(
        method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if not isinstance(module, ToLinen) or context.method_name != "__call__":
            return method(*args, **kwargs)
        told.append(module)
        make = module.nnx_class
        _replace(module, functools.partial(_made_in_mode, make, module, training, named))
        try:
            return method(*args, **kwargs)
        finally:
            _replace(module, make)

    with nn.intercept_methods(intercept):
        yield told


def _made_in_mode(
    make: Callable[..., Any],
    owner: Any,
    training: bool,
    named: Mapping[str, bool] | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if "rngs" in kwargs and "default" not in owner.scope.rngs:
        if owner.is_initializing():  # drawing a key would change those of the variables after it
            key = stream_key(owner.scope.rngs["params"].as_jax_rng(), "default")
        else:
            key = owner.make_rng("default")  # asked of linen, which asks the layer in turn
        kwargs["rngs"].default = nnx.Rngs(key).default
    module = make(*args, **kwargs)
    nnx_modes.set_mode(module, training, named)
    return module


def _replace(module: Any, make: Callable[..., Any]) -> None:
    """Gives a module that is bound for one call another class to make its NNX module of."""
    object.__setattr__(module, "nnx_class", make)
