"""Arrays brought to where they are to be, or copied there."""

from __future__ import annotations

from typing import Any

import jax


def moved(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array where it is to be; as with `jax.device_put`, what is there already is not copied.

    Not `jax.device_put` alone: copies that it makes of an array of one process on the devices of
    several cannot be read by their shards, as Orbax does (JAX 0.10).

    Args:
        value: an array of NumPy or JAX; with a sharding over several processes, the same in all.
        sharding: where it is to be.

    Example:
        >>> import jax, numpy as np
        >>> from jaxlayer_core.placing import moved
        >>> here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        >>> moved(np.ones(4), here).sharding == here
        True
    """
    is_local = isinstance(value, jax.Array) and value.is_fully_addressable
    if is_local and not sharding.is_fully_addressable:
        return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
    return jax.device_put(value, sharding)


def copy_of(value: Any, sharding: jax.sharding.Sharding | None, dtype: Any = None) -> jax.Array:
    """A copy of an array that shares no memory with it, split from the start.

    Not `jax.device_put(may_alias=False)`: on the devices that have the memory already its result
    is that memory (JAX 0.10), which Keras' train step gives away.

    Args:
        value: an array of NumPy or JAX.
        sharding: where the copy is to be; None for the default device, or, for an array of JAX,
            where that is.
        dtype: of the copy of a NumPy array; None for its own.

    Example:
        >>> import jax, numpy as np
        >>> from jaxlayer_core.placing import copy_of
        >>> array = np.zeros(4, "float32")
        >>> copy = copy_of(array, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        >>> array[:] = 1
        >>> float(copy.max())
        0.0
    """
    if isinstance(value, jax.Array):
        placed = value if sharding is None else moved(value, sharding)
        return placed.copy()
    if sharding is None:
        return jax.numpy.array(value, dtype)

    devices = sharding.addressable_devices_indices_map(value.shape)
    shards = [jax.numpy.array(value[i], dtype, device=device) for device, i in devices.items()]
    return jax.make_array_from_single_device_arrays(value.shape, sharding, shards)
