"""The contract of `keras.layers.JaxLayer` and `keras.layers.FlaxLayer`, which ours keep.

Whoever has a program with Keras' own layers changes the import and nothing else.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, JaxLayer
from jaxlayer_core.errors import StructureError

register = keras.saving.register_keras_serializable(package="contract")


def function_of(names, body):
    """A function with exactly these argument names, in this order."""
    passed = ", ".join(f"{name}={name}" for name in names)
    return eval(f"lambda {', '.join(names)}: body({passed})", {"body": body})


# JaxLayer: the arguments of `call_fn` and `init_fn`.

OPTIONAL = ("params", "state", "rng", "training")
SUBSETS = [
    names
    for count in range(len(OPTIONAL) + 1)
    for chosen in itertools.combinations(OPTIONAL, count)
    for names in ((*chosen, "inputs"), tuple(reversed((*chosen, "inputs"))))
]


def _untraced(value):
    if isinstance(value, dict):
        return sorted(value)
    return getattr(value, "dtype", value)


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_call_fn_takes_any_subset_in_any_order(names):
    seen = {}

    def body(**given):
        # What is traced must not be kept: jax_check_tracer_leaks looks for it.
        seen.update({name: _untraced(value) for name, value in given.items()})
        outputs = given["inputs"] * given.get("params", {"w": 1.0})["w"]
        if "state" in given:
            return outputs, {"count": given["state"]["count"] + 1}
        return outputs

    def init(rng, inputs):
        params = {"w": jnp.full((), 3.0)}
        return (params, {"count": jnp.zeros(())}) if "state" in names else params

    owns = "params" in names or "state" in names
    layer = JaxLayer(function_of(names, body), init if owns else None)
    outputs = layer(np.full((2, 3), 2.0, "float32"), training=True)

    assert set(seen) == set(names)
    expected = 6.0 if "params" in names else 2.0
    np.testing.assert_array_equal(outputs, np.full((2, 3), expected))
    if "state" in names:
        assert layer.state["count"].value == 1
    if "rng" in names:
        assert jax.dtypes.issubdtype(seen["rng"], jax.dtypes.prng_key)
    if "training" in names:
        assert seen["training"] is True
        layer(np.ones((2, 3)), training=False)
        assert seen["training"] is False


INIT_SUBSETS = [
    order
    for chosen in ((), ("rng",), ("training",), ("rng", "training"))
    for order in itertools.permutations((*chosen, "inputs"))
]


@pytest.mark.parametrize("names", INIT_SUBSETS, ids="-".join)
def test_init_fn_takes_any_subset_in_any_order(names):
    seen = {}

    def body(**given):
        seen.update({name: getattr(value, "shape", value) for name, value in given.items()})
        return {"w": jnp.ones(given["inputs"].shape[-1])}

    layer = JaxLayer(lambda params, inputs: inputs @ params["w"], function_of(names, body))
    assert layer(np.ones((2, 3), "float32"), training=False).shape == (2,)
    assert set(seen) == set(names)
    assert seen["inputs"] == (2, 3)
    if "training" in names:
        assert seen["training"] is True, "init is always in training mode"


@pytest.mark.parametrize(
    ("call_fn", "init_fn", "message"),
    [
        (lambda params, rng, training: 0, lambda rng, inputs: {}, "`call_fn`.*`inputs`"),
        (lambda params, inputs: inputs, lambda rng, training: {}, "`init_fn`.*`inputs`"),
        (lambda params, inputs, mode: inputs, lambda rng, inputs: {}, "`call_fn`.*`mode`"),
        (lambda params, inputs: inputs, lambda rng, inputs, mode: {}, "`init_fn`.*`mode`"),
    ],
)
def test_arguments_outside_the_contract_are_refused_by_name(call_fn, init_fn, message):
    with pytest.raises(ValueError, match=message):
        JaxLayer(call_fn, init_fn)


@pytest.mark.parametrize(
    "call_fn",
    [lambda params, inputs: inputs, lambda state, inputs: (inputs, state)],
    ids=["params", "state"],
)
def test_variables_must_come_from_somewhere(call_fn):
    with pytest.raises(ValueError, match="`init_fn`, `params` and `state`"):
        JaxLayer(call_fn)


def test_a_function_of_inputs_alone_needs_nothing():
    layer = JaxLayer(lambda inputs: inputs + 1)
    np.testing.assert_array_equal(layer(np.zeros(3, "float32")), np.ones(3))
    assert layer.weights == []


def test_init_fn_of_a_function_that_owns_nothing_is_not_used():
    layer = JaxLayer(lambda inputs: inputs, lambda inputs: {"unused": jnp.ones(3)})
    layer(np.zeros(3, "float32"))
    assert layer.weights == []


# JaxLayer: where the variables come from.


def refuse_init(rng, inputs):
    raise AssertionError("init_fn must not be called when params or state are given")


def test_given_params_are_used_instead_of_init_fn(assert_same):
    params = {"w": np.arange(6, dtype="float32").reshape(3, 2), "deep": [np.float32(2.0)]}
    layer = JaxLayer(
        lambda params, inputs: inputs @ params["w"] * params["deep"][0], refuse_init, params=params
    )
    x = np.ones((4, 3), "float32")
    np.testing.assert_array_equal(layer(x), x @ params["w"] * 2)
    assert_same(layer.params, params)


def test_given_state_alone_is_used_instead_of_init_fn():
    layer = JaxLayer(
        lambda state, inputs: (inputs + state["offset"], {"offset": state["offset"] + 1}),
        refuse_init,
        state={"offset": 5.0},
    )
    assert layer(np.zeros((), "float32")) == 5
    assert layer(np.zeros((), "float32")) == 6
    assert layer.state["offset"].value == 7
    assert layer.trainable_variables == []


def test_given_params_and_state():
    layer = JaxLayer(
        lambda params, state, inputs: (inputs * params[0] + state[0], [state[0] * 2]),
        params=[2.0],
        state=[np.ones((), "float32")],
    )
    assert layer(np.float32([10.0])) == 21
    assert layer.state[0].value == 2
    assert [v.trainable for v in layer.weights] == [True, False]


def test_variables_exist_as_soon_as_they_are_given():
    layer = JaxLayer(lambda params, inputs: inputs, params={"w": np.zeros((2, 3))})
    assert layer.params["w"].shape == (2, 3)
    assert len(layer.trainable_weights) == 1


@pytest.mark.without("JAX_NUMPY_RANK_PROMOTION=raise")  # the model itself promotes ranks
def test_init_fn_makes_params_and_state_at_the_first_call():
    def init(rng, inputs):
        return {"w": jax.random.normal(rng, (inputs.shape[-1],))}, {"n": jnp.int32(0)}

    def call(params, state, inputs, training):
        return inputs * params["w"], {"n": state["n"] + training}

    layer = JaxLayer(call, init)
    assert layer.params is None
    assert layer.state is None
    layer(np.ones((2, 3), "float32"), training=True)
    layer(np.ones((2, 3), "float32"), training=False)
    layer(np.ones((2, 3), "float32"))
    assert layer.state["n"].value == 1
    assert layer.state["n"].dtype == "int32"
    assert [v.path for v in layer.weights] == [f"{layer.name}/params/w", f"{layer.name}/state/n"]


@pytest.mark.parametrize("result", [lambda x: x, lambda x: (x, x, x)], ids=["one", "three"])
def test_a_call_with_state_must_return_the_pair(result):
    layer = JaxLayer(lambda state, inputs: result(inputs), state={"a": 1.0})
    with pytest.raises(ValueError, match=r"must return the tuple \(outputs, state\)"):
        layer(np.ones(2, "float32"))


def test_an_init_with_state_must_return_the_pair():
    layer = JaxLayer(lambda params, state, inputs: (inputs, state), lambda inputs: {"w": inputs})
    with pytest.raises(ValueError, match=r"`init_fn` must return the tuple \(params, state\)"):
        layer(np.ones(2, "float32"))


# JaxLayer: pytrees.


@jax.tree_util.register_pytree_node_class
class NamedPoint:
    """A node class with a static part."""

    def __init__(self, x, y, name):
        self.x, self.y, self.name = x, y, name

    def tree_flatten(self):
        return (self.x, self.y), self.name

    @classmethod
    def tree_unflatten(cls, name, children):
        return cls(*children, name)


def test_registered_node_classes_keep_their_static_part():
    def call(params, state, inputs):
        (point,) = state
        assert point.name == "foo"
        moved = NamedPoint(point.x + 1, point.y * params.y, point.name)
        return inputs * params.x, [moved]

    layer = JaxLayer(call, params=NamedPoint(3.0, 4.0, "bar"), state=[NamedPoint(1.0, 2.0, "foo")])
    assert layer(np.float32([2.0])) == 6
    assert isinstance(layer.state[0], NamedPoint)
    assert (layer.state[0].x.value, layer.state[0].y.value, layer.state[0].name) == (2, 8, "foo")
    assert layer.params.name == "bar"


@pytest.mark.parametrize("leaf", [None, "bar", b"raw", frozenset({1})], ids=repr)
def test_leaves_that_are_no_arrays_are_kept(leaf):
    seen = []

    def call(params, state, inputs):
        seen.extend((params["foo"], state["foo"]))
        return inputs + state["n"], state

    layer = JaxLayer(call, params={"foo": leaf}, state={"foo": leaf, "n": 1.0})
    assert layer.state["foo"] == leaf
    assert layer.params["foo"] == leaf
    assert layer(np.zeros((), "float32")) == 1
    assert seen == [leaf, leaf]
    assert len(layer.weights) == 1


@pytest.mark.parametrize("number", [2, 2.5, True, np.int8(3)])
def test_numbers_count_as_arrays(number):
    layer = JaxLayer(lambda state, inputs: (inputs, state), state={"n": number})
    assert layer.state["n"].dtype == jnp.asarray(number).dtype
    assert layer.state["n"].value == number


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ([0.0], "Expected dict, got "),
        ({"state": {"foo": 0.0}}, "Expected list, got "),
        ({"state": [[0.0]]}, "Structure mismatch"),
        (None, "Expected dict, got None"),
        ({"state": {}}, "Expected list, got "),
        ({"state": {"foo": [2.0]}}, "Expected list, got "),
    ],
    ids=[
        "sequence_instead_of_mapping",
        "mapping_instead_of_sequence",
        "sequence_instead_of_variable",
        "no_initial_state",
        "missing_dict_key",
        "missing_variable_in_list",
    ],
)
def test_a_state_that_changed_its_structure_is_refused(initial, message):
    def call(params, state, inputs):
        return inputs, {"state": [jnp.ones([])]}

    layer = JaxLayer(call, params={}, state=initial)
    with pytest.raises(ValueError, match=message):
        layer(np.ones((1,)))


def test_structures_as_inputs_and_outputs_with_unknown_lengths():
    def call(params, inputs):
        a, b = inputs["a"], inputs["b"]
        return jnp.concatenate([a, b], axis=1), jnp.concatenate([b, a], axis=1)

    inputs = {name: keras.Input((None, 3), name=name) for name in ("a", "b")}
    outputs = JaxLayer(call, params={})(inputs)
    assert [tuple(o.shape) for o in outputs] == [(None, None, 3)] * 2
    model = keras.Model(inputs, outputs)
    a, b = np.zeros((2, 6, 3), "float32"), np.ones((2, 7, 3), "float32")
    one, other = model({"a": a, "b": b})
    np.testing.assert_array_equal(one, np.concatenate([a, b], axis=1))
    np.testing.assert_array_equal(other, np.concatenate([b, a], axis=1))
    one, other = model.predict({"a": a, "b": b}, verbose=0)
    np.testing.assert_array_equal(one, np.concatenate([a, b], axis=1))


def test_more_unknown_dimensions_than_letters():
    layer = JaxLayer(lambda params, inputs: jnp.concatenate(inputs, axis=1), params=())
    inputs = [keras.Input((None, 3)) for _ in range(60)]
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, 3)
    outputs = model([np.ones((2, 1, 3), "float32")] * 60)
    np.testing.assert_array_equal(outputs, np.ones((2, 60, 3)))


# JaxLayer: randomness.


def normal_init(rng, inputs):
    return [jax.random.normal(rng, inputs.shape)]


def test_the_global_seed_seeds_the_weights(assert_same, values):
    layers = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        layer = JaxLayer(lambda params, inputs: inputs @ params[0], normal_init)
        layer.build((2, 2))
        layers.append(layer)
    assert_same(layers[0].params, layers[1].params)
    assert np.any(values(layers[0].params[0]) != values(layers[2].params[0]))


def test_the_layer_seed_seeds_weights_and_draws(assert_same):
    def call(params, rng, inputs):
        return jax.random.uniform(rng, inputs.shape)

    one, same, other = (JaxLayer(call, normal_init, seed=seed) for seed in (7, 7, 8))
    x = np.ones((3, 3), "float32")
    first, second = one(x), one(x)
    assert_same(same(x), first)
    assert_same(one.params, same.params)
    assert np.any(np.asarray(first) != second), "each call draws anew"
    assert np.any(np.asarray(other(x)) != first)


# FlaxLayer: the same arguments, params and state as Keras' own.


class Forward(nn.Module):
    """Has no `__call__`."""

    features: int = 2

    @nn.compact
    def forward(self, inputs):
        return nn.Dense(self.features)(inputs)


class Dropped(nn.Module):
    """Needs the help of a function to follow `training`."""

    @nn.compact
    def my_apply(self, inputs, training):
        return nn.Dropout(0.5, deterministic=not training)(nn.Dense(4)(inputs))


@register
def dropped(module, x, training):
    return module.my_apply(x, training)


@pytest.mark.parametrize("style", ["name", "bound", "bound to another instance", "unbound"])
def test_method(style, assert_same, values):
    module = Forward()
    method = {
        "name": "forward",
        "bound": module.forward,
        "bound to another instance": Forward().forward,
        "unbound": Forward.forward,
    }[style]
    layer = FlaxLayer(module, method=method)
    x = np.ones((3, 5), "float32")
    outputs = layer(x)
    native = jax.jit(lambda params: module.apply(params, x, method="forward"))
    assert_same(outputs, native(values(layer.params)))


def test_method_can_be_a_function_outside_the_module():
    layer = FlaxLayer(Dropped(), method=dropped, seed=1)
    x = np.ones((8, 5), "float32")
    quiet = layer(x, training=False)
    noisy = layer(x, training=True)
    dropped_share = np.mean(np.asarray(noisy) == 0)
    assert 0.2 < dropped_share < 0.8
    kept = np.asarray(noisy) != 0
    np.testing.assert_allclose(np.asarray(noisy)[kept], 2 * np.asarray(quiet)[kept], rtol=1e-6)
    np.testing.assert_array_equal(layer(x), quiet, err_msg="the default is inference")


class Counter(nn.Module):
    """Has state and no params."""

    @nn.compact
    def __call__(self, x):
        count = self.variable("a", "b", lambda: jnp.zeros([], jnp.int32))
        count.value = count.value + 1
        return x


def test_a_module_with_state_and_no_params():
    layer = FlaxLayer(Counter(), variables={"a": {"b": 0}})
    layer(np.ones((1,)))
    assert layer.state["a"]["b"].value == 1
    assert len(layer.params) == 0


class BatchNormed(nn.Module):
    """The usual convolution block, small."""

    @nn.compact
    def __call__(self, inputs, training=False):
        x = nn.Conv(4, (3, 3), use_bias=False)(inputs)
        x = nn.BatchNorm(use_running_average=not training, use_scale=False, momentum=0.5)(x)
        x = nn.relu(x).mean((1, 2))
        x = nn.Dropout(0.3, deterministic=not training)(x)
        return nn.softmax(nn.Dense(3)(x))

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class Plain(nn.Module):
    """No state, no training argument, and its method has a name of its own."""

    @nn.compact
    def forward(self, inputs):
        return nn.softmax(nn.Dense(3)(nn.relu(nn.Dense(4)(inputs.reshape((len(inputs), -1))))))

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


register(BatchNormed)
register(Plain)


def test_params_and_state_have_the_form_of_keras_own_layer(values):
    module = BatchNormed()
    layer = FlaxLayer(module)
    layer.build((None, 6, 6, 1))
    assert set(layer.params) == {"params"}
    assert set(layer.state) == {"batch_stats"}
    native = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 6, 6, 1)))
    ours = values({**layer.params, **layer.state})
    assert jax.tree.structure(ours) == jax.tree.structure(native)


# Both: the life of a model, from fit to load.


def mlp_init(rng, inputs):
    sizes = (int(np.prod(inputs.shape[1:])), 4, 3)
    params = []
    for m, n in itertools.pairwise(sizes):
        rng, key = jax.random.split(rng)
        params.append([jax.nn.initializers.glorot_normal()(key, (m, n)), jnp.full((n,), 0.1)])
    return params


@register
def stateless_init(rng, inputs):
    return mlp_init(rng, inputs)


@register
def stateless_call(params, inputs):
    x = inputs.reshape((inputs.shape[0], -1))
    for w, b in params[:-1]:
        x = jnp.tanh(x @ w + b)
    w, b = params[-1]
    return jax.nn.softmax(x @ w + b)


@register
def stateful_init(rng, inputs, training):
    assert training is True
    return mlp_init(rng, inputs), jnp.zeros([], jnp.float32)


@register
def stateful_call(params, state, inputs, training):
    return stateless_call(params, inputs), state + 1 if training else state


@register
def constant_call(inputs):
    return jnp.tile(inputs.mean((1, 2, 3))[:, None], (1, 3))


def flax(module_class, method=None, **options):
    """Makes a layer the way that tests of Keras' own FlaxLayer do."""

    def make(params=None, state=None, **more):
        variables = {**(params or {}), **(state or {})} or None
        chosen = getattr(module_class(), method) if isinstance(method, str) else method
        return FlaxLayer(module_class(), method=chosen, variables=variables, **options, **more)

    return make


