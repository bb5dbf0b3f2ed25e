"""The random streams of an NNX module: never weights, but started anew from the key of a call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlayer_core import stream_key
from jaxlayer_flax.nnx_leaves import names_of, raw, type_of


def rngs_of(key: jax.Array, streams: Iterable[str] = (), first: str = "default") -> nnx.Rngs:
    """The `rngs` that a constructor, or a call that takes them, is given.

    Args:
        key: the key of the initialisation or of the call.
        streams: names of further streams, each from `stream_key(key, name)`.
        first: the stream that has the key itself, to which others fall back: `params` in linen.

    Example:
        >>> key = jax.random.key(0)
        >>> rngs_of(key).params() == nnx.Rngs(key).params()
        Array(True, dtype=bool)
    """
    return nnx.Rngs(**{first: key}, **{name: stream_key(key, name) for name in streams})


def reseeded(path: tuple[Any, ...], leaf: Any, key: jax.Array) -> jax.Array:
    """What a key or counter of a stream is at the beginning of a call.

    A stream's key is `stream_key(key, path)`, where the path is that of the stream among the
    attributes, such as `blocks/0/dropout/rngs`. So streams that were forked of one, as each
    `nnx.Dropout` does, stay different. One that was split, for a stack made by `nnx.vmap`, is
    split again.

    Args:
        path: of the variable; its last part is `key` or `count`.
        leaf: the variable.
        key: the key of the call.
    """
    shape = raw(leaf).shape
    if not issubclass(type_of(leaf), nnx.RngKey):
        return jnp.zeros(shape, jnp.uint32)
    own = stream_key(key, "/".join(names_of(path[:-1])))
    return jax.random.split(own, shape) if shape else own


def reseed(module: nnx.Module, key: jax.Array) -> None:
    """Starts all random streams of a module as `FlaxLayer` does for a call with this key.

    With the key `key_from_seed(layer.seed_generator.state)` from before a call, a module with the
    layer's variables then draws what the call drew.

    Args:
        module: changed in place.
        key: a scalar typed key.

    Example:
        >>> dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        >>> reseed(dropout, jax.random.key(1))
    """
    state = nnx.state(module, nnx.RngState)
    leaves = [
        (path, leaf.replace(reseeded(path, leaf, key))) for path, leaf in nnx.to_flat_state(state)
    ]
    nnx.update(module, nnx.from_flat_state(leaves))
