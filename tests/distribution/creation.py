"""What one of eight devices holds while a large leaf is made. Run by test_layouts.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from keras import distribution as kd

from jaxlayer import FlaxLayer
from jaxlayer_core.backends import sharded

LEAF = 64 * 2**20  # in bytes
UNITS = LEAF // 4 // 1024 // 8


class Dense(nn.Module):
    """A kernel that Flax makes in another shape than it keeps."""

    @nn.compact
    def __call__(self, x):
        return nn.DenseGeneral((8, UNITS))(x)


def on_one_device(compiled):
    """Bytes of arguments, results and what is between."""
    sizes = compiled.memory_analysis()
    return sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes


def check_sharded():
    """The most of each step, on one device."""
    used, run = [], sharded._run

    def watched(step, operands):
        results = run(step, operands)
        if step.compiled is None:
            used.append(sum(array.nbytes for array in results))
        else:
            used.append(on_one_device(step.compiled))
        return results

    layout_map = kd.LayoutMap(kd.DeviceMesh((8,), ("model",)))
    layout_map[".*kernel"] = (None, "model", None)
    kd.set_distribution(kd.ModelParallel(layout_map=layout_map, batch_dim_name="model"))
    sharded._run = watched
    try:
        layer = FlaxLayer(Dense(), seed=1)
        layer.build((8, 1024))
    finally:
        sharded._run = run
    kernel = next(v for v in layer.weights if v.name == "kernel").value
    assert kernel.nbytes == LEAF
    shards = [s.data.nbytes for a in jax.live_arrays() for s in a.addressable_shards]
    return {"step": max(used) / LEAF, "array": max(shards) / LEAF, "steps": len(used)}


def check_given():
    """How much memory the process takes to split a NumPy array, in leaves."""
    # So large that the shards, too, are memory that goes back to the system at once.
    value = np.full((8192, 8192), 0.5, "float32")
    layout_map = kd.LayoutMap(kd.DeviceMesh((8,), ("model",)))
    layout_map[".*kernel"] = (None, "model")
    kd.set_distribution(kd.ModelParallel(layout_map=layout_map, batch_dim_name="model"))
    before = memory()
    layer = FlaxLayer(nn.Dense(8192), variables={"params": {"kernel": value, "bias": value[0]}})
    jax.block_until_ready([v.value for v in layer.weights])
    return {"peak": (memory("VmHWM") - before) / value.nbytes}


def memory(what="VmRSS"):
    """Of this process, in bytes; VmHWM is the most since the last call."""
    with open("/proc/self/status") as file:
        found = next(line for line in file if line.startswith(what))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return int(found.split()[1]) * 1024


def check_whole():
    """The same of the framework's own init."""
    init = jax.jit(Dense().init).lower(jax.random.key(0), jnp.ones((8, 1024))).compile()
    return {"step": on_one_device(init) / LEAF}
