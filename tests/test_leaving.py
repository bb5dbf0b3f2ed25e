"""Out of Keras and back: native variables, layers and whole models as pure functions."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer, to_pure
from jaxlayer_core import BuildError

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = X[:, :1]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        calls = self.variable("seen", "calls", lambda: jnp.zeros((), "int32"))
        key = self.variable("noise", "key", lambda: jax.random.key(7))
        if self.is_mutable_collection("seen") and not self.is_initializing():
            calls.value = calls.value + 1
        del key
        return nn.Dense(1)(x)


def haiku_net(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training)
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(1)(x)


def steps(call_fn, params, state, keys):
    """A few optax steps in training mode."""
    tx = optax.sgd(0.1)
    opt = tx.init(params)

    def loss(params, state, key):
        outputs, state = call_fn(params, state, key)
        return jnp.mean((outputs - Y) ** 2), state

    for key in keys:
        grads, state = jax.grad(loss, has_aux=True)(params, state, key)
        updates, opt = tx.update(grads, opt)
        params = optax.apply_updates(params, updates)
    return params, state


KEYS = list(jax.random.split(jax.random.key(0), 3))


def test_flax_out_natively_trained_and_back(assert_same):
    layer = FlaxLayer(Net(), seed=0)
    layer(X, training=True)
    variables = layer.variables_tree()
    assert set(variables) == {"params", "batch_stats", "seen", "noise"}
    assert jnp.issubdtype(variables["noise"]["key"].dtype, jax.dtypes.prng_key)
    np.testing.assert_allclose(Net().apply(variables, X), layer(X), rtol=1e-6)

    def native(params, state, key):
        outputs, mutated = Net().apply(
            {"params": params, **state},
            X,
            True,
            mutable=["batch_stats", "seen"],
            rngs={"dropout": key},
        )
        return outputs, {**state, **mutated}

    state = {name: tree for name, tree in variables.items() if name != "params"}
    params, state = steps(native, variables["params"], state, KEYS)
    back = FlaxLayer(Net(), variables={"params": params, **state})
    np.testing.assert_allclose(back(X), Net().apply({"params": params, **state}, X), rtol=1e-6)
    assert_same(back.params, {"params": params})


def test_haiku_out_and_back():
    net = hk.transform_with_state(haiku_net)
    layer = HaikuLayer(net, seed=0)
    layer(X, training=True)
    params, state = layer.variables_tree()
    expected = net.apply(params, state, None, X, False)[0]
    np.testing.assert_allclose(layer(X), expected, rtol=1e-6)
    back = HaikuLayer(net, params=params, state=state)
    np.testing.assert_array_equal(back(X), layer(X))


def test_training_on_does_not_delete_what_went_out():
    layer = FlaxLayer(Net())
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    variables, pure, everything = layer.variables_tree(), layer.to_pure(), to_pure(model)
    model.fit(X, Y, verbose=0)
    outputs, _ = everything.call_fn(everything.params, everything.state, None, X)
    np.testing.assert_allclose(outputs, Net().apply(variables, X), rtol=1e-6)
    assert np.isfinite(Net().apply(variables, X)).all()
    assert np.isfinite(pure.call_fn(pure.params, pure.state, None, X)[0]).all()


def test_a_layer_as_a_pure_function(assert_same):
    """Its steps are those of the framework, state included, and it changes nothing."""
    net = hk.transform_with_state(haiku_net)
    layer = HaikuLayer(net, seed=0)
    layer(X)
    call_fn, params, state = layer.to_pure()
    ours = steps(lambda p, s, k: call_fn(p, s, k, X, training=True), params, state, KEYS)
    native = steps(lambda p, s, k: net.apply(p, s, k, X, True), params, state, KEYS)
    assert_same(ours, native)
    assert_same(tuple(layer.variables_tree()), (params, state))
    assert_same(call_fn(params, state, None, X)[1], state)  # inference writes nothing


@pytest.mark.parametrize("make", [lambda: FlaxLayer(Net()), lambda: HaikuLayer(haiku_net)])
def test_transformations_of_a_layer(make):
    layer = make()
    layer(X)
    call_fn, params, state = layer.to_pure()

    def one(x):
        return call_fn(params, state, jax.random.key(0), x[None])[0][0]

    np.testing.assert_allclose(jax.vmap(one)(X), layer(X), rtol=1e-5, atol=1e-6)
    _, tangent = jax.jvp(one, (X[0],), (np.ones(4, "float32"),))
    np.testing.assert_allclose(tangent, jax.jacfwd(one)(X[0]) @ np.ones(4), rtol=1e-5)


def test_a_function_with_leaves_that_are_no_arrays():
    def call(params, state, inputs, training):
        return inputs * params["w"], {"n": state["n"] + 1, "name": state["name"]}

    state = {"n": np.zeros((), "int32"), "name": "counter"}
    layer = JaxLayer(call, params={"w": np.float32(2.0), "none": None}, state=state)
    call_fn, params, state = layer.to_pure()
    outputs, after = call_fn(params, state, None, X, training=True)
    np.testing.assert_array_equal(outputs, 2 * X)
    assert after["n"] == 1
    assert after["name"] == "counter"
    assert params["none"] is None


def whole():
    inputs = keras.Input((4,))
    x = FlaxLayer(Net(), name="net")(inputs)
    return keras.Model(inputs, keras.layers.Dropout(0.5)(keras.layers.Dense(2)(x)))


def test_a_whole_model_as_a_pure_function():
    model = whole()
    call_fn, params, state = to_pure(model)
    outputs, after = call_fn(params, state, None, X)
    np.testing.assert_allclose(outputs, model(X), rtol=1e-6)
    assert set(after) == set(state)
    one = jax.vmap(lambda x: call_fn(params, state, None, x[None])[0][0])
    np.testing.assert_allclose(one(X), outputs, rtol=1e-5, atol=1e-6)

    @jax.jit
    def loss(params, state, key):
        outputs, state = call_fn(params, state, key, X, training=True)
        return jnp.mean((outputs - Y) ** 2), state

    before = {name: np.asarray(value) for name, value in params.items()}
    tx = optax.adam(0.05)
    opt, losses = tx.init(params), []
    for key in jax.random.split(jax.random.key(0), 30):
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, key)
        updates, opt = tx.update(grads, opt)
        params, losses = optax.apply_updates(params, updates), [*losses, value]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    for variable in model.trainable_variables:  # the model itself is as it was
        np.testing.assert_array_equal(variable.value, before[variable.path])
        variable.assign(params[variable.path])
    expected = call_fn(params, to_pure(model).state, None, X)[0]
    np.testing.assert_allclose(model(X), expected, rtol=1e-6)


def test_the_key_of_a_whole_model_decides_all_draws():
    call_fn, params, state = to_pure(whole())
    draw = [call_fn(params, state, jax.random.key(i), X, training=True)[0] for i in (0, 0, 1)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert np.any(draw[0] != draw[2])
    first, after = call_fn(params, state, None, X, training=True)
    second, _ = call_fn(params, after, None, X, training=True)
    assert np.any(first != second)


def test_before_it_is_built():
    for leave in (FlaxLayer(Net()).to_pure, FlaxLayer(Net()).variables_tree):
        with pytest.raises(BuildError, match=r"has no variables to give before it is built"):
            leave()
    with pytest.raises(BuildError, match=r"has no variables before it is built"):
        to_pure(keras.Sequential([keras.layers.Dense(2)]))


def test_variables_of_one_path():
    class Twins(keras.Model):
        def __init__(self):
            super().__init__()
            self.twins = [keras.layers.Dense(1, name="twin") for _ in range(2)]

        def call(self, x):
            return self.twins[0](x) + self.twins[1](x)

    model = Twins()
    model(X)
    call_fn, params, state = to_pure(model)
    names = [name.partition("/")[2] for name in params]
    assert names == ["twin/kernel", "twin/bias", "twin/kernel_1", "twin/bias_1"]
    np.testing.assert_allclose(call_fn(params, state, None, X)[0], model(X), rtol=1e-6)


def test_inference_outside_writes_what_it_writes_inside(assert_same):
    """A model may count its calls in any mode; the layer keeps that in training only."""

    def counts(x):
        n = hk.get_state("n", (), jnp.int32, init=jnp.zeros)
        hk.set_state("n", n + 1)
        return hk.Linear(1)(x)

    layer = HaikuLayer(counts)
    layer(X, training=False)
    call_fn, params, state = layer.to_pure()
    assert_same(call_fn(params, state, None, X)[1], state)
    assert call_fn(params, state, None, X, training=True)[1]["~"]["n"] == state["~"]["n"] + 1
