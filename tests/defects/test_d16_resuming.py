"""D16: Keras does not restore the seed's state, so draws start over after loading."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(x))


def noisy(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(16)(x), is_training)
    return hk.Linear(1)(hk.dropout(hk.next_rng_key(), 0.5 if is_training else 0.0, x))


@keras.saving.register_keras_serializable("test_d16")
def draw_call(params, state, rng, inputs, training):
    noise = jax.random.normal(rng, inputs.shape) if training else 0.0
    return (inputs + noise) @ params, state + 1


@keras.saving.register_keras_serializable("test_d16")
def draw_init(rng, inputs):
    return jax.random.normal(rng, (inputs.shape[-1], 1)), jnp.zeros(())


LAYERS = {
    "flax": lambda: FlaxLayer(Noisy(), name="net"),
    "haiku": lambda: HaikuLayer(noisy, name="net"),
    "functions": lambda: JaxLayer(draw_call, draw_init, name="net"),
}


def made(layer):
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def train(model, steps):
    return model.fit(X, X[:, :1], batch_size=8, epochs=steps, shuffle=False, verbose=0).history


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_three_steps_and_three_more_are_six(make, tmp_path, values, assert_same):
    """Train 3, save the weights, load them into a new model, train 3 more.

    The seeds of the two layers differ, as they do in two processes.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (other masks after loading).
    """
    straight = make()
    first = make()
    model = made(straight)
    start = [np.array(v) for v in (*model.weights, straight.seed_generator.state)]
    losses = train(model, 6)["loss"]

    model = made(first)
    for variable, value in zip((*model.weights, first.seed_generator.state), start, strict=True):
        variable.assign(value)
    begun = train(model, 3)["loss"]
    model.save_weights(tmp_path / "half.weights.h5")

    again = make()
    resumed = made(again)
    resumed.fit(X, X[:, :1], batch_size=8, verbose=0)  # makes the optimizer's variables
    resumed.load_weights(tmp_path / "half.weights.h5")
    for own, saved in zip(resumed.optimizer.variables, model.optimizer.variables, strict=True):
        own.assign(saved)
    assert begun + train(resumed, 3)["loss"] == losses
    assert_same((again.params, again.state), (straight.params, straight.state))
    np.testing.assert_array_equal(
        values(again.seed_generator.state), values(straight.seed_generator.state)
    )


def test_a_whole_model_resumes(tmp_path, assert_same):
    """The same through a `.keras` file, which holds the optimizer, too."""
    layer = LAYERS["functions"]()
    model = made(layer)
    train(model, 3)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert train(model, 3) == train(again, 3)
    assert_same((again.layers[0].params, again.layers[0].state), (layer.params, layer.state))


def test_a_backup_resumes(tmp_path):
    """`BackupAndRestore` goes on where a run was interrupted."""
    runs = {}
    for interrupted in (False, True):
        keras.utils.set_random_seed(1)
        folder = tmp_path / str(interrupted)

        class Interrupt(keras.callbacks.Callback):
            on = interrupted

            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 3 and Interrupt.on:
                    Interrupt.on = False
                    raise KeyboardInterrupt

        def run(model, folder=folder, interrupt=Interrupt):
            return model.fit(
                X,
                X[:, :1],
                batch_size=8,
                epochs=6,
                shuffle=False,
                verbose=0,
                callbacks=[keras.callbacks.BackupAndRestore(folder), interrupt()],
            ).history["loss"]

        model = made(LAYERS["flax"]())
        try:
            runs[interrupted] = run(model)
        except KeyboardInterrupt:
            runs[interrupted] = run(made(LAYERS["flax"]()))
    assert runs[True] == runs[False][3:]


def test_layers_without_seeds_share_no_draws(values):
    one, other = FlaxLayer(Noisy()), FlaxLayer(Noisy())
    for layer in (one, other):
        layer(X)
    for variable, value in zip(other.weights, one.weights, strict=True):
        variable.assign(value)
    assert np.any(values(one(X, training=True)) != values(other(X, training=True)))


class Sampler(nn.Module):
    """A model that draws in inference."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(x)
        return x + jax.random.normal(self.make_rng("sample"), x.shape)


def test_sampling_models_draw_anew_in_predict_and_reproduce_under_a_seed():
    runs = []
    for _ in range(2):
        model = made(FlaxLayer(Sampler(), seed=5))
        runs.append([model.predict(X, batch_size=4, verbose=0) for _ in range(2)])
    (first, second), again = runs
    assert np.all(first != second)
    assert np.all(first[:4] - second[:4] != first[4:] - second[4:])
    np.testing.assert_array_equal([first, second], again)
