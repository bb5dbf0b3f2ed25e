"""A program exported with a symbolic batch computes; it is not only inferred."""

import flax.linen as nn
import jax
import keras
import numpy as np

from jaxlayer import FlaxLayer


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_exported_program_with_symbolic_batch_gives_the_layers_numbers():
    model = keras.Sequential([keras.Input((3,)), FlaxLayer(Net(), seed=0)])
    trained = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    (batch,) = jax.export.symbolic_shape("batch")

    def predict(x):
        return model.stateless_call(trained, others, x, training=False)[0]

    spec = jax.ShapeDtypeStruct((batch, 3), "float32")
    exported = jax.export.export(jax.jit(predict))(spec)
    for size in (1, 4, 7):
        x = np.random.default_rng(size).normal(size=(size, 3)).astype("float32")
        np.testing.assert_array_equal(exported.call(x), jax.jit(predict)(x))
        assert np.abs(exported.call(x)).sum() > 0


def test_a_block_in_a_functional_model_infers_what_the_model_itself_rejects():
    class Halves(nn.Module):
        """Compares a size in Python, which no symbol allows."""

        @nn.compact
        def __call__(self, x):
            if x.shape[1] % 2:
                raise ValueError("odd")
            half = x.shape[1] // 2
            return nn.Dense(4)(x[:, :half] + x[:, half:])

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = FlaxLayer(Halves())

        def call(self, x):
            return keras.ops.relu(self.inner(x))

    inputs = keras.Input((None, 3))
    outputs = Block()(inputs)
    assert outputs.shape == (None, None, 4)
    model = keras.Model(inputs, outputs)
    assert model.predict(np.ones((2, 6, 3), "float32"), verbose=0).shape == (2, 3, 4)


@keras.saving.register_keras_serializable("test")
class Mix(nn.Module):
    """A module that Keras can save, called with keywords and a static value."""

    @nn.compact
    def __call__(self, x, *, other, scale: float = 1.0):
        return nn.Dense(2)(x) + scale * nn.Dense(2)(other)

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_functional_model_with_keywords_and_static_values_is_saved(tmp_path):
    x, other = keras.Input((3,)), keras.Input((4,))
    model = keras.Model([x, other], FlaxLayer(Mix())(x, other=other, scale=0.5))
    data = [np.ones((2, 3), "float32"), np.full((2, 4), 2.0, "float32")]
    expected = model(data)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(data), expected)
