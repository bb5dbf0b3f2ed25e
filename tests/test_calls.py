"""Calling: a layer takes what its model takes, wherever Keras calls it."""

import types
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer
from jaxlayer_core import key_from_seed

RNG = np.random.default_rng(0)
A = RNG.normal(size=(6, 4)).astype("float32")
B = RNG.normal(size=(6, 5)).astype("float32")
C = RNG.normal(size=(6, 3)).astype("float32")
BYTES = RNG.integers(0, 255, (6, 4)).astype("uint8")
IDS = RNG.integers(0, 7, (6, 2)).astype("int32")
MASK = np.array([[True], [False], [True], [True], [False], [True]])


# Models. Each returns at least one floating array of six rows that depends on its params.


class Several(nn.Module):
    @nn.compact
    def __call__(self, a, b, c=None):
        x = nn.Dense(3)(a) + nn.Dense(3)(b)
        return x if c is None else x * c


class Point(NamedTuple):
    x: Any
    y: Any


@flax.struct.dataclass
class Graph:
    nodes: Any
    edges: Any
    name: str = flax.struct.field(pytree_node=False, default="graph")


class Nested(nn.Module):
    @nn.compact
    def __call__(self, tree, *, extra=None):
        (a, (b,)), point, graph = tree["pair"], tree["point"], tree["graph"]
        assert isinstance(point, Point)
        assert isinstance(graph, Graph)
        assert graph.name == "ring"
        assert tree["none"] is None
        x = nn.Dense(3)(a) + nn.Dense(3)(b)
        y = x if extra is None else x + extra["c"]
        moved = graph.replace(nodes=graph.nodes + x)
        return {"out": (y, [x]), "point": Point(y + 1, point.x), "graph": moved}


class Typed(nn.Module):
    """Insists on the dtypes, in init too."""

    @nn.compact
    def __call__(self, pixels, ids, *, mask):
        assert (pixels.dtype, ids.dtype, mask.dtype) == (jnp.uint8, jnp.int32, jnp.bool_)
        x = nn.Dense(3)(pixels / 255) + nn.Embed(7, 3)(ids).sum(axis=1)
        return jnp.where(mask, x, 0.0)


class Static(nn.Module):
    """Python values choose what is computed."""

    @nn.compact
    def __call__(self, x, mode="plain", factor=1, *, options=()):
        x = nn.Dense(3)(x)
        x = {"plain": lambda: x, "squared": lambda: x**2}[mode]()
        x = x * {bool: 2, int: 3, float: 5}[type(factor)]
        return x + len(options)


class Keyed(nn.Module):
    """Takes a key as data."""

    @nn.compact
    def __call__(self, x, key):
        return nn.Dense(3)(x) + jax.random.normal(key, (x.shape[0], 3))


class Case(NamedTuple):
    module: nn.Module
    args: tuple = ()
    kwargs: Any = types.MappingProxyType({})