def plain(call_fn, init_fn, **options):
    return lambda **more: JaxLayer(call_fn, init_fn, **options, **more)


# name: factory, trainable weights, trainable numbers, other weights, other numbers
LIVES = {
    "function": (plain(constant_call, None), 0, 0, 0, 0),
    "stateless": (plain(stateless_call, stateless_init), 4, 163, 0, 0),
    "stateful": (plain(stateful_call, stateful_init), 4, 163, 1, 1),
    "stateful, mixed": (plain(stateful_call, stateful_init, dtype="mixed_float16"), 4, 163, 1, 1),
    "native serialization": (
        plain(stateless_call, stateless_init, native_serialization_platforms=("cpu", "tpu")),
        4,
        163,
        0,
        0,
    ),
    "flax method": (flax(Plain, "forward"), 4, 163, 0, 0),
    "flax batch norm": (flax(BatchNormed), 4, 55, 2, 8),
    "flax batch norm, mixed": (flax(BatchNormed, dtype="mixed_float16"), 4, 55, 2, 8),
}


def count(weights):
    return sum(int(np.prod(w.shape)) for w in weights)


@pytest.fixture(params=LIVES.values(), ids=LIVES.keys())
def life(request):
    return request.param


def data():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(16, 6, 6, 1)).astype("float32")
    return x, np.eye(3, dtype="float32")[rng.integers(0, 3, 16)]


