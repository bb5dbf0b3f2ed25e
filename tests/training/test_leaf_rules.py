"""Regularizers and constraints by path."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer
from jaxlayer_core import PatternError

from .test_freezing import Net

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def test_weight_decay_on_kernels_is_one_line(values):
    """The loss of `fit` equals the native loss plus the native penalty."""
    layer = FlaxLayer(Net(), regularizers={"kernel": keras.regularizers.L2(0.1)}, seed=0)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    params, stats = values(layer.params)["params"], values(layer.state)

    @jax.jit
    def step(params, stats):
        def loss(params):
            outputs, after = Net().apply(
                {"params": params, **stats}, X, train=True, mutable=["batch_stats"]
            )
            kernels = (params[name]["kernel"] for name in ("encoder", "head"))
            penalty = 0.1 * sum(jnp.sum(jnp.square(k)) for k in kernels)
            return jnp.mean(jnp.square(outputs - X[:, :1])) + penalty, after

        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), after

    losses = []
    for _ in range(3):
        value, params, stats = step(params, stats)
        losses.append(float(value))
    history = model.fit(X, X[:, :1], batch_size=8, epochs=3, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    assert len(layer.losses) == 2


def test_the_first_pattern_that_matches_counts():
    layer = FlaxLayer(Net(), regularizers={"head": "l1", "kernel|bias": "l2"})
    layer.build((None, 4))
    kinds = {v.path.partition("/params/")[2]: type(v.regularizer).__name__ for v in layer.weights}
    assert kinds["head/kernel"] == kinds["head/bias"] == "L1"
    assert kinds["encoder/kernel"] == kinds["norm/bias"] == "L2"
    assert kinds["norm/scale"] == "NoneType"


def test_constraints_hold_after_training(values):
    layer = FlaxLayer(Net(), constraints={"encoder/kernel": keras.constraints.MaxNorm(0.5)})
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.fit(X, 10 * X[:, :1], epochs=3, verbose=0)
    params = values(layer.params)["params"]
    assert np.all(np.linalg.norm(params["encoder"]["kernel"], axis=0) <= 0.5 + 1e-6)
    assert np.any(np.linalg.norm(params["head"]["kernel"], axis=0) > 0.5)


def test_given_variables_follow_the_rules():
    variables = Net().init(jax.random.key(0), X)
    layer = FlaxLayer(Net(), variables=variables, regularizers={"kernel": "l2"})
    layer(X)
    assert len(layer.losses) == 2


def test_they_are_saved(tmp_path):
    layer = FlaxLayer(
        Net(), regularizers={"kernel": "l2"}, constraints={"head": "unit_norm"}, name="net"
    )
    model = keras.Sequential([keras.Input((4,)), layer])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras").layers[0]
    assert again.get_config() == layer.get_config()
    assert len(again.losses) == 2
    assert sum(v.constraint is not None for v in again.weights) == 2


@pytest.mark.parametrize("option", ["regularizers", "constraints"])
def test_a_pattern_that_matches_nothing(option):
    layer = FlaxLayer(Net(), **{option: {"kernle": "l2" if option == "regularizers" else None}})
    with pytest.raises(PatternError, match=rf"{option}: 'kernle' matches no path.*kernel"):
        layer(X)


def test_keep_float32_that_matches_nothing():
    layer = FlaxLayer(nn.Dense(2), dtype="mixed_bfloat16", keep_float32=["scale"])
    with pytest.raises(PatternError, match="keep_float32: 'scale' matches no path"):
        layer(X)


def test_only_expressions_are_patterns_here():
    with pytest.raises(PatternError, match=r"regularizers takes .* as strings;"):
        FlaxLayer(Net(), regularizers={1: "l2"})
