"""Programs of models that are not alike for all sizes, dtypes and modes, and what they lack."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer
from jaxlayer_core import SignatureError
from jaxlayer_core.program import CallKind, export_program
from jaxlayer_core.program_layer import ProgramLayer

from .program_models import copied, floats, stored


def reloaded(model, path):
    """A saved model, loaded where the source of its layers is not known."""
    model.save(path / "model.keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxlayer_core.source._LIVE", {})
        loaded = keras.models.load_model(path / "model.keras")
    assert any(isinstance(layer, ProgramLayer) for layer in loaded.layers)
    return loaded


def program_of(layer, *calls):
    """The layer that runs the program of a layer, after calls that differ in their sizes."""
    for call in calls:
        layer(call)
    other = ProgramLayer.from_config(stored(layer))
    other(calls[0])
    return copied(layer, other)


def gradient(layer, x, training):
    call, params, state = layer.to_pure()

    def loss(params):
        outputs, _ = call(params, state, jax.random.key(0), x, training=training)
        return jnp.sum(jnp.sin(outputs))

    return jax.tree.leaves(jax.grad(loss)(params))


def assert_same(layer, other, x):
    """Outputs are equal, and gradients but for rounding, in both modes."""
    for training in (False, True):
        np.testing.assert_array_equal(other(x, training=training), layer(x, training=training))
        grads = gradient(layer, x, training), gradient(other, x, training)
        for expected, got in zip(*grads, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


# Dtypes of the variables.


@pytest.fixture
def global_policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def perceptron(**options):
    return HaikuLayer(lambda t: hk.nets.MLP([8, 1])(t), seed=1, **options)


def normalised(**options):
    return HaikuLayer(
        lambda t: hk.BatchNorm(True, True, 0.9)(hk.Linear(2)(t), True), seed=1, **options
    )


def own_half(**options):
    """A model that makes one of its params in half precision itself."""

    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, param_dtype="bfloat16")(nn.Dense(3)(x)) * (lambda: 2)()

    return FlaxLayer(Half(), seed=1, **options)


POLICIES = ["mixed_bfloat16", "mixed_float16", "bfloat16", "float16"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("is_global", [False, True], ids=["own", "global"])
@pytest.mark.parametrize("make", [perceptron, normalised, own_half])
def test_variables_keep_dtypes_and_bits(make, policy, is_global, global_policy, tmp_path):
    if is_global:
        global_policy(policy)
    layer = make() if is_global else make(dtype=policy)
    model = keras.Sequential([keras.Input((3,)), layer])
    x, y = floats(4, 3), np.zeros((4, 1), "float32")
    model.compile("sgd", "mse")
    model.fit(x, y, verbose=0)
    other = reloaded(model, tmp_path)
    for mine, theirs in zip(model.variables, other.variables, strict=True):
        assert theirs.dtype == mine.dtype, mine.path
        np.testing.assert_array_equal(np.array(theirs), np.array(mine), mine.path)
    for one in (model, other):
        one.fit(x, y, verbose=0)
    for mine, theirs in zip(model.variables, other.variables, strict=True):
        assert theirs.dtype == mine.dtype, mine.path
        # Compiled as a program of its own, half precision is rounded elsewhere.
        one, two = (np.array(v).astype("float32") for v in (mine, theirs))
        np.testing.assert_allclose(two, one, rtol=1e-2, atol=1e-3, err_msg=mine.path)


def test_the_initialisation_is_the_one_of_the_uncast_call(global_policy):
    """Its first values are made in float32; rounded ones would be others."""
    global_policy("mixed_bfloat16")
    layer = perceptron()
    layer(floats(4, 3))
    other = ProgramLayer(layer.to_program(), seed=1)
    other(floats(4, 3))
    for mine, theirs in zip(layer.weights, other.weights, strict=True):
        assert theirs.dtype == mine.dtype == "float32"
        np.testing.assert_allclose(np.array(theirs), np.array(mine), rtol=1e-6)


def test_given_params_of_another_dtype_than_the_model_makes():
    params = {"linear": {"w": np.ones((3, 2), "float16"), "b": np.zeros(2, "float16")}}
    layer = HaikuLayer(lambda t: hk.Linear(2)(t), params=params)
    layer(floats(4, 3))
    other = ProgramLayer(layer.to_program())
    other(floats(4, 3))
    assert [v.dtype for v in other.weights] == [v.dtype for v in layer.weights] == ["float16"] * 2


# Calls that were made are answered.


def first_three(**options):
    return HaikuLayer(lambda t: hk.Linear(4)(t)[:, : min(t.shape[1], 3)], seed=1, **options)


def causal(**options):
    def net(t):
        mask = jnp.asarray(np.tril(np.ones((t.shape[1], t.shape[1]), "float32")))
        return mask @ hk.Linear(4)(t)

    return HaikuLayer(lambda t: net(t), seed=1, **options)


@pytest.mark.parametrize("make", [first_three, causal])
def test_sizes_that_the_open_program_does_not_take(make):
    calls = [floats(2, size, 3) for size in (5, 7)]
    layer = make()
    other = program_of(layer, *calls)
    for x in (*calls, floats(9, 5, 3), floats(1, 7, 3)):  # the number of examples stays open
        assert_same(layer, other, x)
    with pytest.raises(SignatureError, match=r"None, 5, 3\]"):
        other(floats(2, 6, 3))


@pytest.mark.parametrize("make", [first_three, causal])
def test_they_are_answered_in_a_file_of_a_model_with_an_unknown_size(make, tmp_path):
    model = keras.Sequential([keras.Input((None, 3)), make()])
    model.compile("sgd", "mse")
    x = floats(4, 5, 3)
    model.fit(x, np.zeros_like(model.predict(x, verbose=0)), verbose=0)
    with pytest.warns(UserWarning, match="lacks something"):  # sizes that were not seen
        other = reloaded(model, tmp_path)
    np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))
    for one in (model, other):
        one.fit(x, np.zeros_like(model.predict(x, verbose=0)), verbose=0)
    np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))


def test_an_open_program_is_the_only_one_where_it_answers_all():
    layer = FlaxLayer(nn.Dense(2))
    other = program_of(layer, *(floats(2, size, 3) for size in (5, 7, 9)))
    assert [call.inputs[0].spec.shape for call in other.program.calls] == [(None, None, 3)] * 2
    assert_same(layer, other, floats(1, 1, 3))


def test_only_the_sizes_that_have_to_be_are_closed():
    """The third dimension varies freely; the second is a closed size of the model's own mask."""

    def net(x):
        mask = jnp.asarray(np.tril(np.ones((x.shape[1],) * 2, "float32")))
        return mask @ x * hk.Linear(1)(x.mean(-1, keepdims=True))

    layer = HaikuLayer(lambda x: net(x))
    other = program_of(layer, floats(2, 5, 6), floats(2, 7, 8))
    for x in (floats(2, 5, 6), floats(3, 7, 8), floats(3, 5, 11)):
        assert_same(layer, other, x)