def compiled(model):
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    return model


@pytest.mark.without("JAX_NUMPY_RANK_PROMOTION=raise")  # the model itself promotes ranks
def test_life_of_a_functional_model(life, values):
    make, weights, numbers, other_weights, other_numbers = life
    x, y = data()
    layer = make()
    inputs = keras.Input(x.shape[1:])
    model = compiled(keras.Model(inputs, layer(inputs)))
    assert model.output_shape == (None, 3)
    assert (len(layer.trainable_weights), count(layer.trainable_weights)) == (weights, numbers)
    others = layer.non_trainable_weights
    assert (len(others), count(others)) == (other_weights, other_numbers)

    before = values(layer.weights)
    model.fit(x, y, batch_size=8, verbose=0)
    after = values(layer.weights)
    for weight, one, other in zip(layer.weights, before, after, strict=True):
        assert np.any(one != other), f"{weight.path} did not change in fit"

    outputs = model(x)
    predicted = model.predict(x, verbose=0)
    np.testing.assert_allclose(outputs, predicted, atol=1e-3 if "mixed" in str(life) else 1e-6)
    loss = model.evaluate(x, y, verbose=0)
    assert np.all(np.isfinite(loss))
    for one, other in zip(after, values(layer.weights), strict=True):
        np.testing.assert_array_equal(one, other, err_msg="only training changes weights")


