"""Out of Keras, trained by the framework's own means, and back into the same layer."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from jaxlayer import EquinoxLayer, FlaxLayer, HaikuLayer
from jaxlayer_core import StructureError

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = X[:, :1]
TX = optax.adam(0.1)


def steps(loss, params, state):
    """Three steps of optax; the loss gives the new state beside its value."""
    opt = TX.init(params)
    for key in jax.random.split(jax.random.key(0), 3):
        grads, state = jax.grad(loss, has_aux=True)(params, state, key)
        updates, opt = TX.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
    return params, state


def loss_of(outputs):
    return jnp.mean((outputs - Y) ** 2)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(x))


def linen():
    """The layer, its variables trained on, and what they predict."""
    layer = FlaxLayer(Linen())
    layer(X)

    def loss(params, state, key):
        variables = {"params": params, **state}
        more = {"mutable": list(state), "rngs": {"dropout": key}}
        outputs, state = Linen().apply(variables, X, True, **more)
        return loss_of(outputs), state

    params, state = steps(loss, **apart(layer.variables_tree()))
    trained = {"params": params, **state}
    return layer, trained, jax.jit(Linen().apply)(trained, X)


def apart(variables):
    return {"params": variables.pop("params"), "state": variables}


def haiku():
    def net(x, is_training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training)
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
        return hk.Linear(1)(x)

    net = hk.transform_with_state(net)
    layer = HaikuLayer(net)
    layer(X)

    def loss(params, state, key):
        outputs, state = net.apply(params, state, key, X, True)
        return loss_of(outputs), state

    trained = steps(loss, *layer.variables_tree())
    native = jax.jit(lambda params, state, x: net.apply(params, state, None, x, False)[0])
    return layer, trained, native(*trained, X)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(self.hidden(x))))


def nnx_module():
    layer = FlaxLayer(Nnx(nnx.Rngs(0)))
    layer(X)
    module = layer.to_module()
    module.train()
    optimizer = nnx.Optimizer(module, TX, wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        optimizer.update(module, nnx.grad(lambda live: loss_of(live(X)))(module))

    for _ in range(3):
        step(module, optimizer)
    module.eval()
    native = jax.jit(lambda state, x: nnx.merge(nnx.graphdef(module), state)(x))
    return layer, module, native(nnx.state(module), X)


def nnx_state():
    layer, module, expected = nnx_module()
    return layer, nnx.state(module), expected


def nnx_pure_dict():
    layer, module, expected = nnx_module()
    return layer, nnx.to_pure_dict(nnx.state(module)), expected


class Eqx(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.hidden = eqx.nn.Linear(3, 4, key=one)
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.last = eqx.nn.Linear(4, 1, key=two)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.hidden(x), state)
        return self.last(self.dropout(x, key=key)), state


def over_batch(module, state, x, keys=None):
    mapped = jax.vmap(
        lambda x, state, key: module(x, state, key=key),
        axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None),
    )  # fmt: skip
    return mapped(x, state, keys)


def equinox(make=lambda: EquinoxLayer(Eqx(jax.random.key(1)))):
    layer = make()
    layer(X, training=True)
    module, state = layer.variables_tree()
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def loss(params, state, key):
        live = eqx.combine(params, static)
        outputs, state = over_batch(live, state, X, jax.random.split(key, len(X)))
        return loss_of(outputs), state

    params, state = steps(loss, params, state)
    module = eqx.combine(params, static)
    native = eqx.filter_jit(over_batch)
    expected, _ = native(eqx.nn.inference_mode(module), state, X)
    return layer, (module, state), expected


def equinox_by_class():
    return equinox(lambda: EquinoxLayer(Eqx, seed=3))


def equinox_joined():
    """A module as its class makes one, with the state inside."""
    layer = EquinoxLayer(Eqx, seed=3)
    layer(X)
    trained = Eqx(jax.random.key(9))
    module, state = eqx.nn.make_with_state(lambda: trained)()
    expected, _ = eqx.filter_jit(over_batch)(eqx.nn.inference_mode(module), state, X)
    return layer, trained, expected


def equinox_filtered():
    """A module of nothing but what is trained."""
    layer = EquinoxLayer(eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(0)))
    layer(X)
    trained = jax.tree.map(
        lambda leaf: leaf + 1, eqx.filter(layer.variables_tree(), eqx.is_inexact_array)
    )
    module = eqx.combine(trained, layer.module)
    return layer, trained, jax.jit(jax.vmap(module))(X)


WAYS = [
    linen, haiku, nnx_module, nnx_state, nnx_pure_dict,
    equinox, equinox_by_class, equinox_joined, equinox_filtered,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_trained_elsewhere_and_back_in_place(way):
    layer, trained, expected = way()
    assert np.any(layer(X) != expected)  # it has been trained
    found = layer.load_variables(trained)
    assert (found.missing, found.unexpected, found.misshapen) == ({}, {}, {})
    np.testing.assert_array_equal(layer(X), expected)


@pytest.mark.parametrize("way", [linen, haiku, nnx_module, equinox], ids=lambda way: way.__name__)
def test_what_went_out_comes_back_as_it_is(way):
    layer, _, _ = way()
    before = [np.array(v.value) for v in layer.variables]
    layer.load_variables(layer.to_module() if way is nnx_module else layer.variables_tree())
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(variable.value, value)


def test_a_folder_as_flax_shows_it_for_nnx(tmp_path):
    layer, module, expected = nnx_module()
    state = nnx.to_pure_dict(nnx.split(module)[1])
    state["dropout"]["rngs"]["key"] = jax.random.key_data(state["dropout"]["rngs"]["key"])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
    layer.load_variables(tmp_path / "state", format="orbax")
    np.testing.assert_array_equal(layer(X), expected)


def test_a_module_of_nnx_gives_a_new_layer_its_variables():
    _, module, expected = nnx_module()
    layer = FlaxLayer(Nnx(nnx.Rngs(5)), variables=module)
    np.testing.assert_array_equal(layer(X), expected)


@pytest.mark.parametrize(
    ("layer", "other"),
    [
        (FlaxLayer(Nnx(nnx.Rngs(0))), nnx.Linear(3, 4, rngs=nnx.Rngs(0))),
        (EquinoxLayer(Eqx(jax.random.key(0))), eqx.nn.Linear(3, 4, key=jax.random.key(0))),
    ],
    ids=["nnx", "equinox"],
)
def test_another_module_is_refused_by_path(layer, other):
    before = keras.tree.map_structure(np.array, [layer(X), *layer.get_weights()])
    with pytest.raises(StructureError, match=r"(?s)Nothing was loaded.*hidden/.*weight|kernel"):
        layer.load_variables(other)
    after = [layer(X), *layer.get_weights()]
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, two)
