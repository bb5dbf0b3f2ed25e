"""Several devices, and Keras with NNX: each in a process of its own."""

import json

import pytest

DEVICES = """
import json, jax, jax.numpy as jnp, keras, numpy as np, optax
from jaxlayer_optax import as_optimizer

devices = keras.distribution.list_devices()
mesh = keras.distribution.DeviceMesh((4, 2), ["batch", "model"], devices)
layouts = keras.distribution.LayoutMap(mesh)
layouts["dense/kernel"] = (None, "model")
KINDS = {
    "none": None,
    "data": keras.distribution.DataParallel(devices=devices),
    "model": keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch"),
}
x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
found = {}
for name, distribution in KINDS.items():
    keras.backend.clear_session()
    keras.distribution.set_distribution(distribution)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(6, name="dense")(inputs))
    optimizer = as_optimizer(optax.chain(optax.adamw(1e-2), optax.contrib.reduce_on_plateau()))
    model.compile(optimizer, "mse")
    model.fit(x, x[:, :1], batch_size=8, shuffle=False, verbose=0)
    kernel = model.trainable_variables[0]
    slots = [v for v in optimizer.variables if v.path.endswith("dense/kernel")]
    found[name] = {
        "slots": [v.path for v in slots],
        "like": all(v.value.sharding.is_equivalent_to(kernel.value.sharding, 2) for v in slots),
        "parts": len({str(s.index) for s in slots[0].value.addressable_shards}),
        "devices": len(optimizer.state[0][0].count.value.sharding.device_set),
        "kernel": kernel.numpy().tolist(),
        "mu": slots[0].numpy().tolist(),
    }
print(json.dumps(found))
"""


@pytest.mark.without("KERAS_NNX_ENABLED=true")  # Keras' trainer takes no shardings then
def test_devices(run_python):
    """Slots are split as their weights are; training gives the same but for rounding."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    found = json.loads(run_python(DEVICES, env=flags))
    for kind, (parts, devices) in {"none": (1, 1), "data": (1, 8), "model": (2, 8)}.items():
        got = found[kind]
        assert got["like"]
        assert got["slots"] == [f"optax_optimizer/0/0/{m}/dense/kernel" for m in ("mu", "nu")]
        assert (got["parts"], got["devices"]) == (parts, devices), kind
        for name in ("kernel", "mu"):
            assert got[name] == [
                pytest.approx(row, rel=1e-4, abs=1e-6) for row in found["none"][name]
            ]


NNX = """
try:
    import keras
except TypeError:
    raise SystemExit
import numpy as np, optax, tempfile
import flax.linen as nn
from jaxlayer import FlaxLayer, OptaxOptimizer

assert keras.config.is_nnx_enabled()
x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
keras.utils.set_random_seed(0)
inputs = keras.Input((4,))
model = keras.Model(inputs, FlaxLayer(nn.Dense(1), name="flax")(inputs))
for optimizer in (
    OptaxOptimizer(optax.sgd, 0.1, use_ema=True),
    OptaxOptimizer(optax.inject_hyperparams(optax.adam)(learning_rate=0.1)),
    OptaxOptimizer(optax.lbfgs()),
):
    model.compile(optimizer, "mse")
    first = model.evaluate(x, x[:, :1], verbose=0)
    cut = keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=1e9)
    has_rate = optimizer._make.has_rate or "inject" in str(optimizer._make.tx)
    model.fit(x, x[:, :1], epochs=3, verbose=0, callbacks=[cut] if has_rate else [])
    assert model.evaluate(x, x[:, :1], verbose=0) < first
    path = tempfile.mkdtemp() + "/model.weights.h5"
    model.save_weights(path)
    model.load_weights(path)
    print(type(optimizer.state).__name__)
"""


def test_with_nnx(run_python):
    printed = run_python(NNX, env={"KERAS_NNX_ENABLED": "true"})
    if not printed:
        pytest.skip("this Keras cannot be imported with this Flax and NNX enabled")
    assert printed.split() == ["tuple", "InjectStatefulHyperparamsState", "tuple"]