def test_a_gradient_that_only_concrete_sizes_have():
    """A loop of unknown length has none in reverse mode, so the open program is not enough."""

    def net(x):
        return jax.lax.fori_loop(0, x.shape[1], lambda i, c: jnp.tanh(c * 1.5), hk.Linear(2)(x))

    layer = HaikuLayer(lambda x: net(x))
    other = program_of(layer, floats(2, 5, 3), floats(2, 7, 3))
    for x in (floats(2, 5, 3), floats(4, 7, 3)):
        assert_same(layer, other, x)
    np.testing.assert_array_equal(other(floats(2, 6, 3)), layer(floats(2, 6, 3)))


def test_at_most_eight_calls_of_a_kind_are_kept():
    layer = causal()
    for size in range(1, 12):
        layer(floats(2, size, 3))
    (kind,) = layer._recorded.kinds
    assert [specs[0].shape[1] for specs in kind.seen] == list(range(1, 9))
    assert kind.form.specs[0].shape == (2, None, 3)


def test_calls_that_say_nothing_new_make_no_new_program():
    layer = causal()
    for size in (5, 7):
        layer(floats(2, size, 3))
    program = layer.to_program()
    for size in (5, 7):
        layer(floats(2, size, 3))
    assert layer.to_program() is program


# What a program lacks.


def shortcomings(layer, *args, **kwargs):
    layer(*args, **kwargs)
    return layer.to_program().shortcomings()