@pytest.mark.without("JAX_NUMPY_RANK_PROMOTION=raise")  # the model itself promotes ranks
def test_life_of_exported_variables_in_sequential(life, values, tmp_path):
    """`input_shape=` is what older programs write; Keras itself warns about it."""
    make, weights, numbers, other_weights, other_numbers = life
    x, y = data()
    first = make()
    inputs = keras.Input(x.shape[1:])
    trained = compiled(keras.Model(inputs, first(inputs)))
    trained.fit(x, y, batch_size=8, verbose=0)
    expected = trained.predict(x, verbose=0)

    with pytest.warns(UserWarning, match="Do not pass an `input_shape`"):
        second = make(
            params=values(first.params), state=values(first.state), input_shape=x.shape[1:]
        )
    model = compiled(keras.Sequential([second]))
    assert model.built
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)

    model.fit(x, y, batch_size=8, verbose=0)
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    (third,) = loaded.layers
    assert (len(third.trainable_weights), count(third.trainable_weights)) == (weights, numbers)
    others = third.non_trainable_weights
    assert (len(others), count(others)) == (other_weights, other_numbers)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    assert third.dtype_policy.name == second.dtype_policy.name
    if weights:
        loaded.fit(x, y, batch_size=8, verbose=0)
        assert np.any(loaded.predict(x, verbose=0) != expected), "the loaded model trains on"


