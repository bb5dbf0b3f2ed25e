"""`EquinoxLayer`: what becomes of a module's parts, batch, keys, state and modes."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import EquinoxLayer, as_layer
from jaxlayer_core import (
    AdapterError,
    BuildError,
    ModuleError,
    SignatureError,
    StructureError,
    key_from_seed,
)

from .models import Kinds, Noisy, Normed, X

KEY = jax.random.key(5)


def same(got, expected):
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


# What is given.


def test_a_module_that_exists_gives_the_first_values_at_once():
    module = eqx.nn.MLP(3, 2, 8, 1, key=KEY)
    layer = as_layer(module, name="mlp")
    assert type(layer) is EquinoxLayer
    same(layer.params["layers/0/weight"], module.layers[0].weight)
    same(layer(X), jax.jit(jax.vmap(module))(X))
    assert [w.path for w in layer.weights] == [
        f"mlp/params/layers/{n}/{kind}" for n in (0, 1) for kind in ("bias", "weight")
    ]


def test_training_leaves_the_module_of_the_user_alone():
    module = eqx.nn.Linear(3, 2, key=KEY)
    before = np.array(module.weight)
    model = keras.Sequential([keras.Input((3,)), EquinoxLayer(module)])
    model.compile("sgd", "mse")
    model.fit(X, np.ones((4, 2)), verbose=0)
    same(module.weight, before)
    assert np.any(model.layers[0].params["weight"] != before)


@pytest.mark.parametrize(
    "factory",
    [
        functools.partial(eqx.nn.Linear, 3, 2),
        lambda key: eqx.nn.Linear(3, 2, key=key),
        lambda k: eqx.nn.Linear(3, 2, key=k),
        lambda size=3, *, key: eqx.nn.Linear(size, 2, key=key),
    ],
    ids=["partial of the class", "function of key", "function of another name", "keyword"],
)
def test_what_makes_a_module_of_a_key(factory):
    layer = EquinoxLayer(factory, seed=3)
    layer(X)
    same(layer.params["weight"], eqx.nn.Linear(3, 2, key=key_from_seed([3, 0])).weight)


def test_a_class_that_needs_no_key():
    layer = EquinoxLayer(Kinds)
    same(layer(X), jax.jit(jax.vmap(Kinds()))(X))


def test_arrays_are_weights_and_all_other_fields_are_not():
    layer = EquinoxLayer(Kinds())
    assert {name: w.trainable for name, w in layer.params.items()} == {
        "weight": True,
        "table": True,
        "order": False,
    }


def test_params_are_taken_from_another_module_or_by_path():
    first, other = (eqx.nn.Linear(3, 2, key=key) for key in jax.random.split(KEY))
    for params in (other, {"weight": other.weight, "bias": other.bias}):
        same(EquinoxLayer(first, params=params)(X), jax.jit(jax.vmap(other))(X))


def test_the_module_comes_back_with_its_values():
    layer = EquinoxLayer(Normed, seed=0)
    layer(X, training=True)
    module, state = layer.variables_tree()
    assert isinstance(module, Normed)
    module = eqx.nn.inference_mode(module)
    expected, _ = jax.jit(
        jax.vmap(module, in_axes=(0, None), out_axes=(0, None), axis_name="rows")
    )(X, state)
    same(layer(X), expected)
    stateless = EquinoxLayer(Kinds())
    stateless(X)
    same(jax.jit(jax.vmap(stateless.variables_tree()))(X), stateless(X))


# The batch.


def test_a_module_is_mapped_over_the_batch_unless_it_takes_batches():
    class Shape(eqx.Module):
        def __call__(self, x):
            return x + x.ndim

    same(EquinoxLayer(Shape())(X), X + 1)
    same(EquinoxLayer(Shape(), batch_axis=None)(X), X + 2)


def test_the_batch_may_be_another_axis():
    module = eqx.nn.Linear(4, 2, key=KEY)
    layer = EquinoxLayer(module, batch_axis=1)
    same(layer(X), jax.jit(jax.vmap(module, in_axes=1))(X))
    assert layer(X).shape == (3, 2)


def test_an_argument_may_be_shared_by_the_examples():
    module = Noisy(KEY)
    layer = EquinoxLayer(module, batch_axis={"shared": None}, seed=1)
    keys = jax.random.split(key_from_seed([1, 1]), 4)
    expected = jax.jit(jax.vmap(lambda x, s, key: module(x, s, key=key), (0, None, 0)))
    same(layer(X, X[0]), expected(X, X[0], keys))


def test_scalars_are_shared():
    class Scaled(eqx.Module):
        def __call__(self, x, by, power=1):
            return x * by**power

    same(EquinoxLayer(Scaled())(X, np.float32(3), power=2), X * 9)


def test_the_batch_has_the_name_that_its_layers_use():
    class Centered(eqx.Module):
        def __call__(self, x):
            return x - jax.lax.pmean(x, "everyone")

    layer = EquinoxLayer(Centered(), axis_name="everyone")
    np.testing.assert_allclose(np.mean(layer(X), axis=0), 0, atol=1e-6)
    EquinoxLayer(Normed)(X, training=True)  # finds "rows"


# Keys, state and modes.


def test_each_example_has_a_key_of_its_own():
    layer = EquinoxLayer(eqx.nn.Dropout(0.5), seed=4)
    x = np.ones((4, 64), "float32")
    rows = np.asarray(layer(x, training=True))
    assert len({row.tobytes() for row in rows}) == 4
    keys = jax.random.split(key_from_seed([4, 1]), 4)
    expected = jax.vmap(lambda row, key: eqx.nn.Dropout(0.5)(row, key=key))(x, keys)
    same(rows, expected)


def test_a_module_that_takes_batches_gets_the_key_itself():
    layer = EquinoxLayer(eqx.nn.Dropout(0.5), batch_axis=None, seed=4)
    same(layer(X, training=True), eqx.nn.Dropout(0.5)(X, key=key_from_seed([4, 1])))


def test_inference_attributes_follow_training():
    for start in (False, True):
        layer = EquinoxLayer(eqx.nn.Dropout(0.5, inference=start), seed=0)
        same(layer(X), X)
        assert np.any(layer(X, training=True) != X)


def test_an_argument_of_the_call_goes_before_the_attribute():
    layer = EquinoxLayer(eqx.nn.Dropout(0.5), seed=0)
    same(layer(X, training=True, inference=True), X)


def test_state_is_written_in_training_only():
    layer = EquinoxLayer(Normed, seed=0)
    assert set(layer.state or {}) == set()
    layer(X)
    assert int(layer.state["norm/batch_counter"].value) == 0
    layer(X, training=True)
    assert int(layer.state["norm/batch_counter"].value) == 1
    assert all(not w.trainable for w in layer.state.values())


@pytest.mark.parametrize("is_apart", [True, False])
def test_the_state_of_a_module_that_exists(is_apart):
    if is_apart:
        module, state = eqx.nn.make_with_state(Normed)(KEY)
        layer = EquinoxLayer(module, state=state)
    else:
        layer = EquinoxLayer(Normed(KEY))
    assert layer.state["norm/batch_state_index/1"].shape == (4,)
    layer(X, training=True)
    assert int(layer.state["norm/batch_counter"].value) == 1


def test_a_trained_state_is_taken_along():
    first = EquinoxLayer(Normed, seed=0)
    first(X, training=True)
    module, state = first.variables_tree()
    same(EquinoxLayer(module, state=state)(X), first(X))
    same(EquinoxLayer(Normed, params=module, state=state)(X), first(X))


def test_another_method():
    layer = EquinoxLayer(Normed(KEY))
    expected = jax.jit(jax.vmap(Normed(KEY).linear))(X)
    same(layer(X, method="project"), expected)
    same(EquinoxLayer(Normed(KEY), method="project")(X), expected)
    same(EquinoxLayer(Normed(KEY), method=Normed.project)(X), expected)


def test_shapes_before_there_is_data():
    out = EquinoxLayer(Normed)(keras.Input((3,)))
    assert out.shape == (None, 4)


def test_the_name_of_the_batch_may_be_that_of_a_mesh():
    """`keras.distribution.DataParallel` calls its axis "batch", too."""
    expected = EquinoxLayer(Centering(), seed=0)(X)
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    same(EquinoxLayer(Centering(), seed=0)(X), expected)


class Centering(eqx.Module):
    def __call__(self, x):
        return x - jax.lax.pmean(x, "batch")


@pytest.mark.parametrize("annotation", [eqx.nn.State, "eqx.nn.State", "Unknown | eqx.nn.State"])
def test_the_annotation_tells_the_state(annotation):
    """By any name; also in a module that has no state just now."""

    class Annotated(eqx.Module):
        norm: eqx.nn.BatchNorm | None

        def __call__(self, x, ctx):
            return (x, ctx) if self.norm is None else self.norm(x, ctx)

    Annotated.__call__.__annotations__["ctx"] = annotation
    norm = eqx.nn.BatchNorm(3, "batch", mode="batch")
    same(EquinoxLayer(Annotated(None))(X), X)
    assert set(EquinoxLayer(Annotated(norm)).state) > {"norm/batch_counter"}
    EquinoxLayer(Annotated(norm))(X, training=True)


def test_a_state_that_is_data():
    """As the cells of `eqx.nn` have it, under its usual name."""

    class Carry(eqx.Module):
        def __call__(self, x, state):
            return x + state, state

    out, carry = EquinoxLayer(Carry())(X, X)
    same(out, X + X)
    same(carry, X)


# What is refused.


class Stateless(eqx.Module):
    index: eqx.nn.StateIndex

    def __init__(self):
        self.index = eqx.nn.StateIndex(jnp.zeros(()))

    def __call__(self, x, state):
        return x


class PerExample(Stateless):
    def __call__(self, x, state):
        return x, state.set(self.index, state.get(self.index) + jnp.sum(x))


class Silent(eqx.Module):
    weight: jax.Array

    def other(self, x):
        return x


class TwoAxes(eqx.Module):
    rows: eqx.nn.BatchNorm
    columns: eqx.nn.BatchNorm

    def __init__(self):
        self.rows = eqx.nn.BatchNorm(3, "rows", mode="batch")
        self.columns = eqx.nn.BatchNorm(3, "columns", mode="batch")

    def __call__(self, x, state):
        return x, state


def apart():
    return eqx.nn.make_with_state(Normed)(KEY)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EquinoxLayer(3), AdapterError, "takes an eqx.Module.*got 3"),
        (
            lambda: EquinoxLayer(lambda key: (Normed(key), 1)),
            AdapterError,
            "returned an object of builtins.tuple, expected an eqx.Module.*module alone",
        ),
        (
            lambda: EquinoxLayer(eqx.nn.Linear),
            AdapterError,
            "Linear requires `in_features`, `out_features`, and gets a key only.*partial",
        ),
        (
            lambda: EquinoxLayer(lambda key: eqx.nn.Linear(3, "two", key=key)),
            BuildError,
            "the Equinox model <lambda> could not be made: ",
        ),
        (lambda: EquinoxLayer(Silent(X)), SignatureError, "no `__call__`.*method=.*other"),
        (lambda: EquinoxLayer(Normed, method="nope"), SignatureError, "no method 'nope'.*project"),
        (lambda: EquinoxLayer(TwoAxes), SignatureError, "axes 'rows', 'columns'.*axis_name="),
        (
            lambda: EquinoxLayer(Kinds, batch_axis={"y": 1}),
            SignatureError,
            r"batch_axis names \['y'\].*arguments are: x",
        ),
        (lambda: EquinoxLayer(apart()[0]), StructureError, r"make_with_state.*state=state"),
        (
            lambda: EquinoxLayer(PerExample(), state=apart()[1]),
            StructureError,
            "state given for PerExample has nothing for",
        ),
        (
            lambda: EquinoxLayer(Kinds(), params=eqx.nn.Linear(3, 2, key=KEY)),
            StructureError,
            "Linear has 2 leaves, expected",
        ),
        (lambda: EquinoxLayer(Kinds(), capture="act"), AdapterError, "cannot capture"),
    ],
)
def test_what_no_layer_is_made_of(make, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        make()


@pytest.mark.parametrize(
    ("module", "args", "error", "message"),
    [
        (Noisy(KEY), (X,), SignatureError, "requires the argument `shared`, which the call did"),
        (Noisy(KEY), (X, X, X), SignatureError, r"takes 2 positional argument\(s\) \(x, shared\)"),
        (
            Stateless(),
            (X,),
            StructureError,
            r"must return\s+the tuple \(outputs, state\).*Array|Tracer",
        ),
        (
            Kinds(),
            (np.float32(1),),
            SignatureError,
            "no argument of the call has one.*batch_axis=None",
        ),
        (PerExample(), (X,), ModuleError, "vmap.*out_axes"),
        (
            eqx.nn.Linear(3, 2, key=KEY),
            (X[:, :2],),
            ModuleError,
            "Linear, wrapped by the layer 'equinox_layer.*', failed to call",
        ),
    ],
    ids=["missing", "too many", "no state", "no batch", "state of one example", "shape"],
)
def test_calls_that_fail(module, args, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        EquinoxLayer(module)(*args)


def test_params_of_another_shape():
    with pytest.raises(StructureError, match=r"`weight` has shape \(5, 3\), expected \(2, 3\)"):
        EquinoxLayer(eqx.nn.Linear(3, 2, key=KEY), params=eqx.nn.Linear(3, 5, key=KEY))(X)


class Frozen(eqx.Module):
    """A part that only infers, and a head that trains."""

    backbone: eqx.nn.Dropout
    head: eqx.nn.Dropout

    def __call__(self, x, key):
        one, two = jax.random.split(key)
        return self.backbone(x, key=one), self.head(x, key=two)


def test_parts_that_only_infer_keep_to_it():
    layer = EquinoxLayer(Frozen(eqx.nn.Dropout(0.5, inference=True), eqx.nn.Dropout(0.5)))
    for training in (False, True):
        backbone, head = layer(X, training=training)
        same(backbone, X)
        assert bool(np.any(head != X)) is training


def test_modes_that_are_left_alone():
    layer = EquinoxLayer(eqx.nn.Dropout(0.5), training_arg=())
    assert np.any(layer(X, training=False) != X)


def test_a_flag_that_is_none_by_default_is_still_a_flag():
    class Scaled(eqx.Module):
        dropout: eqx.nn.Dropout

        def __call__(self, x, train=None):
            return self.dropout(x) * (2 if train else 1)

    layer = EquinoxLayer(Scaled(eqx.nn.Dropout(0.0)))
    same(layer(X, training=True), 2 * X)
    same(layer(X), X)
