"""Pairs and objects with init and apply, of no framework: which conventions are read, and how."""

import types

import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from jax.example_libraries import stax

from jaxlayer import as_layer
from jaxlayer_core import (
    AdapterError,
    ModuleLayer,
    ProgramLayer,
    SignatureError,
    StructureError,
    key_from_seed,
    registry,
    source,
)
from jaxlayer_core.init_apply import InitApplyAdapter
from jaxlayer_core.testing import AdapterConformance, ConformanceCase
from jaxlayer_haiku import HaikuAdapter

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def same(got, expected):
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


class Recurrent:
    """State, a key, a train flag, two inputs, each in its place."""

    def init(self, rng, x, ids=None):
        params = {"w": jax.random.normal(rng, x.shape[-1:]), "table": jnp.ones((4,))}
        return params, {"mean": jnp.zeros(x.shape[-1:])}

    def apply(self, params, state, x, ids=None, *, key, train=False, scale=1.0):
        mean = 0.9 * state["mean"] + 0.1 * jnp.mean(x, axis=0).astype(jnp.float32)
        noise = jax.random.normal(key, x.shape, x.dtype) if train else 0.0
        words = params["table"][ids][:, None]
        return (x + noise + words) * params["w"] * scale, {"mean": mean}


def _init(model, key, args, kwargs):
    return model.init(key, *args)


def _apply(model, params, state, key, args, kwargs, training):
    out, after = model.apply(params, state, *args, key=key, train=training, **kwargs)
    return out, after if training else state


class TestInitApply(AdapterConformance):
    adapter = InitApplyAdapter
    cases = (
        ConformanceCase(
            "recurrent",
            Recurrent,
            lambda: ((X, np.array([0, 3, 1, 1], "int32")), {"scale": 2.0}),
            _init,
            _apply,
        ),
    )


# The conventions.


def test_stax_pairs():
    """`init` gets the shape; `apply` the key in `**kwargs`; training of a Keras model."""
    init, apply = net = stax.serial(stax.Dense(8), stax.Relu, stax.Dropout(0.5), stax.Dense(2))
    layer = as_layer(net, seed=3)
    assert type(layer) is ModuleLayer
    got = layer(X)
    shape, params = init(key_from_seed([3, 0]), X.shape)
    assert shape == got.shape
    same(got, jax.jit(lambda p, k: apply(p, X, rng=k))(params, key_from_seed([3, 1])))
    model = keras.Sequential([keras.Input((3,)), as_layer(net)])
    assert model.output_shape == (None, 2)
    model.compile("sgd", "mse")
    model.fit(X, np.ones((4, 2)), verbose=0)


@pytest.mark.parametrize(
    "init",
    [
        lambda rng, x: {"w": jax.random.normal(rng, x.shape[-1:])},
        lambda key, inputs: {"w": jax.random.normal(key, inputs.shape[-1:])},
        lambda x, rng: {"w": jax.random.normal(rng, x.shape[-1:])},
        lambda rng: {"w": jax.random.normal(rng, (3,))},
        lambda rng, input_shape: {"w": jax.random.normal(rng, input_shape[-1:])},
        lambda _, shape: (shape, {"w": jax.random.normal(_, shape[-1:])}),
        lambda rng, *, x, bias=None: {"w": jax.random.normal(rng, x.shape[-1:])},
        lambda rng, x, **options: {"w": jax.random.normal(rng, x.shape[-1:])},
    ],
)
def test_inits(init):
    layer = as_layer((init, lambda params, x: x * params["w"]), seed=2)
    layer(X)
    same(layer.params["w"], jax.random.normal(key_from_seed([2, 0]), (3,)))


def test_an_init_without_anything():
    layer = as_layer((lambda: jnp.full((3,), 2.0), lambda params, x: x * params))
    same(layer(X), X * 2)