@pytest.mark.without("JAX_NUMPY_RANK_PROMOTION=raise")  # the model itself promotes ranks
def test_life_in_a_subclassed_model_without_build(life):
    make, weights, *_ = life

    class Model(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, inputs):
            return self.layer(inputs)

    x, y = data()
    model = Model(make())
    assert np.any(np.asarray(model(x)) != 0)
    fresh = compiled(Model(make()))
    fresh.fit(x, y, batch_size=8, verbose=0)
    assert len(fresh.trainable_weights) == weights


@pytest.mark.without("JAX_NUMPY_RANK_PROMOTION=raise")  # the model itself promotes ranks
def test_mixed_precision_computes_in_half_and_keeps_variables_whole():
    seen = {}

    def call(params, state, inputs, training):
        seen.update(params=params.dtype, state=state.dtype, inputs=inputs.dtype)
        return inputs * params, state

    layer = JaxLayer(
        call,
        lambda inputs: (jnp.ones(3, "float32"), jnp.zeros(3, "float32")),
        dtype="mixed_float16",
    )
    outputs = layer(np.ones((2, 3), "float32"))
    assert seen == {"params": np.float16, "state": np.float32, "inputs": np.float16}
    assert outputs.dtype == np.float16
    assert {v.dtype for v in layer.weights} == {"float32"}


