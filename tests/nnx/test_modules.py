"""Instances, classes and functions as layers, and what comes out of layers again."""

import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx

from jaxlayer import FlaxLayer, as_layer
from jaxlayer_core import BuildError, PatternError, ProgramLayer, key_from_seed
from jaxlayer_flax import reseed

from .importable import Activity, Arrays, Block, Derived, Measuring, Meter, Own, Stack

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def leaves(module):
    """All arrays of a module, those of streams too, as they are now."""
    data = jax.tree.leaves(nnx.state(module))
    return [np.asarray(jax.random.key_data(v) if is_key(v) else v) for v in data]


def is_key(value):
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def trained(layer):
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(X, X[:, :1], epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def fitted():
    """An instance, its arrays before, and a layer of it after training."""
    module = Block(3, rngs=nnx.Rngs(0))
    before = leaves(module)
    layer = FlaxLayer(module, seed=0)
    trained(layer)
    return module, before, layer


def test_an_instance_stays_as_it_is(fitted):
    """Its arrays are neither trained, nor given away, nor drawn from; nor is its mode set."""
    module, before, layer = fitted
    for array, old in zip(leaves(module), before, strict=True):
        np.testing.assert_array_equal(array, old)
    assert module.first.deterministic is False
    kernel = layer.params["params"]["dense"]["kernel"]
    assert np.any(np.asarray(kernel.value) != before_kernel(module))


def before_kernel(module):
    return np.asarray(module.dense.kernel[...])


def test_the_weights_of_an_instance_are_the_first_values():
    module = Block(3, rngs=nnx.Rngs(0))
    layer = FlaxLayer(module)
    layer.build((None, 3))
    np.testing.assert_array_equal(layer.params["params"]["dense"]["kernel"], before_kernel(module))


def test_to_module_is_live_and_has_the_weights(fitted):
    module, _, layer = fitted
    live = layer.to_module()
    assert type(live) is Block
    assert live is not module
    live.eval()
    np.testing.assert_array_equal(nnx.jit(lambda m, x: m(x))(live, X), layer(X))
    live.dense.kernel.copy_from(nnx.Param(jnp.zeros((3, 3))))
    assert np.any(np.asarray(layer.params["params"]["dense"]["kernel"].value))


def test_to_module_survives_further_training(fitted):
    """The layer's arrays are donated in training; the module has its own."""
    _, _, layer = fitted
    live = layer.to_module()
    trained(layer)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves(live))


def test_a_class_is_initialised_when_the_layer_is_built():
    layer = as_layer(functools.partial(Block, 3), seed=5, name="net")
    assert type(layer) is FlaxLayer
    assert layer.weights == []
    layer.build((None, 3))
    own = Block(3, rngs=nnx.Rngs(key_from_seed([5, 0])))
    np.testing.assert_array_equal(layer.params["params"]["dense"]["kernel"], own.dense.kernel[...])
    assert sorted(v.path for v in layer.weights) == [
        "net/batch_stats/norm/mean",
        "net/batch_stats/norm/var",
        "net/params/dense/bias",
        "net/params/dense/kernel",
        "net/params/norm/bias",
        "net/params/norm/scale",
    ]


def test_named_streams_of_a_constructor():
    """`rngs=` names streams besides the default."""
    layer = FlaxLayer(lambda rngs: nnx.Linear(3, 2, rngs=nnx.Rngs(rngs.noise())), rngs=["noise"])
    layer.build((None, 3))
    assert len(layer.weights) == 2


