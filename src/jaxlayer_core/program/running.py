"""A stored program as a function that the rest of JAX can use.

It can be compiled, differentiated once in reverse mode, and mapped over with `jax.vmap`, one
after the other. Forward mode and second derivatives need the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxlayer_core.errors import ProgramError

Function = Callable[..., tuple[jax.Array, ...]]


def function(exported: export.Exported, owner: str, no_gradient: str | None) -> Function:
    """Makes the function.

    Args:
        exported: the program, of flat arguments.
        owner: the model's name, for errors.
        no_gradient: why there is no gradient, if there is none.

    Returns:
        A function of arrays that returns a tuple of arrays.
    """
    forward = jax.custom_batching.sequential_vmap(lambda *arrays: tuple(exported.call(*arrays)))
    if no_gradient is not None:
        reason = f"has no gradient, because when it was saved: {no_gradient.rstrip('.')}"
        return _not_differentiable(forward, owner, reason)
    backward = _not_differentiable(
        _backward(exported), owner, "can only be differentiated once, in reverse mode"
    )
    differentiable = [_is_inexact(aval) for aval in exported.in_avals]

    @jax.custom_vjp
    def call(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return forward(*arrays)

    def forward_rule(*arrays: jax.Array) -> tuple[Any, Any]:
        return call(*arrays), arrays

    def backward_rule(arrays: Any, cotangents: Any) -> tuple[Any, ...]:
        found = iter(backward(*arrays, *filter(_is_inexact, cotangents)))
        return tuple(next(found) if yes else None for yes in differentiable)

    call.defvjp(forward_rule, backward_rule)
    return call


def _is_inexact(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, np.inexact))


def _backward(exported: export.Exported) -> Function:
    """The gradient, of arguments and of the cotangents of those results that have any."""
    count = len(exported.in_avals)

    def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        results = jax.eval_shape(exported.call, *arrays[:count])
        given = iter(arrays[count:])
        cotangents = [
            next(given) if _is_inexact(result) else np.zeros(result.shape, jax.dtypes.float0)
            for result in results
        ]
        return tuple(filter(_is_inexact, exported.vjp().call(*arrays[:count], *cotangents)))

    batched: Function = jax.custom_batching.sequential_vmap(run)
    return batched


def _not_differentiable(function: Function, owner: str, reason: str) -> Function:
    @jax.custom_jvp
    def refusing(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return function(*arrays)

    @refusing.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise ProgramError(
            f"The saved program of {owner} {reason}. For more, build the layer from the model "
            "itself and load the weights of this one."
        )

    return refusing
