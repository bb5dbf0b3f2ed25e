"""Counter-examples that the search has found, shrunk, each with a name and a sentence."""

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer
from jaxlayer_core.patterns import exactly

from .searching import assert_bits

X = np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3)


def stateless(layer, *args, **kwargs):
    """`layer.stateless_call` with the values that the layer has now."""
    own = [v.value for v in layer.trainable_variables]
    others = [v.value for v in layer.non_trainable_variables]
    return layer.stateless_call(own, others, *args, **kwargs)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)


class NormedInside(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return Normed(name="spatial_axes")(x, train)


def test_a_module_whose_name_ends_in_axes():
    """The batch statistics of a module called `spatial_axes` are state like all others.

    Natively they move; here they were taken for names of axes: constants, no weights.
    """
    layer = FlaxLayer(NormedInside())
    layer(X, training=True)
    mean = layer.state["batch_stats"]["spatial_axes"]["BatchNorm_0"]["mean"]
    assert any(mean is variable for variable in layer.weights)
    np.testing.assert_allclose(mean.value, X.mean(0) / 2, rtol=1e-6)


class NormedByFlag(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)


def test_a_stated_flag_in_a_stateless_call_writes_state():
    """`stateless_call(..., x, train=True)` returns the new batch statistics, as `layer(x,
    train=True)` writes them.

    It returned the old ones, without a word.
    """
    layer = FlaxLayer(NormedByFlag())
    layer(X)
    _, others = stateless(layer, X, train=True)
    after = dict(zip((v.path for v in layer.non_trainable_variables), others, strict=True))
    (mean,) = (value for path, value in after.items() if path.endswith("mean"))
    np.testing.assert_allclose(mean, X.mean(0) / 2, rtol=1e-6)


def test_a_stated_flag_in_a_stateless_call_tells_the_other_flags():
    """With two flags of which the caller states one, the other follows it."""

    def model(x, deterministic, update_stats):
        return x + (1 if deterministic else 2) + (10 if update_stats else 20)

    layer = HaikuLayer(model)
    expected = layer(X, deterministic=False)
    np.testing.assert_array_equal(expected, X + 12)
    assert_bits(stateless(layer, X, deterministic=False)[0], expected)


class WithAuxiliary(nn.Module):
    @nn.compact
    def __call__(self, x, **options):
        main, auxiliary = nn.Dense(2, name="main")(x), nn.Dense(2, name="auxiliary")(x)
        return (main, auxiliary) if options.get("train", False) else main


@pytest.mark.parametrize("framework", ["flax", "haiku"])
def test_a_hidden_flag_that_only_chooses_what_is_returned(framework):
    """A flag in `**kwargs` that changes no operation, but which results are returned, is found."""

    def model(x, **options):
        main, auxiliary = hk.Linear(2)(x), hk.Linear(2)(x)
        return (main, auxiliary) if options.get("train", False) else main

    layer = FlaxLayer(WithAuxiliary()) if framework == "flax" else HaikuLayer(model)
    assert not isinstance(layer(X), tuple)
    assert isinstance(layer(X, train=True), tuple)
    assert isinstance(layer(X, training=True), tuple)


def test_an_argument_called_inputs_in_a_stateless_call():
    """A model's argument `inputs` that is not its first one takes its keyword.

    It was taken for the first argument, without a word, or refused where that was given too.
    """
    layer = HaikuLayer(lambda scale=1.0, inputs=2.0: scale * 10 + inputs)
    layer(inputs=X)
    assert_bits(stateless(layer, inputs=X)[0], layer(inputs=X))
    assert_bits(stateless(layer, X, inputs=3.0)[0], layer(X, inputs=3.0))


def test_an_argument_called_structure_in_a_stateless_call():
    """A model's argument `structure` takes its keyword, as in `layer(x, structure=...)`."""
    layer = HaikuLayer(lambda x, structure=2.0: x * structure)
    layer(X)
    assert_bits(stateless(layer, X, structure=3.0)[0], layer(X, structure=3.0))


def test_none_as_the_only_argument_of_a_stateless_call():
    """None that is given is None, not the parameter's default."""
    layer = HaikuLayer(lambda x=1.0: jnp.zeros(2) if x is None else jnp.ones(2) * x)
    assert_bits(layer(None), jnp.zeros(2))
    assert_bits(stateless(layer, None)[0], jnp.zeros(2))


TRANSFORMS = {
    "transform": hk.transform,
    "transform_with_state": hk.transform_with_state,
    "without_apply_rng": lambda f: hk.without_apply_rng(hk.transform(f)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_a_transformed_function_with_a_keyword_called_key(transform):
    """A Haiku transform's own argument `key` can be passed by keyword, as to its `apply`."""
    layer = HaikuLayer(transform(lambda x, *, key: x * key))
    np.testing.assert_array_equal(layer(X, key=X), X * X)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_a_transformed_function_with_an_argument_called_rng(transform):
    """A Haiku transform's own argument `rng` is data, as it is for an untransformed function."""
    np.testing.assert_array_equal(HaikuLayer(lambda rng, y: rng * y)(X, X), X * X)
    np.testing.assert_array_equal(HaikuLayer(transform(lambda rng, y: rng * y))(X, X), X * X)
    np.testing.assert_array_equal(HaikuLayer(transform(lambda x, rng=2.0: x * rng))(X), X * 2)


def untouched(params, inputs):
    return inputs


def test_freezing_a_name_that_another_continues_with_a_newline():
    """The expression for exactly `a` does not mean `a` and a newline."""
    layer = JaxLayer(untouched, params={"a": X, "a\n": X})
    layer.freeze(exactly("params/a"))
    assert len(layer.trainable_variables) == 1


def test_names_with_nul_in_a_weights_file(tmp_path):
    """Two names that differ after a NUL are two entries of a weights file."""

    def model(factor):
        layer = JaxLayer(untouched, params={"a\0b": X * factor, "a\0c": X * 2 * factor})
        return keras.Sequential([keras.Input((3,)), layer])

    saved, loaded = model(1), model(0)
    saved.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    for one, other in zip(saved.weights, loaded.weights, strict=True):
        assert_bits(other.value, one.value)


def test_numpy_strings_among_the_params():
    """Leaves that JAX cannot hold, such as an array of strings, are handed on as they are."""

    def call_fn(params, inputs):
        assert params["names"].tolist() == ["one", "two"]
        return inputs * params["w"]

    layer = JaxLayer(call_fn, params={"names": np.array(["one", "two"]), "w": X})
    np.testing.assert_array_equal(layer(X), X * X)
