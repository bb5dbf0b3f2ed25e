"""Training and inference as attributes of NNX modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from jaxlayer_core.signature import ATTRIBUTE_FLAGS
from jaxlayer_flax import nnx_bridge
from jaxlayer_flax.nnx_trees import Parts


def modules(module: nnx.Module) -> Iterator[tuple[tuple[Any, ...], nnx.Module]]:
    """All modules in a module, itself too, each once, by path."""
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Module):
            yield path, node


def set_mode(module: nnx.Module, training: bool, named: Mapping[str, bool] | None) -> None:
    """Tells a module, and all inside of it, whether it trains.

    Args:
        module: changed in place.
        training: the mode.
        named: the attributes that the user says are flags, with their values in training; None
            for those of the table `ATTRIBUTE_FLAGS`. The module's own `train()` and `eval()` are
            called, unless the user says that there are no flags.
    """
    flags = ATTRIBUTE_FLAGS if named is None else named
    for _, inside in list(modules(module)):
        for name in _flags(inside, flags):
            setattr(inside, name, training is flags[name])
        nnx_bridge.set_mode(inside, training, flags)
    if flags:
        word = "train" if training else "eval"
        switch = getattr(module, word)
        (switch if callable(switch) else getattr(nnx.Module, word).__get__(module))()


def attributes(module: nnx.Module, names: Mapping[str, bool]) -> set[str]:
    """The names among these that are flags of any module inside."""
    return {name for _, inside in modules(module) for name in _flags(inside, names)}


def differ(parts: Parts, named: Mapping[str, bool] | None) -> bool:
    """Whether training and inference differ by the attributes of a module."""
    found: list[Any] = []

    def structures(variables: Any, key: jax.Array) -> None:
        for training in (True, False):
            module = parts.merge(variables, key)
            set_mode(module, training, named)
            found.append(Parts.of(module).graphdef)

    jax.eval_shape(structures, parts.variables(), jax.random.key(0))
    return bool(found[0] != found[1])


def _flags(module: nnx.Module, names: Mapping[str, bool]) -> list[str]:
    return [name for name in names if isinstance(vars(module).get(name), bool)]
