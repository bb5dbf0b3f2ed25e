"""Modules that are written for one example, mapped over a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from jaxlayer_core import Arguments, SignatureError
from jaxlayer_equinox import trees

BatchAxis = int | None | Mapping[str, int | None]
"""Which axis of the arguments is the batch: of all, or by the argument's name (0 for others)."""

Run = Callable[[Arguments, jax.Array], tuple[Any, Any]]
"""Gives outputs and state for arguments and a key."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_DEFAULT_NAME = "batch"


def axis_name_of(owner: str, module: eqx.Module) -> Hashable:
    """The name of the batch that the module's layers, such as `eqx.nn.BatchNorm`, reduce over.

    Args:
        owner: the model's name, for the error.
        module: the module.

    Raises:
        SignatureError: they reduce over several axes.
    """
    names: dict[Hashable, None] = {}
    for name in trees.attributes(module, "axis_name"):
        is_several = isinstance(name, Sequence) and not isinstance(name, str)
        names |= dict.fromkeys(name if is_several else [name])
    names.pop(None, None)
    if len(names) > 1:
        raise SignatureError(
            f"{owner} has layers that reduce over the axes {', '.join(map(repr, names))}, and the "
            "batch is one axis. Give its name with axis_name=, and map over the others in the "
            "module itself."
        )
    return next(iter(names), _DEFAULT_NAME)


def mapped(
    run: Run,
    arguments: Arguments,
    key: jax.Array,
    *,
    owner: str,
    parameters: Sequence[inspect.Parameter],
    batch_axis: BatchAxis,
    axis_name: Hashable,
) -> tuple[Any, Any]:
    """Runs a function of one example for all examples of a batch.

    Every array but a scalar is a batch; all that is no array is the same for every example. Each
    example has a key of its own, `jax.random.split(key, batch)`. Outputs have the batch as their
    first axis. The state has none: what a module writes must not differ between examples.

    Args:
        run: the function.
        arguments: of the whole batch.
        key: of the whole call.
        owner: the model's name, for errors.
        parameters: of the function, in order.
        batch_axis: which axis is the batch.
        axis_name: what the function may call that axis.

    Raises:
        SignatureError: no argument has a batch.
    """
    if batch_axis is None:
        return run(arguments, key)
    leaves, treedef = jax.tree.flatten(arguments)
    axes = [
        axis if _has_axes(leaf) else None
        for leaf, axis in zip(leaves, _axes(arguments, parameters, batch_axis), strict=True)
    ]
    places = [place for place, axis in enumerate(axes) if axis is not None]
    if not places:
        raise SignatureError(
            f"{owner} is mapped over the batch, but no argument of the call has one. If it takes "
            "whole batches itself, make the layer with batch_axis=None."
        )

    def one(batched: Sequence[Any], key: jax.Array) -> tuple[Any, Any]:
        own = list(leaves)
        for place, leaf in zip(places, batched, strict=True):
            own[place] = leaf
        return run(jax.tree.unflatten(treedef, own), key)

    batched, in_axes = [leaves[p] for p in places], [axes[p] for p in places]
    keys = jax.random.split(key, batched[0].shape[in_axes[0]])
    over_batch = jax.vmap(one, in_axes=(in_axes, 0), out_axes=(0, None), axis_name=axis_name)
    return over_batch(batched, keys)


def _has_axes(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and leaf.ndim > 0


def _axes(
    arguments: Arguments, parameters: Sequence[inspect.Parameter], batch_axis: BatchAxis
) -> list[int | None]:
    """For each leaf of the arguments the axis that is the batch."""
    by_name = batch_axis if isinstance(batch_axis, Mapping) else {}
    default = 0 if isinstance(batch_axis, Mapping) else batch_axis
    positional = [p.name for p in parameters if p.kind in _POSITIONAL]
    unnamed = [""] * (len(arguments.args) - len(positional))
    named = [*zip([*positional, *unnamed], arguments.args, strict=False)]
    # Keywords as JAX flattens a dict: by name.
    named += [(name, arguments.kwargs[name]) for name in sorted(arguments.kwargs)]
    return [by_name.get(name, default) for name, value in named for _ in jax.tree.leaves(value)]