@pytest.mark.parametrize(
    "apply",
    [
        lambda params, rng, x: x * params + jax.random.normal(rng, x.shape),
        lambda params, x, rng: x * params + jax.random.normal(rng, x.shape),
        lambda variables, x, *, key=None: x * variables + jax.random.normal(key, x.shape),
    ],
)
def test_where_apply_takes_the_key(apply):
    layer = as_layer((lambda rng, x: jnp.ones((3,)), apply), seed=2)
    expected = X + jax.random.normal(key_from_seed([2, 1]), X.shape)
    np.testing.assert_allclose(layer(X), expected, rtol=1e-6)


def test_arguments_that_init_does_not_take_are_left_out():
    def init(rng, x):
        return jnp.ones(x.shape[-1:])

    def apply(params, x, mask, bias=0.0):
        return x * params * mask + bias

    got = as_layer((init, apply))(X, X, bias=np.float32(1))
    np.testing.assert_allclose(got, X * X + 1, rtol=1e-6)


def test_objects_of_all_kinds_with_both():
    model = types.SimpleNamespace(init=lambda rng, x: jnp.ones(3), apply=lambda params, x: x)
    same(as_layer(model)(X), X)


def test_a_layer_is_saved_as_a_program(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((3,)), as_layer(stax.Dense(2), seed=0)])
    model.compile("sgd", "mse")
    model.fit(X, np.ones((4, 2)), verbose=0)
    model.save(tmp_path / "m.keras")
    monkeypatch.setattr(source, "_LIVE", {})  # as in another process
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert isinstance(again.layers[0], ProgramLayer)
    np.testing.assert_allclose(again.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-6)


# Who is asked.


def test_haiku_keeps_its_own():
    transformed = hk.transform(lambda x: hk.Linear(2)(x))
    assert InitApplyAdapter().accepts(transformed)
    assert isinstance(registry.resolve(transformed), HaikuAdapter)


def test_what_a_framework_has_is_judged_by_its_own_adapter():
    odd = type("Odd", (Recurrent,), {"__module__": "haiku.odd"})()
    with pytest.raises(AdapterError, match=r"No adapter knows an object of haiku\.odd\.Odd"):
        as_layer(odd)


def test_a_registered_adapter_goes_first():
    class Own(InitApplyAdapter):
        framework = "own"

    registry.register_adapter(Own)
    try:
        assert type(registry.resolve(Recurrent())) is Own
    finally:
        registry.unregister_adapter(Own)
    assert type(registry.resolve(Recurrent())) is InitApplyAdapter
    assert type(registry.resolve(3, adapter="init_apply")) is InitApplyAdapter


@pytest.mark.parametrize("other", [(len,), (len, 3), (int, float), [len, min], Recurrent, 3])
def test_what_is_no_pair(other):
    assert not InitApplyAdapter().accepts(other)


# What is asked for.


def apply(params, x):
    return x


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        (
            (lambda a, b: 0, apply),
            SignatureError,
            r"`init` of the pair \(init, apply\) takes \(a, b\).*cannot be told which is the key.*"
            r"JaxLayer\(call_fn, init_fn\)",
        ),
        (
            (lambda rng, x: 0, lambda rng, x: x),
            SignatureError,
            r"takes \(rng, x\). Its first argument must be the params",
        ),
        (
            (lambda rng, x, mask: 0, apply),
            SignatureError,
            "`init` .* requires `mask`, and `apply` takes nothing that it could be",
        ),
        (
            (lambda rng, x: jnp.ones(3), lambda params, state, x: (x, state)),
            StructureError,
            r"`init` .* must return the tuple \(params, state\), because `apply` has a `state`",
        ),
        (
            (lambda rng, x: (jnp.ones(3), {}), lambda params, state, x: x),
            StructureError,
            r"`apply` .* must return the tuple \(outputs, state\)",
        ),
        ((lambda rng, x: 0, lambda params, x, y: x), SignatureError, "requires the argument `y`"),
        ((jax.numpy.ufunc, apply), AdapterError, "No adapter knows an object of builtins.tuple"),
        ((lambda rng: 0, min), SignatureError, r"`apply` of the pair \(init, min\) does not tell"),
    ],
)
def test_what_is_ambiguous(pair, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        as_layer(pair)(X)


def test_there_are_no_methods():
    with pytest.raises(SignatureError, match=r"no method 'encode'.*all there is"):
        as_layer(Recurrent(), method="encode")