def test_the_global_policy_is_followed():
    keras.config.set_dtype_policy("mixed_float16")
    layer = FlaxLayer(BatchNormed())
    layer(np.ones((2, 6, 6, 1), "float32"), training=True)
    assert layer.compute_dtype == "float16"
    assert {v.dtype for v in layer.weights} == {"float32"}


def test_configs_name_functions_and_modules():
    layer = JaxLayer(stateful_call, stateful_init, seed=3, name="mine")
    again = JaxLayer.from_config(layer.get_config())
    assert (again.call_fn, again.init_fn, again.name) == (stateful_call, stateful_init, "mine")
    layer = FlaxLayer(Plain(), method="forward")
    again = FlaxLayer.from_config(layer.get_config())
    assert again.module == layer.module
    assert again.method == "forward"


def test_text_in_the_state_stays():
    """NumPy arrays of text are no arrays to JAX; they are handed over and must come back."""
    names = np.array(["one", "two"])
    layer = JaxLayer(lambda state, inputs: (inputs, state), state={"names": names, "n": 1.0})
    layer(np.ones(2, "float32"))
    changing = JaxLayer(
        lambda state, inputs: (inputs, {"names": names[::-1]}), state={"names": names}
    )
    with pytest.raises(StructureError, match="leaf `names`, which is not an array but the fixed"):
        changing(np.ones(2, "float32"))