TREE = {"pair": (A, [B]), "point": Point(C, A), "graph": Graph(C, A, "ring"), "none": None}
CASES = {
    "positional": Case(Several(), (A, B)),
    "three positional": Case(Several(), (A, B, C)),
    "keywords": Case(Several(), (), {"b": B, "a": A}),
    "positional and keyword": Case(Several(), (A,), {"c": C, "b": B}),
    "none": Case(Several(), (A, B, None)),
    "nested": Case(Nested(), (TREE,)),
    "nested keyword": Case(Nested(), (), {"tree": TREE, "extra": {"c": C, "unused": None}}),
    "dtypes": Case(Typed(), (BYTES, IDS), {"mask": MASK}),
    "static": Case(Static(), (A, "squared", 2.5), {"options": ("one", "two")}),
    "raw key": Case(Keyed(), (A, jax.random.PRNGKey(3))),
    "typed key": Case(Keyed(), (A, jax.random.key(3))),
    "typed key, other implementation": Case(Keyed(), (A,), {"key": jax.random.key(3, impl="rbg")}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def cut(case):
    """The batched arrays of a call, and a function that puts others in their place."""
    leaves, treedef = jax.tree.flatten((case.args, dict(case.kwargs)))
    batched = [isinstance(leaf, np.ndarray) for leaf in leaves]

    def fill(arrays):
        remaining = iter(arrays)
        filled = [
            next(remaining) if cut else leaf for leaf, cut in zip(leaves, batched, strict=True)
        ]
        return jax.tree.unflatten(treedef, filled)

    return [leaf for leaf, cut in zip(leaves, batched, strict=True) if cut], fill


def native(case):
    """What the model itself does, compiled: a function of its variables and the arrays."""
    _, fill = cut(case)

    def run(variables, arrays):
        args, kwargs = fill(arrays)
        return case.module.apply(variables, *args, **kwargs)

    return jax.jit(run)


def test_eager(case, values, assert_same):
    layer = FlaxLayer(case.module, seed=2)
    arrays, _ = cut(case)
    outputs = layer(*case.args, **case.kwargs)
    variables = case.module.init(key_from_seed([2, 0]), *case.args, **case.kwargs)
    assert_same(layer.params, variables)
    assert_same(outputs, native(case)(variables, arrays))
    assert_same(layer(*case.args, **case.kwargs), outputs)


def test_in_a_functional_model(case, values, assert_same):
    layer = FlaxLayer(case.module, seed=2)
    arrays, fill = cut(case)
    inputs = [keras.Input(array.shape[1:], dtype=array.dtype.name) for array in arrays]
    args, kwargs = fill(inputs)
    outputs = layer(*args, **kwargs)
    model = keras.Model(inputs, outputs)

    expected = native(case)(values(layer.params), arrays)
    for symbolic, array in zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True):
        assert tuple(symbolic.shape) == (None, *array.shape[1:])
        assert symbolic.dtype == array.dtype
    assert_same(model(arrays), expected)
    assert_same(model.predict(arrays, verbose=0), expected)
    assert_same(layer.params, case.module.init(key_from_seed([2, 0]), *case.args, **case.kwargs))


class Subclassed(keras.Model):
    """Arranges the arrays of its input and calls the layer."""

    def __init__(self, layer, fill):
        super().__init__()
        self.layer = layer
        self.fill = fill

    def call(self, inputs):
        args, kwargs = self.fill(inputs)
        return jax.tree.leaves(self.layer(*args, **kwargs))[-1]


def test_fit_in_a_subclassed_model(case, values):
    """One step of gradient descent, against the same step by hand."""
    layer = FlaxLayer(case.module, seed=2)
    arrays, fill = cut(case)
    model = Subclassed(layer, fill)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    variables = case.module.init(key_from_seed([2, 0]), *case.args, **case.kwargs)
    run = native(case)

    def loss(variables):
        return jnp.mean(jax.tree.leaves(run(variables, arrays))[-1] ** 2)

    target = np.zeros_like(jax.tree.leaves(run(variables, arrays))[-1])
    fitted = model.fit(arrays, target, batch_size=6, shuffle=False, verbose=0)
    np.testing.assert_allclose(fitted.history["loss"][0], loss(variables), rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, variables, jax.grad(loss)(variables))
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6),
        values(layer.params),
        dict(expected),
    )


# In Sequential, a layer gets one value.


