"""Optimizers beside what else there is: layers of each framework, scanned steps, Orbax."""

import equinox as eqx
import jax
import keras
import optax
import pytest
from flax import nnx
from optax import contrib

from jaxlayer import EquinoxLayer, FlaxLayer, scan_steps
from jaxlayer_optax import as_optimizer

from .models import DATA, STEPS, made, native, result_of

LAYERS = {
    "nnx": lambda: FlaxLayer(nnx.Linear(4, 1, rngs=nnx.Rngs(0)), name="nnx"),
    "equinox": lambda: EquinoxLayer(eqx.nn.Linear(4, 1, key=jax.random.key(0)), name="equinox"),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_layers(make, assert_same):
    """Five steps of `fit` are five native ones."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, make()(inputs))
    tx = optax.adamw(1e-2)
    expected = native(model, tx)
    model.compile(as_optimizer(tx), "mse")
    model.fit(**DATA)
    assert_same(result_of(model.optimizer), expected)


@pytest.mark.without("KERAS_NNX_ENABLED=true")  # there are no scanned steps then
def test_scanned_steps(assert_same):
    """Five steps in one program; the loss is that of each step."""
    tx = optax.chain(optax.adam(1e-2), contrib.reduce_on_plateau(patience=1))
    model = scan_steps(made())
    model.compile(as_optimizer(tx), "mse", steps_per_execution=STEPS)
    model.fit(**DATA)
    assert_same(result_of(model.optimizer), native(made(), tx))


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")  # as Keras loads
@pytest.mark.skipif(not hasattr(keras.callbacks, "OrbaxCheckpoint"), reason="Keras has none yet")
def test_orbax(tmp_path, assert_same):
    """Two epochs, a checkpoint, one more epoch in a new model: as three. A key is in the state."""
    pytest.importorskip("orbax.checkpoint")
    tx = optax.chain(optax.add_noise(0.1, 0.5, 3), optax.adamw(1e-2))

    def compiled():
        model = made()
        model.compile(as_optimizer(tx), "mse")
        return model

    whole, first, second = compiled(), compiled(), compiled()
    whole.fit(**DATA, epochs=3)
    save = keras.callbacks.OrbaxCheckpoint(tmp_path, save_on_background=False)
    first.fit(**DATA, epochs=2, callbacks=[save])
    second.optimizer.build(second.trainable_variables)
    second.load_weights(tmp_path)
    assert_same(result_of(second.optimizer), result_of(first.optimizer))
    second.fit(**DATA, initial_epoch=2, epochs=3)
    assert_same(result_of(second.optimizer), result_of(whole.optimizer))
