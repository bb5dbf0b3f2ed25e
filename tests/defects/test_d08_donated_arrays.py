"""D8: `fit` donates the buffers of variables; the user's own arrays are not ours to give."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer

X = np.linspace(-1, 1, 24, dtype="float32").reshape(6, 4)
Y = np.ones((6, 2), "float32")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))


def fit(layer):
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("sgd", "mse")
    model.fit(X, Y, epochs=2, shuffle=False, verbose=0)


def copied(tree):
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


def test_given_variables_survive_fit(assert_same):
    """The user fine-tunes from `variables` and then looks at them again.

    Keras' own layer trains in the user's arrays: "Array has been deleted".

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (RuntimeError).
    """
    variables = Net().init(jax.random.key(0), X)
    before = copied(variables)
    layer = FlaxLayer(Net(), variables=variables)
    fit(layer)
    assert_same(variables, before)
    assert_same(Net().apply(variables, X), Net().apply(before, X))
    kernel = layer.params["params"]["Dense_0"]["kernel"]
    assert np.any(np.asarray(kernel.value) != before["params"]["Dense_0"]["kernel"])


def test_the_same_variables_serve_two_layers(assert_same):
    """The user starts two models from one checkpoint.

    Keras' own layer finds the arrays deleted by the first.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (RuntimeError in the second fit).
    """
    variables = Net().init(jax.random.key(0), X)
    one, two = (FlaxLayer(Net(), variables=variables) for _ in range(2))
    fit(one)
    fit(two)
    assert_same(one.params, two.params)
    assert_same(one.state, two.state)


def test_numpy_arrays_survive_fit(assert_same):
    """The same with NumPy arrays, which the CPU may share with JAX.

    Keras' own layer copies these.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: no.
    """
    variables = copied(Net().init(jax.random.key(0), X))
    before = copied(variables)
    fit(FlaxLayer(Net(), variables=variables))
    assert_same(variables, before)


def test_haiku_params_survive_fit(assert_same):
    """The same with Haiku.

    Keras' own JaxLayer trains in the user's arrays.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (JaxLayer: RuntimeError).
    """
    model = hk.transform(lambda x: hk.Linear(2)(x))
    params = model.init(jax.random.key(0), X)
    before = copied(params)
    fit(HaikuLayer(model, params=params))
    assert_same(params, before)


@pytest.mark.without("JAX_DEBUG_NANS=true")  # which stops donation
def test_copying_can_be_left_out():
    """The user's model is too big to hold twice, and says so.

    Keras' own layer never copies.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (it has no such option).
    """
    kernel = jnp.ones((4, 2))
    variables = {"params": {"kernel": kernel, "bias": jnp.zeros(2)}}
    fit(FlaxLayer(nn.Dense(2), variables=variables, copy_variables=False))
    assert kernel.is_deleted()
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(kernel)


def test_keras_variables_of_another_layer_are_copied(assert_same):
    """Otherwise training one layer would train the other, and both would own the variables."""
    first = FlaxLayer(nn.Dense(1))
    first(X)
    second = FlaxLayer(nn.Dense(1), variables=first.params)
    before = copied(first.params)
    fit(second)
    assert_same(first.params, before)
    assert not {id(v) for v in first.weights} & {id(v) for v in second.weights}
    shared = FlaxLayer(nn.Dense(1), variables=first.params, copy_variables=False)
    assert shared.weights[0] is first.weights[0]


CONSTANTS = {
    "itself": lambda table: table,
    "as an array": lambda table: jnp.asarray(table, "float32"),
    "put": lambda table: jax.device_put(table),
    "out of a jitted function": lambda table: jax.jit(lambda x: x)(table),
    "in another shape": lambda table: jnp.reshape(table, (4, 4)),
    "stopped": lambda table: jax.lax.stop_gradient(table),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_arrays_that_an_init_returns_survive_fit(case):
    """A table that the user has loaded is the initial value of two params.

    Keras' own layer trains in that very array, and JAX refuses to give it away twice.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (JaxRuntimeError).
    """
    table = jnp.eye(4)

    class Tables(nn.Module):
        @nn.compact
        def __call__(self, x):
            one, two = (self.param(n, lambda key: CONSTANTS[case](table)) for n in ("one", "two"))
            return x @ one @ two @ jnp.ones((4, 2))

    layer = FlaxLayer(Tables())
    fit(layer)
    np.testing.assert_array_equal(table, np.eye(4))
    one, two = (v.value for v in layer.weights)
    assert one.unsafe_buffer_pointer() != two.unsafe_buffer_pointer()
    assert not np.array_equal(one, table)
