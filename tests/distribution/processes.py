"""What one of two processes does; run by test_processes.py."""

import json
import os
import sys
import warnings

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax

number, address, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")

import flax.linen as nn  # noqa: E402  # what is set above, they read
import keras  # noqa: E402
import numpy as np  # noqa: E402

from jaxlayer import FlaxLayer, gather_predictions, scan_steps  # noqa: E402

X = np.arange(64, dtype="float32").reshape(16, 4)


def text_of(block):
    try:
        block()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def split_over_processes(devices):
    """What files can be written of variables of which each process has a half."""
    mesh = keras.distribution.DeviceMesh((1, 2), ("batch", "model"), devices)
    layout_map = keras.distribution.LayoutMap(mesh)
    layout_map[".*half/params/kernel"] = (None, "model")
    halves = keras.distribution.ModelParallel(layout_map=layout_map, auto_shard_dataset=False)
    keras.distribution.set_distribution(halves)
    layer = FlaxLayer(nn.Dense(2), seed=1, name="half")
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.save_variables(f"{folder}/halves.orbax")
    expected = [np.asarray(s.data) for s in shards(layer)]
    layer.load_variables(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), layer.variables_tree()))
    layer.load_variables(f"{folder}/halves.orbax")
    restored = [np.asarray(s.data) for s in shards(layer)]
    return {
        "split npz": text_of(lambda: layer.save_variables(f"{folder}/half{number}.npz")),
        "split keras": text_of(lambda: model.save(f"{folder}/half{number}.keras")),
        "split orbax": [s.shape for s in restored] == [(4, 1)]
        and all(map(np.array_equal, restored, expected))
        and bool(np.any(expected)),
    }


def shards(layer):
    return layer.params["params"]["kernel"].value.addressable_shards


def main():
    keras.distribution.initialize(address, 2, number)
    devices = keras.distribution.list_devices()
    parallel = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    keras.distribution.set_distribution(parallel)
    layer = FlaxLayer(nn.Dense(2), seed=1, name="dense")
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("sgd", "mse")
    rows = X[8 * number : 8 * number + 8]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = {"predict": text_of(lambda: model.predict(rows, batch_size=8, verbose=0))}
    found["warning"] = [str(w.message) for w in caught if w.category.__name__ == "ProcessWarning"]
    if number == 0:  # which needs nobody else for that
        layer.save_variables(f"{folder}/one.npz")
    # Here Keras makes an optimizer, to see which attributes one has, and all have to take part.
    model.save(f"{folder}/{number}.keras")
    layer.save_variables(f"{folder}/all.orbax")
    found["background"] = text_of(lambda: layer.save_variables(f"{folder}/b.orbax", wait=False))
    found["evaluate"] = model.evaluate(rows, rows[:, :2], batch_size=8, verbose=0)
    variables = layer.variables_tree()  # every process has what is not split
    expected = np.asarray(nn.Dense(2).apply(jax.tree.map(np.asarray, variables), X))
    gather_predictions(model)
    predictions = model.predict(rows, batch_size=8, verbose=0)
    found["gathered"] = bool(np.allclose(predictions, expected, rtol=1e-6))
    model.compile("sgd", "mse", steps_per_execution=2)
    scan_steps(model)
    predictions = model.predict(rows, batch_size=4, verbose=0)
    by_batch = [expected[i] for i in (0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15)]
    found["scanned"] = bool(np.allclose(predictions, by_batch, rtol=1e-6))
    other = FlaxLayer(nn.Dense(2), seed=2)
    other.build((8, 4))
    other.load_variables(f"{folder}/all.orbax")
    same = jax.tree.map(np.array_equal, other.variables_tree(), variables)
    found["restored"] = all(jax.tree.leaves(same))
    other.load_variables(f"{folder}/one.npz")
    same = jax.tree.map(np.array_equal, other.variables_tree(), variables)
    found["from npz"] = all(jax.tree.leaves(same))
    loaded = keras.saving.load_model(f"{folder}/{number}.keras").layers[0].variables_tree()
    same = jax.tree.map(np.array_equal, loaded, variables)
    found["from keras"] = all(jax.tree.leaves(same))
    found |= split_over_processes(devices)
    with open(f"{folder}/{number}.json", "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