@pytest.mark.parametrize(
    "layer",
    [
        lambda: HaikuLayer(lambda t: hk.nets.MLP([8, 1])(t)),
        lambda: FlaxLayer(nn.Sequential([nn.Dense(2), nn.BatchNorm(True), lambda x: x * 2])),
        lambda: JaxLayer(lambda inputs: (inputs > 0) & True),
    ],
    ids=["haiku", "flax", "function"],
)
def test_nothing_is_missing(layer):
    assert shortcomings(layer(), floats(4, 3)) == []


def test_nothing_is_missing_where_nothing_can_be_differentiated():
    assert shortcomings(JaxLayer(lambda inputs: inputs + 1), np.ones((4, 3), "int32")) == []


def test_closed_sizes():
    (only,) = shortcomings(HaikuLayer(lambda t: hk.Linear(2)(t) * float(t.shape[0])), floats(4, 3))
    call = "__call__(t=float32[4, 3])"
    assert only == f"For these sizes only: {call} in inference, {call} in training"


def test_sizes_that_vary_and_are_closed():
    layer = causal()
    layer(floats(2, 5, 3))
    found = shortcomings(layer, floats(2, 7, 3))
    *gaps, closed = found
    assert [("float32[2, None, 3]" in gap, "training" in gap) for gap in gaps] == [
        (True, False),
        (True, True),
    ]
    assert closed.startswith("Besides None, for these sizes only: ")
    assert closed.count("[None, 5, 3]") == closed.count("[None, 7, 3]") == 2


def test_least_sizes():
    def net(t):
        if t.shape[0] < 2:
            raise ValueError("too few")
        return hk.Linear(2)(t)

    (only,) = shortcomings(HaikuLayer(lambda t: net(t)), floats(4, 3))
    assert only.startswith("Unknown sizes (None) must be at least 2: __call__(t=float32[None, 3])")


def test_no_gradient():
    def net(t):
        t = hk.Linear(3)(t)
        return jax.lax.while_loop(lambda c: c.sum() < 99, lambda c: jnp.abs(c) * 2 + 1, t)

    (only,) = shortcomings(HaikuLayer(lambda t: net(t)), floats(4, 3))
    assert only.startswith("No gradient (ValueError: Reverse-mode")
    assert "while_loop" in only
    assert only.endswith("in inference, __call__(t=float32[None, 3]) in training")


def test_no_training():
    def net(t, is_training):
        if is_training:
            jax.debug.print("{}", t.sum())
        return hk.Linear(2)(t)

    layer = HaikuLayer(lambda t, is_training: net(t, is_training))
    call, init = shortcomings(layer, floats(4, 3))  # initialising runs the model in training
    assert "__call__(float32[4, 3]) of the Haiku function in training cannot be stored" in call
    assert init.startswith("Its initialisation: ")
    assert "callback" in call
    assert "callback" in init


def test_fewer_platforms(monkeypatch):
    monkeypatch.setattr(
        "jaxlayer_core.program.exporting._platforms", lambda: iter([("cpu", "cuda")])
    )
    (only,) = shortcomings(FlaxLayer(nn.Dense(2)), floats(4, 3))
    assert only.startswith("Not on tpu: __call__(")


def test_calls_that_are_not_kept(monkeypatch):
    monkeypatch.setattr("jaxlayer_core.recorded_calls._MOST", 2)
    layer = HaikuLayer(lambda t, scale: hk.Linear(2)(t) * scale)
    for scale in (1.0, 2.0):
        layer(floats(4, 3), scale)
    assert layer.to_program().shortcomings() == []
    for scale in (3.0, 4.0):
        layer(floats(4, 3), scale)
    (only,) = layer.to_program().shortcomings()
    assert only.startswith("2 calls of further kinds")
    config = layer.to_program().get_config()
    assert ProgramLayer.from_config({**stored(layer), "program": config}).program.gaps == (only,)


def test_a_kind_that_is_not_called_yet():
    """A layer that was built for a form is stored for that form, when nothing else is known."""
    layer = FlaxLayer(nn.Dense(2))
    layer.build((None, 3))
    program = export_program(
        layer._methods, [CallKind.of(layer._built_form)], layer._params, layer._state
    )
    assert program.shortcomings() == layer.to_program().shortcomings() == []