@pytest.mark.parametrize("data", [(A, B), [A, B], {"a": A, "b": B}], ids=["tuple", "list", "dict"])
def test_unpacked_in_sequential(data, values):
    layer = FlaxLayer(Several(), unpack_inputs=True, seed=2)
    model = keras.Sequential([layer, keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    model.fit(data, np.ones((6, 1), "float32"), batch_size=6, verbose=0)
    head = values(model.layers[1].weights)
    hidden = jax.jit(Several().apply)(values(layer.params), A, B)
    np.testing.assert_allclose(
        model.predict(data, verbose=0), hidden @ head[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("data", [(A, B), {"a": A, "b": B}], ids=["tuple", "dict"])
def test_unpacked_eagerly(data, values, assert_same):
    layer = FlaxLayer(Several(), unpack_inputs=True)
    outputs = layer(data)
    assert_same(outputs, jax.jit(Several().apply)(values(layer.params), A, B))
    assert_same(layer(A, B), outputs)


def test_a_tuple_is_one_argument():
    """Unless the layer is told otherwise."""
    layer = HaikuLayer(lambda pair: pair[0] + pair[1])
    np.testing.assert_array_equal(layer((A, A)), 2 * A)
    with pytest.raises(ValueError, match="called with 2"):
        layer(A, A)


# Static values.


@pytest.mark.parametrize("order", [(True, 1, 1.0), (1.0, 1, True), (1, True, 1.0)], ids=repr)
def test_equal_values_of_different_types_are_different(order, values):
    """`True == 1 == 1.0` in Python, but they are three programs."""
    layer = FlaxLayer(Static())
    plain = np.asarray(layer(A)) / 3
    for factor in order * 2:
        times = {bool: 2, int: 3, float: 5}[type(factor)]
        np.testing.assert_allclose(layer(A, factor=factor), times * plain, rtol=1e-6)


@pytest.mark.without("JAX_DEBUG_NANS=true")
def test_signed_zeros_and_nan_are_told_apart():
    layer = HaikuLayer(lambda x, value=0.0: jnp.copysign(x, value))
    one = np.ones(2, "float32")
    np.testing.assert_array_equal(layer(one, value=0.0), one)
    np.testing.assert_array_equal(layer(one, value=-0.0), -one)
    nan = HaikuLayer(lambda x, value=0.0: x * value)
    assert np.all(np.isnan(nan(one, value=float("nan"))))


def test_static_values_that_cannot_be_hashed():
    """Told apart by what they are, not by what they hold at the time."""
    layer = HaikuLayer(lambda x, options: x * len(options))
    np.testing.assert_array_equal(layer(A, options=[1.0, 2.0]), 2 * A)
    np.testing.assert_array_equal(layer(A, options={3, 4, 5}), 3 * A)
    np.testing.assert_array_equal(layer(A, options={3, 4}), 2 * A)


def test_strings_choose_in_a_functional_model():
    layer = FlaxLayer(Static())
    x = keras.Input((4,))
    model = keras.Model(x, [layer(x, "plain"), layer(x, mode="squared"), layer(x, factor=1.0)])
    plain, squared, fifth = model.predict(A, verbose=0)
    np.testing.assert_allclose(squared, 3 * (plain / 3) ** 2, rtol=1e-5)
    np.testing.assert_allclose(fifth, plain / 3 * 5, rtol=1e-5)


# None in the output.


def half(x):
    return {"x": x + 1, "aux": None, "pair": (None, x)}


def test_none_in_the_output_eagerly(assert_same):
    outputs = HaikuLayer(half)(A)
    assert_same(outputs, half(A))
    assert outputs["aux"] is None


def test_none_in_the_output_of_a_functional_model():
    """Keras itself refuses a layer that returns None there."""
    x = keras.Input((4,))
    outputs = HaikuLayer(half)(x)
    assert outputs["aux"] is None
    assert outputs["pair"][0] is None
    model = keras.Model(x, [outputs["x"], outputs["pair"][1]])
    one, two = model.predict(A, verbose=0)
    np.testing.assert_array_equal(one, A + 1)
    np.testing.assert_array_equal(two, A)


def test_none_in_the_output_in_fit():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = HaikuLayer(lambda x: half(hk.Linear(1)(x)))

        def call(self, x):
            return self.layer(x)["x"]

    model = Model()
    model.compile("sgd", "mse")
    model.fit(A, C[:, :1], verbose=0)
    assert model.predict(A, verbose=0).shape == (6, 1)


# Methods.


class Autoencoder(nn.Module):
    def setup(self):
        self.encoder = nn.Dense(2)
        self.decoder = nn.Dense(4)

    def __call__(self, x):
        return self.decode(self.encode(x))

    def encode(self, x):
        return nn.tanh(self.encoder(x))

    def decode(self, z, scale=1.0):
        return self.decoder(z) * scale


def haiku_autoencoder():
    encoder, decoder = hk.Linear(2, name="encoder"), hk.Linear(4, name="decoder")

    def encode(x):
        return jnp.tanh(encoder(x))

    def decode(z, scale=1.0):
        return decoder(z) * scale

    def both(x):
        return decode(encode(x))

    return both, {"call": both, "encode": encode, "decode": decode}


AUTOENCODERS = {
    "flax": (lambda **m: FlaxLayer(Autoencoder(), **m), None),
    "haiku": (lambda **m: HaikuLayer(hk.multi_transform(haiku_autoencoder), **m), "call"),
}


@pytest.fixture(params=AUTOENCODERS.values(), ids=AUTOENCODERS.keys())
def autoencoder(request):
    make, whole = request.param
    return make(method=whole)


def numbers(layer, values):
    """Kernel and bias of encoder and decoder, whatever their names."""
    params = values(layer.params)
    params = params.get("params", params)
    return [list(params[name].values()) for name in ("encoder", "decoder")]


def by_hand(layer, values):
    (one, two), (three, four) = (
        sorted(pair, key=np.ndim, reverse=True) for pair in numbers(layer, values)
    )
    z = np.tanh(A @ one + two)
    return z, z @ three + four


def test_methods_share_weights_eagerly(autoencoder, values):
    whole = autoencoder(A)
    count = len(autoencoder.weights)
    z = autoencoder(A, method="encode")
    again = autoencoder(z, method="decode")
    code, decoded = by_hand(autoencoder, values)
    np.testing.assert_allclose(z, code, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole, decoded, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again, whole, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        autoencoder(z, 2.0, method="decode"), 2 * np.asarray(whole), rtol=1e-5, atol=1e-6
    )
    assert len(autoencoder.weights) == count == 4


def test_methods_share_weights_in_a_functional_model(autoencoder, values):
    x = keras.Input((4,))
    whole = autoencoder(x)
    z = autoencoder(x, method="encode")
    model = keras.Model(x, [whole, z, autoencoder(z, method="decode")])
    assert model.output_shape == [(None, 4), (None, 2), (None, 4)]
    one, code, two = model.predict(A, verbose=0)
    np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(code, by_hand(autoencoder, values)[0], rtol=1e-5, atol=1e-6)


class Roundabout(keras.Model):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x):
        self.layer(x)  # the whole is called first, and so initialises both halves
        return self.layer(self.layer(x, method="encode"), method="decode")


def test_methods_share_weights_in_fit(autoencoder, values):
    model = Roundabout(autoencoder)
    model.compile("sgd", "mse")
    losses = model.fit(A, A, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(
        model.predict(A, verbose=0), by_hand(autoencoder, values)[1], rtol=1e-4, atol=1e-5
    )


def test_a_method_of_the_layer(values):
    make, _ = AUTOENCODERS["flax"]
    layer = make(method="encode")
    assert layer(A).shape == (6, 2)
    assert len(layer.weights) == 2, "only what the method uses is initialised"


# Haiku models take the same.


def test_haiku_takes_structures_and_static_values(values, assert_same):
    def model(tree, *, mode):
        x = hk.Linear(3)(tree["a"][0]) + hk.Linear(3)(tree["b"])
        return {"out": x if mode == "plain" else -x, "point": Point(x, [x + 1])}

    layer = HaikuLayer(model)
    transformed = hk.without_apply_rng(hk.transform(model))
    tree = {"a": (A,), "b": B}
    apply = jax.jit(transformed.apply, static_argnames="mode")
    for mode in ("plain", "negative", "plain"):
        outputs = layer(tree, mode=mode)
        assert_same(outputs, apply(values(layer.params), tree, mode=mode))

    inputs = {"a": (keras.Input((4,)),), "b": keras.Input((5,))}
    outputs = layer(inputs, mode="negative")
    functional = keras.Model(keras.tree.flatten(inputs), outputs)
    expected = apply(values(layer.params), tree, mode="negative")
    assert_same(functional.predict([A, B], verbose=0), expected)