@pytest.mark.parametrize(
    "make", [lambda: functools.partial(Block, 3), lambda: Block(3, rngs=nnx.Rngs(0))]
)
def test_forked_streams_differ_and_are_reproducible(make):
    """Two layers of dropout have two masks, other ones in each call, as `reseed` makes them."""
    layer = FlaxLayer(make(), method="masks", seed=0)
    ones = np.ones((8, 8), "float32")
    layer(ones)
    key = key_from_seed(layer.seed_generator.state.value)
    one, two = layer(ones, training=True)
    assert np.any(one != two)
    again, _ = layer(ones, training=True)
    assert np.any(one != again)
    module = Block(3, rngs=nnx.Rngs(9))
    reseed(module, key)
    for got, expected in zip((one, two), module.masks(ones), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_modes_of_ones_own():
    """Flags of the table as attributes, the module's own `eval`, and flags that the user names."""
    layer = FlaxLayer(Own)
    inference, training = layer(X), layer(X, training=True)
    np.testing.assert_allclose(inference["x"], 10 * training["x"], rtol=1e-6)
    assert not np.any(inference["training"])
    np.testing.assert_array_equal(training["training"], X)
    named = FlaxLayer(Own, training_arg="not frozen")
    np.testing.assert_array_equal(named(X)["frozen"], X)
    assert not np.any(named(X, training=True)["frozen"])
    np.testing.assert_array_equal(named(X)["training"], X)
    untold = FlaxLayer(Own, training_arg=())
    np.testing.assert_array_equal(untold(X)["training"], X)


def test_arrays_that_are_in_no_variable():
    for module in (Arrays, Arrays()):
        layer = FlaxLayer(module)
        x = np.zeros((1, 2), "float32")
        assert float(layer(x)[0, 0]) == 2 if not layer.built else True
        layer(x, training=True)
        names = [v.path.partition("/")[2] for v in layer.weights]
        assert sorted(names) == ["arrays/count", "arrays/offset"]
        np.testing.assert_array_equal(layer.state["arrays"]["count"], [2.0, 2.0])


@pytest.mark.parametrize("role", ["state", "loss", "metric", "output", "constant", "drop"])
def test_roles_of_ones_own_types(role):
    layer = FlaxLayer(Measuring, state_policy={"Meter/.*": role, "Activity": "drop"})
    result = layer(X, training=True)
    result = layer(X, training=True)
    steps = float(layer.state["Meter"]["steps"].value)
    assert steps == (0.0 if role in ("constant", "drop") else 2.0)
    if role == "loss":
        assert float(layer.losses[0]) == 2.0
    if role == "metric":
        assert [m.name for m in layer.metrics] == [f"{layer.name}/Meter/steps"]
    if role == "output":
        assert float(result[1]["Meter/steps"]) == 2.0


@pytest.mark.parametrize("role", ["loss", "metric", "output", "drop"])
@pytest.mark.parametrize("module", [Measuring, Measuring(rngs=nnx.Rngs(0))])
def test_collections_that_are_made_anew(role, module):
    """Not kept: each call begins with what the module was made with."""
    layer = FlaxLayer(module, state_policy={"Meter": role, "Activity": "drop"})
    for _ in range(2):
        result = layer(X, training=True)
    assert "Meter" not in (layer.state or {})
    if role == "loss":
        assert [float(loss) for loss in layer.losses] == [1.0]
    if role == "metric":
        assert [float(metric.result()) for metric in layer.metrics] == [1.0]
    if role == "output":
        assert float(result[1]["Meter/steps"]) == 1.0


def test_types_that_derive_from_params_are_trained():
    layer = FlaxLayer(Derived)
    layer(X)
    assert [v.path.partition("/")[2] for v in layer.trainable_weights] == ["Scale/scale"]


def test_what_is_sown_is_dropped_or_has_a_role():
    layer = FlaxLayer(Measuring, state_policy={"Activity": "loss"})
    outputs = layer(X, training=True)
    layer(X, training=True)
    np.testing.assert_allclose(layer.losses[0], np.mean(np.square(outputs)), rtol=1e-6)
    assert len(layer.losses) == 1
    assert "intermediates" not in layer.state
    assert Activity.__name__ not in layer.state
    assert Meter.__name__ in layer.state


def test_a_module_that_has_been_called_brings_nothing_along():
    module = Measuring(rngs=nnx.Rngs(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # sowing without nnx.capture
        module(X)
    layer = FlaxLayer(module, state_policy={"Activity": "loss"}, capture="hidden")
    _, captured = layer(X)
    assert captured["hidden"].shape == (8, 2)
    assert set(layer.state) == {"Meter"}


def test_capture():
    """What modules return and what they sow, by the paths of modules; also inside of `scan`."""
    layer = FlaxLayer(functools.partial(Block, 3), capture=["dense", "no.*m", "__call__"])
    outputs, captured = layer(X)
    assert set(captured) == {"dense", "norm", "__call__"}
    np.testing.assert_array_equal(captured["__call__"], outputs)
    dense = layer.to_module().dense
    np.testing.assert_allclose(captured["dense"], dense(X), rtol=1e-6)
    _, captured = FlaxLayer(functools.partial(Stack, 2), capture="layers")(X)
    assert captured["layers"].shape == (2, 8, 3)
    with pytest.raises(PatternError, match=r"'dens' matches nothing that the NNX module Block"):
        FlaxLayer(functools.partial(Block, 3), capture="dens")(X)


def test_lora_is_trained():
    layer = FlaxLayer(functools.partial(nnx.LoRALinear, 3, 4, lora_rank=2))
    layer.build((None, 3))
    assert {v.path.partition("/")[2] for v in layer.trainable_weights} == {
        "params/kernel",
        "params/bias",
        "LoRAParam/lora/lora_a",
        "LoRAParam/lora/lora_b",
    }
    layer.freeze("params/.*")
    assert {v.path.split("/")[1] for v in layer.trainable_weights} == {"LoRAParam"}


def test_variables_given_as_collections_or_as_a_state():
    module = Block(3, rngs=nnx.Rngs(1))
    for given in (
        nnx.state(module),
        nnx.state(module, nnx.Param),
        {"params": nnx.to_pure_dict(nnx.state(module, nnx.Param))},
    ):
        layer = FlaxLayer(functools.partial(Block, 3), variables=given)
        layer.build((None, 3))
        kernel = layer.params["params"]["dense"]["kernel"]
        np.testing.assert_array_equal(kernel, before_kernel(module))
        assert len(layer.weights) == 6


def test_weights_as_files(tmp_path):
    layer, other = (FlaxLayer(functools.partial(Block, 3), seed=s) for s in (0, 1))
    for made in (layer, other):
        made.build((None, 3))
    layer.save_variables(tmp_path / "w.npz")
    other.load_variables(tmp_path / "w.npz")
    np.testing.assert_array_equal(other(X), layer(X))


def test_pure_functions_and_programs():
    layer = FlaxLayer(functools.partial(Block, 3), seed=0)
    layer(X, training=True)
    layer(X)
    call_fn, params, state = layer.to_pure()
    outputs, _ = call_fn(params, state, jax.random.key(0), X, training=False)
    np.testing.assert_allclose(outputs, layer(X), rtol=1e-6)
    program = ProgramLayer(layer.to_program(), params=params, state=state)
    np.testing.assert_allclose(program(X[:3]), layer(X[:3]), rtol=1e-5)


def test_linen_modules_leave_bound():
    layer = FlaxLayer(nn.Dense(2), name="net")
    with pytest.raises(BuildError, match=r"net has no variables to give before it is built"):
        layer.to_module()
    np.testing.assert_allclose(layer(X), layer.to_module()(X), rtol=1e-6)


class Sowing(nnx.Module):
    """Adds up what it sows."""

    def __init__(self, *, rngs):
        self.dense = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        self.sow(Activity, "sum", (x**2).mean(), init_fn=lambda: 0.0, reduce_fn=lambda a, b: a + b)
        return self.dense(x)


@pytest.mark.filterwarnings(r"ignore:\s*Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("calls", [0, 2])
def test_what_earlier_calls_have_sown_is_not_added_to(calls):
    module = Sowing(rngs=nnx.Rngs(0))
    x = np.ones((2, 4), "float32")
    for _ in range(calls):
        module(x)
    layer = FlaxLayer(module, state_policy={"Activity": "loss"})
    for _ in range(2):
        layer(x, training=True)
        assert [float(loss) for loss in layer.losses] == [1.0]


class RngsBefore(nnx.Module):
    """Takes rngs before other arguments."""

    def __init__(self, *, rngs):
        self.dense = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x, rngs, scale, deterministic=False):
        y = self.dense(x) * scale
        return y if deterministic else y + jax.random.normal(rngs.noise(), y.shape)


@pytest.mark.parametrize("how", ["by place", "by name"])
def test_arguments_after_rngs(how):
    module = RngsBefore(rngs=nnx.Rngs(0))
    layer = FlaxLayer(module, rngs=("noise",))
    x = np.ones((2, 4), "float32")
    call = (
        (lambda **mode: layer(x, 2.0, **mode))
        if how == "by place"
        else (lambda **mode: layer(x, scale=2.0, **mode))
    )
    expected = nnx.jit(lambda m, x: m(x, None, 2.0, deterministic=True))(module, x)
    np.testing.assert_allclose(call(training=False), expected, rtol=1e-6)
    assert np.any(np.asarray(call(training=True)) != np.asarray(call(training=True)))
