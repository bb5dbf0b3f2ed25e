"""One layer in many places, for a long time, from several threads."""

import concurrent.futures
import gc
import weakref

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


class Counting(nn.Module):
    """Counts its training calls, so both of two calls must show."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        calls = self.variable("counters", "calls", jnp.zeros, ())
        if train and not self.is_initializing():
            calls.value += 1
        return nn.Dense(4)(x)


def counting(x, is_training):
    calls = hk.get_state("calls", (), init=jnp.zeros)
    if is_training:
        hk.set_state("calls", calls + 1)
    return hk.Linear(4)(x)


MAKES = {
    "flax": lambda **options: FlaxLayer(Counting(), **options),
    "haiku": lambda **options: HaikuLayer(counting, **options),
}


def calls_of(layer):
    (state,) = jax.tree.leaves(layer.state, is_leaf=lambda leaf: isinstance(leaf, keras.Variable))
    return int(state.value)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_called_twice_in_one_model(make, values):
    """The weights are shared, and both calls' state is kept."""
    layer = make(seed=0)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(layer(inputs)))
    assert len(model.trainable_weights) == 2
    model.compile("sgd", "mse")
    model.fit(X, X, batch_size=4, epochs=1, verbose=0)
    assert calls_of(layer) == 4
    twice = layer(layer(X, training=False), training=False)
    np.testing.assert_allclose(model.predict(X, verbose=0), twice, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_nested_cloned_and_in_two_models(make, values):
    layer = make(seed=0)

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.inner = layer

        def call(self, x, training=None):
            return self.inner(x, training=training)

    block = Block()
    models = []
    for _ in range(2):
        inputs = keras.Input((4,))
        models.append(keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(block(inputs))))
    for model in models:
        model.compile("sgd", "mse")
        model.fit(X, X[:, :1], batch_size=8, verbose=0)
    assert calls_of(layer) == 2, "both models train the same layer"
    assert block.inner is layer
    assert all(w.path.startswith("block/") for w in block.weights)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_several_threads_at_once(make):
    """Inference from threads, different shapes and modes among them, gives what one thread does."""
    layer = make(seed=0)
    layer(X)
    inputs = [X[: 1 + i % 4] + i for i in range(64)]
    expected = [np.asarray(layer(x, training=False)) for x in inputs]
    fresh = make(seed=0)
    fresh(X)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda x: np.asarray(fresh(x, training=False)), inputs))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_the_first_call_from_several_threads(make):
    """Each thread builds a layer of its own; none takes the call of another for its own."""
    shapes = [(2, n) for n in range(1, 9)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda shape: make()(np.ones(shape, "float32")).shape, shapes))
    assert got == [(2, 4)] * 8


def test_steps_do_not_trace_again():
    traces = []

    class Traced(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            traces.append(train)
            x = nn.BatchNorm(use_running_average=not train)(x)
            return nn.Dropout(0.5, deterministic=not train)(nn.Dense(1)(x))

    layer = FlaxLayer(Traced(), seed=0, regularizers={"kernel": "l2"})
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("adam", "mse")
    model.fit(X, X[:, :1], batch_size=4, validation_data=(X, X[:, :1]), verbose=0)
    model.predict(X, batch_size=4, verbose=0)
    layer(X, training=True)
    layer(X, training=False)
    before = len(traces)
    model.fit(X, X[:, :1], batch_size=4, epochs=5, validation_data=(X, X[:, :1]), verbose=0)
    model.predict(X, batch_size=4, verbose=0)
    for _ in range(5):
        layer(X, training=True)
        layer(X, training=False)
    assert len(traces) == before


def live_arrays():
    gc.collect()
    return len(jax.live_arrays())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_many_calls_keep_nothing(make, training):
    """10,000 eager calls leave no array and no object behind."""
    layer = make(seed=0)
    for _ in range(3):
        layer(X, training=training)
    gc.collect()
    arrays, objects = live_arrays(), len(gc.get_objects())
    for _ in range(10_000 if not training else 500):
        layer(X, training=training)
    assert live_arrays() <= arrays
    gc.collect()
    # Python and JAX make a few objects of their own now and then.
    assert len(gc.get_objects()) - objects < 100


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_rebuilt_models_are_freed(make):
    """Ten models, made, trained and forgotten, as in a search for hyperparameters."""

    def run():
        layer = make()
        model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(1, use_bias=False)])
        model.compile("sgd", "mse")
        model.fit(X, X[:, :1], verbose=0)
        return weakref.ref(layer), weakref.ref(model)

    refs = [run() for _ in range(2)]
    keras.backend.clear_session()
    arrays = live_arrays()
    refs += [run() for _ in range(8)]
    keras.backend.clear_session()
    gc.collect()
    assert live_arrays() <= arrays
    assert [ref() for pair in refs for ref in pair] == [None] * 20


def test_a_static_value_that_varies_is_one_program_each():
    """And no more than one: a number is part of the program."""
    traces = []

    def call(inputs):
        traces.append(1)
        return inputs * 2

    layer = JaxLayer(call)
    for _ in range(3):
        layer(X)
    assert len(traces) == 1
