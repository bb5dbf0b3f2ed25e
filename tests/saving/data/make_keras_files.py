"""Makes the files in this folder with the JAX layers of Keras itself.

Those need TensorFlow, which the tests do not. Run it, with `pip install tensorflow-cpu keras
flax`, only to make files of another version of Keras: `python make_keras_files.py`.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


@keras.saving.register_keras_serializable("files")
class Deep(nn.Module):
    """Twelve Dense layers, of which `Dense_10` sorts before `Dense_2`."""

    def get_config(self):
        return {}

    @nn.compact
    def __call__(self, x, training: bool):
        for _ in range(12):
            x = jnp.tanh(nn.Dense(4)(x))
        x = nn.BatchNorm(use_running_average=not training)(x)
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not training)(x))


@keras.saving.register_keras_serializable("files")
def count_init(rng, inputs):
    """Eleven matrices, of which `w10` sorts before `w2`, and state."""
    keys = {f"w{i}": jax.random.fold_in(rng, i) for i in range(11)}
    params = {name: jax.random.normal(key, (4, 4), "float32") for name, key in keys.items()}
    state = {"calls": jnp.zeros((), "int32"), "mean": jnp.zeros(4, "float32")}
    return {**params, "scale": jnp.ones((), "float32")}, state


@keras.saving.register_keras_serializable("files")
def count_call(params, state, inputs, training):
    outputs = inputs
    for i in range(11):
        outputs = jnp.tanh(outputs @ params[f"w{i}"])
    mean = jnp.mean(inputs, 0) if training else state["mean"]
    return outputs * params["scale"], {"calls": state["calls"] + 1, "mean": mean}


def models(flax_layer, jax_layer):
    """The models, of layers of Keras and of one layer under test."""
    for name, layer in (("flax", flax_layer(Deep())), ("jax", jax_layer(count_call, count_init))):
        inputs = keras.Input((4,))
        outputs = keras.layers.Dense(3)(layer(keras.layers.Dense(4)(inputs)))
        yield name, keras.Model(inputs, outputs)


def main():
    keras.utils.set_random_seed(0)
    expected = {}
    for name, model in models(keras.layers.FlaxLayer, keras.layers.JaxLayer):
        model.compile("sgd", "mse")
        model.fit(X, np.ones((6, 3)), epochs=3, verbose=0)
        model.save(f"{name}.keras")
        model.save_weights(f"{name}.weights.h5")
        expected[name] = model.predict(X, verbose=0)
    np.savez("outputs.npz", **expected)


if __name__ == "__main__":
    main()
