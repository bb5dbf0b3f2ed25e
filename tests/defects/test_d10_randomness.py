"""D10: models that draw in their own way, and keys in their own form."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer
from jaxlayer_core import key_from_seed, stream_key

X = np.linspace(0.5, 2, 24, dtype="float32").reshape(6, 4)


class Noisy(nn.Module):
    """Draws from a stream of its own name, in training and in inference."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dropout(0.5, deterministic=not train)(x)


def next_key(layer):
    return key_from_seed(layer.seed_generator.state.value)


def test_a_stream_of_any_name(assert_same):
    """The user's module calls `self.make_rng("noise")`.

    Keras' own layer provides "params" and "dropout" only, by a fixed list.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (InvalidRngError).
    """
    layer = FlaxLayer(Noisy(), seed=1)
    layer.build((None, 4))
    for training in (False, True, True, False):
        names = ("noise", "dropout") if training else ("noise",)
        rngs = {name: stream_key(next_key(layer), name) for name in names}
        native = jax.jit(lambda x, r, t=training: Noisy().apply({}, x, train=t, rngs=r))
        assert_same(layer(X, training=training), native(X, rngs))


def test_a_stream_of_any_name_in_fit_and_predict():
    """The same through a Keras model.

    Keras' own layer fails alike.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (InvalidRngError).
    """
    model = keras.Sequential(
        [keras.Input((4,)), FlaxLayer(Noisy()), keras.layers.Dense(1, use_bias=False)]
    )
    model.compile("sgd", "mse")
    model.fit(X, np.ones((6, 1)), verbose=0)
    assert np.any(model.predict(X, verbose=0) != model.predict(X, verbose=0))


def sampling(x):
    return x + jax.random.normal(hk.next_rng_key(), x.shape)


def test_haiku_key_in_inference(assert_same):
    """The user's Haiku model samples in inference, as a VAE does.

    Keras' own layer passes `rng=None` in inference.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (JaxLayer: ValueError, no rng).
    """
    layer = HaikuLayer(sampling, seed=2)
    layer.build((None, 4))
    apply = jax.jit(hk.transform(sampling).apply)
    for _ in range(2):
        expected = apply({}, next_key(layer), X)
        assert_same(layer(X, training=False), expected)


class MonteCarlo(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(x))


def test_monte_carlo_dropout_in_predict():
    """The user keeps dropout on in inference to estimate uncertainty.

    Keras' own layer gives no rngs in inference.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (InvalidRngError).
    """
    model = keras.Sequential([keras.Input((4,)), FlaxLayer(MonteCarlo())])
    one, two = (model.predict(X, verbose=0) for _ in range(2))
    assert np.any(one != two)
    assert 0 < np.mean(one == 0) < 1


def test_a_call_that_does_not_draw_leaves_the_seed_alone(values):
    """The user evaluates between two training steps and expects the same training.

    Keras' own layer draws in training only.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: no.
    """

    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            return nn.Dropout(0.5, deterministic=not train)(x)

    layer = FlaxLayer(Dropped(), seed=1)
    layer(X)
    before = values(layer.seed_generator.state)
    layer(X, training=False)
    np.testing.assert_array_equal(values(layer.seed_generator.state), before)
    layer(X, training=True)
    assert np.any(values(layer.seed_generator.state) != before)


def test_another_default_key_implementation(run_python):
    """The user sets `jax_default_prng_impl=rbg`, as is usual on TPUs.

    Keras' own layer makes a raw key of two words where that implementation takes four.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes.
    """
    printed = run_python(
        """
        import flax.linen as nn, haiku as hk, jax, keras, numpy as np
        from jaxlayer import FlaxLayer, HaikuLayer
        from jaxlayer_core import key_from_seed, stream_key
        assert jax.config.jax_default_prng_impl == "rbg"

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x, train=False):
                return nn.Dropout(0.5, deterministic=not train)(nn.Dense(3)(x))

        x = np.ones((2, 4), "float32")
        layer = FlaxLayer(Net(), seed=0)
        model = keras.Sequential([keras.Input((4,)), layer, HaikuLayer(
            lambda x: hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(2)(x)))])
        native = Net().init(key_from_seed([0, 0]), x)
        np.testing.assert_array_equal(layer.params["params"]["Dense_0"]["kernel"].value,
                                      native["params"]["Dense_0"]["kernel"])
        model.compile("sgd", "mse")
        model.fit(x, np.ones((2, 2)), verbose=0)
        print(model.predict(x, verbose=0).shape)
        """,
        env={"JAX_DEFAULT_PRNG_IMPL": "rbg"},
    )
    assert printed.strip() == "(2, 2)"


class OwnKey(nn.Module):
    """Keeps a typed key in its state and splits it at each call."""

    @nn.compact
    def __call__(self, x):
        state = self.variable("rng", "key", lambda: jax.random.key(7))
        key, state.value = jax.random.split(state.value)
        return nn.Dense(2)(x) + jax.random.normal(key, (2,))


@pytest.mark.without("JAX_NUMPY_RANK_PROMOTION=raise")  # the model itself promotes ranks
def test_a_typed_key_in_the_state(assert_same, values):
    """The user's module keeps a typed key among its variables.

    Keras' own layer asks Keras for a variable of dtype `key<fry>`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError: invalid dtype).
    """
    layer = FlaxLayer(OwnKey(), seed=0)
    variables = OwnKey().init(key_from_seed([0, 0]), X)
    native = jax.jit(lambda v, x: OwnKey().apply(v, x, mutable=["rng"]))
    for _ in range(3):
        expected, mutated = native(variables, X)
        variables = {**variables, **mutated}
        assert_same(layer(X, training=True), expected)
        assert_same(layer.state, {"rng": mutated["rng"]})
    assert layer.state["rng"]["key"].dtype == "uint32"


@pytest.mark.without("JAX_NUMPY_RANK_PROMOTION=raise")  # the model itself promotes ranks
def test_a_typed_key_in_the_state_through_fit(values):
    """The same in `fit`, where the state goes through Keras' train step.

    Keras' own layer fails at the build.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError: invalid dtype).
    """
    layer = FlaxLayer(OwnKey())
    model = keras.Sequential([keras.Input((4,)), layer])
    before = values(layer.state)
    model.compile("sgd", "mse")
    model.fit(X, np.ones((6, 2)), verbose=0)
    assert np.any(values(layer.state)["rng"]["key"] != before["rng"]["key"])


def test_a_given_typed_key(assert_same):
    """The user brings a typed key in `state`, also an array of keys of another implementation.

    Keras' own layer asks Keras for a variable of dtype `key<rbg>`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (JaxLayer: ValueError: invalid dtype).
    """
    keys = jax.random.split(jax.random.key(3, impl="rbg"), 2)

    def call(state, inputs):
        use, keep = state
        assert jax.dtypes.issubdtype(use.dtype, jax.dtypes.prng_key)
        return inputs + jax.random.normal(use), jnp.stack([keep, jax.random.split(keep)[0]])

    layer = JaxLayer(call, state=keys)
    state = keys
    for _ in range(2):
        expected, state = jax.jit(call)(state, X)
        assert_same(layer(X), expected)
        assert_same(layer.state, state)
