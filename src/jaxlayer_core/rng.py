"""Randomness: from a Keras seed to JAX keys and named streams, all reproducible by hand.

A layer owns one `keras.random.SeedGenerator`. Whenever the layer draws, the key is the
generator's own state `[seed, counter]`, before it moves on:

    >>> import jax, numpy as np
    >>> key_from_seed(np.array([7, 0], "uint32")) == jax.random.wrap_key_data(
    ...     np.array([7, 0], "uint32"), impl="threefry2x32")
    Array(True, dtype=bool)
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import jax
import numpy as np

IMPLEMENTATION = "threefry2x32"
"""Keras seeds are two words, which is what this implementation takes, whatever
`jax_default_prng_impl` says."""

SEED_NAME = "seed_generator_state"
"""What `keras.random.SeedGenerator` calls its variable."""


def key_from_seed(seed: Any) -> jax.Array:
    """Typed JAX key of a Keras seed.

    Args:
        seed: `uint32[2]`, the `[seed, counter]` of a `keras.random.SeedGenerator`.

    Returns:
        A scalar typed key.
    """
    return jax.random.wrap_key_data(jax.numpy.asarray(seed, "uint32"), impl=IMPLEMENTATION)


def stream_key(key: jax.Array, name: str) -> jax.Array:
    """Key of a named stream: `key` folded with the CRC-32 of the name.

    Args:
        key: the key of the call.
        name: the stream's name, such as `"dropout"`.

    Returns:
        A scalar typed key.

    Example:
        >>> import jax
        >>> key = jax.random.key(0)
        >>> stream_key(key, "dropout") == jax.random.fold_in(key, 0x9289efc9)
        Array(True, dtype=bool)
    """
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


@functools.cache
def unused_key() -> jax.Array:
    """Stands for the key of a call that does not draw; to make it compiles nothing."""
    with jax.core.eval_context():
        return key_from_seed(np.zeros(2, "uint32"))


def is_key(value: Any) -> bool:
    """Whether `value` is an array of typed PRNG keys."""
    return isinstance(value, jax.Array | jax.ShapeDtypeStruct) and jax.dtypes.issubdtype(
        value.dtype, jax.dtypes.prng_key
    )
