"""D9: what users bring as `variables=`."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import ml_dtypes
import numpy as np
import pytest

from jaxlayer import FlaxLayer, JaxLayer
from jaxlayer_core import StructureError

X = np.linspace(-1, 1, 24, dtype="float32").reshape(6, 4)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))


@pytest.fixture
def variables():
    native = Net().init(jax.random.key(1), X)
    return jax.tree.map(lambda leaf: leaf + 0.5, native)


def fit(layer):
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("sgd", "mse")
    model.fit(X, np.ones((6, 2)), verbose=0)


def test_frozen_dict(variables, assert_same):
    """The user's checkpoint is a FrozenDict, as Flax gave them for years.

    Keras' own layer mixes it with the dicts that `apply` returns.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError: a tree error).
    """
    layer = FlaxLayer(Net(), variables=flax.core.freeze(variables))
    native = jax.jit(Net().apply)(variables, X)
    assert_same(layer(X), native)
    fit(layer)
    assert type(layer.params["params"]) is dict


def test_params_only(variables, assert_same):
    """The user has the params and no batch statistics.

    Keras' own layer makes no state, and fails at the first call.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ValueError: a tree error).
    """
    layer = FlaxLayer(Net(), variables={"params": variables["params"]})
    layer(X)
    assert_same(layer.params, {"params": variables["params"]})
    mean = layer.state["batch_stats"]["BatchNorm_0"]["mean"]
    assert_same(mean, np.zeros(4, "float32"))
    fit(layer)


def test_state_only(variables, assert_same):
    """The user has statistics and wants fresh params.

    Keras' own layer fails at the first call.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (RuntimeError at the first call).
    """
    layer = FlaxLayer(Net(), variables={"batch_stats": variables["batch_stats"]})
    layer(X)
    assert_same(layer.state, {"batch_stats": variables["batch_stats"]})
    assert len(layer.trainable_weights) == 4


def test_wrong_shape(variables):
    """The user's checkpoint is of a wider model.

    Keras' own layer finds out at the first call, and hides Flax's message behind
    `__init__() missing arguments`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (the build accepts it).
    """
    variables["params"]["Dense_0"]["kernel"] = np.zeros((5, 2), "float32")
    layer = FlaxLayer(Net(), variables=variables)
    with pytest.raises(StructureError, match=r"`params/Dense_0/kernel` has shape \(5, 2\), expec"):
        layer.build((None, 4))


def test_bfloat16_leaves_keep_their_dtype(assert_same):
    """The user's checkpoint is in bfloat16.

    Keras' own layer upcasts it to float32, without a word.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (the kernel is float32).
    """
    module = nn.Dense(2, param_dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), X)
    layer = FlaxLayer(module, variables=variables)
    assert_same(layer(X), jax.jit(module.apply)(variables, X))
    fit(layer)
    assert {v.dtype for v in layer.weights} == {"bfloat16"}
    assert layer.params["params"]["kernel"].value.dtype == ml_dtypes.bfloat16


class Indexed(nn.Module):
    """Keeps an integer among its params, as some published models do."""

    @nn.compact
    def __call__(self, x):
        order = self.param("order", lambda key: jnp.array([3, 2, 1, 0], jnp.int32))
        return nn.Dense(2)(x[:, order])


@pytest.mark.parametrize("given", [True, False], ids=["given", "initialised"])
def test_integers_among_the_params_are_not_trained(given, assert_same):
    """The user's params hold a table of integers.

    Keras' own layer asks for its gradient: `TypeError: grad requires real- or complex-valued`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (TypeError in fit).
    """
    variables = Indexed().init(jax.random.key(0), X) if given else None
    layer = FlaxLayer(Indexed(), variables=variables)
    fit(layer)
    assert_same(layer.params["params"]["order"], np.array([3, 2, 1, 0], "int32"))
    assert sorted(v.name for v in layer.trainable_weights) == ["bias", "kernel"]


def test_integers_among_the_params_of_a_function():
    """The same with plain functions.

    Keras' own layer asks for its gradient.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (JaxLayer: TypeError in fit).
    """
    layer = JaxLayer(
        lambda params, inputs: inputs[:, params["order"]] @ params["w"],
        params={"order": np.array([1, 0]), "w": np.ones((2, 2), "float32"), "on": True},
    )
    fit(layer)
    assert [v.path for v in layer.trainable_weights] == [f"{layer.name}/params/w"]


@pytest.mark.parametrize("boxed", [True, False], ids=["boxed", "plain"])
def test_variables_of_an_annotated_module(boxed, assert_same):
    """The user's variables have Flax's `nn.Partitioned` boxes, or had them removed.

    Keras' own layer keeps the boxes.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: boxed yes (`params` has boxes), plain no.
    """
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    module = nn.Dense(2, kernel_init=init)
    variables = module.init(jax.random.key(0), X)
    plain = nn.meta.unbox(variables)
    layer = FlaxLayer(module, variables=variables if boxed else plain)
    assert_same(layer(X), jax.jit(module.apply)(plain, X))
    assert_same(layer.params, plain)


class KeyState(nn.Module):
    """Keeps a typed PRNG key among its state."""

    @nn.compact
    def __call__(self, x):
        key = self.variable("noise", "key", jax.random.key, 7)
        if self.is_mutable_collection("noise") and not self.is_initializing():
            key.value, now = jax.random.split(key.value)
            x = x + jax.random.normal(now, x.shape)
        return nn.Dense(2)(x)


def test_typed_keys_among_the_given_state():
    module = KeyState()
    x = np.ones((4, 3), "float32")
    native = module.init(jax.random.key(3), x)
    layer = FlaxLayer(module, variables=native)
    for _ in range(2):
        expected, mutated = module.apply(native, x, mutable=["noise"])
        native = {**native, **mutated}
        # One rounding apart: XLA fuses the compiled program.
        np.testing.assert_allclose(layer(x, training=True), expected, rtol=1e-6)
    data = jax.random.key_data(native["noise"]["key"])
    np.testing.assert_array_equal(layer.state["noise"]["key"].value, data)


def test_numbers_where_a_key_is_needed():
    given = {"noise": {"key": np.zeros(2, "uint32")}}
    with pytest.raises(StructureError, match=r"`noise/key` has .* expected .*(key<fry>|\(\))"):
        FlaxLayer(KeyState(), variables=given)(np.ones((4, 3), "float32"))
