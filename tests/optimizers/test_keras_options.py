"""What Keras itself does to gradients and weights, with Optax inside."""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from optax import contrib

from jaxlayer_optax import OptaxError, OptaxOptimizer, SwapWeights, as_optimizer

from .models import BATCH, DATA, STEPS, X, Y, made, native, params_of, result_of

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)


def trained(optimizer, **options):
    model = made()
    model.compile(optimizer, "mse", **options)
    model.fit(**DATA)
    return model


@pytest.mark.parametrize(
    ("option", "clip"),
    [
        ({"global_clipnorm": 0.1}, optax.clip_by_global_norm(0.1)),
        ({"clipvalue": 0.1}, optax.clip(0.1)),
        ({"clipnorm": 0.1}, optax.stateless(lambda u, p: jax.tree.map(lambda g: _clipped(g), u))),
    ],
    ids=["global_clipnorm", "clipvalue", "clipnorm"],
)
def test_clipping_is_a_chain(option, clip, values):
    tx = optax.adam(1e-2)
    expected, _ = native(made(), optax.chain(clip, tx))
    optimizer = as_optimizer(tx, **option)
    trained(optimizer)
    jax.tree.map(close, values(optimizer.weights_tree()), values(expected))
    plain, _ = native(made(), tx)
    assert not np.allclose(values(plain)["dense"]["kernel"], values(expected)["dense"]["kernel"])


def _clipped(gradient):
    return gradient * 0.1 / jnp.maximum(jnp.linalg.norm(gradient), 0.1)


def test_averages(values):
    """Keras' averages are those of the weights that Optax made, and replace them at the end."""
    tx = optax.sgd(0.1)
    model = made()
    params, average = params_of(model), None
    state = tx.init(params)
    for number in range(STEPS):
        params, state = native(model, tx, 1, (params, state, number))
        mean = functools.partial(jax.tree.map, lambda old, new: (old + new) / 2)
        average = params if average is None else mean(average, params)
    optimizer = as_optimizer(tx, use_ema=True, ema_momentum=0.5)
    model = trained(optimizer)
    jax.tree.map(close, values(optimizer.weights_tree()), values(average))
    model.evaluate(X, Y, verbose=0)  # after which Keras' own averages are deleted arrays
    optimizer.save_own_variables({})


def test_accumulated_gradients(values):
    """Two steps of Optax, each with the mean of two; the fifth step only adds up."""
    tx = optax.adam(1e-2)
    optimizer = as_optimizer(tx, gradient_accumulation_steps=2)
    model = trained(optimizer)
    other = made()
    other.compile(as_optimizer(tx), "mse")
    half = slice(0, 4 * BATCH)
    other.fit(**DATA | {"x": X[half], "y": Y[half], "batch_size": 2 * BATCH})
    jax.tree.map(close, values(optimizer.weights_tree()), values(other.optimizer.weights_tree()))
    assert int(optimizer.state[0].count.value) == 2
    assert int(model.optimizer.iterations) == 2


def test_a_constant_loss_scale(assert_same):
    """A power of two does not round."""
    tx = contrib.momo(1.0)
    optimizer = as_optimizer(tx, loss_scale_factor=2.0**10)
    expected = native(made(), tx)
    trained(optimizer)
    assert_same(result_of(optimizer), expected)


def test_a_loss_scale_optimizer(values):
    """The transformation gets gradients and loss as if nothing was scaled, and no bad step."""
    tx = optax.chain(optax.sgd(0.1), contrib.reduce_on_plateau(patience=0))
    expected = native(made(), tx)
    optimizer = as_optimizer(tx)
    model = trained(keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**10))
    jax.tree.map(close, values(result_of(optimizer)), values(expected))
    before = result_of(optimizer)
    bad = np.full_like(X[:BATCH], np.inf)
    model.fit(bad, Y[:BATCH], verbose=0)
    jax.tree.map(np.testing.assert_array_equal, values(result_of(optimizer)), values(before))
    assert float(model.optimizer.dynamic_scale.value) == 2.0**9


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_precision(policy):
    """State has the dtype of its weight, and a learning rate of Keras does not widen it."""
    keras.config.set_dtype_policy(policy)
    optimizer = OptaxOptimizer(optax.sgd, 0.1)
    inner = OptaxOptimizer(functools.partial(optax.adamw, mu_dtype=None), 1e-2)
    for one in (optimizer, inner):
        model = trained(one)
        expected = "float32" if policy.startswith("mixed") else "bfloat16"
        assert {v.dtype for v in model.trainable_variables if "dense" in v.path} == {expected}
    for path, weight in (("mu", "dense"), ("nu", "dense")):
        leaf = getattr(inner.state[0], path)[weight]["kernel"]
        assert leaf.dtype == expected
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (
        policy == "mixed_float16"
    )


def test_a_learning_rate_does_not_widen(assert_same):
    """The bits of a weight in bfloat16 are those that a number in the transformation gives."""
    random = np.random.default_rng(0)
    start, grad = (jnp.array(random.normal(size=100), "bfloat16") for _ in range(2))
    weight = keras.Variable(start, dtype="bfloat16", name="weight")
    OptaxOptimizer(optax.sgd, 0.1).apply([grad], [weight])
    updates, _ = optax.sgd(0.1).update(grad, optax.sgd(0.1).init(start), start)
    assert_same(weight.value, optax.apply_updates(start, updates))


def test_constraints():
    """Keras applies them after the update."""
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(1, kernel_constraint=keras.constraints.NonNeg())
    model = keras.Model(inputs, dense(inputs))
    model.compile(as_optimizer(optax.sgd(0.5)), "mse")
    model.fit(**DATA)
    assert (dense.kernel.numpy() >= 0).all()
    assert (dense.kernel.numpy() == 0).any()


# Refused by name.


def test_weight_decay_of_keras():
    for use in (
        lambda: as_optimizer(optax.adam(1e-2), weight_decay=0.1),
        lambda: as_optimizer(optax.adam(1e-2)).exclude_from_weight_decay(var_names=["bias"]),
    ):
        with pytest.raises(OptaxError, match=r"weight_decay= is Keras' own, .*optax\.adamw"):
            use()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            optax.polyak_sgd,
            {"gradient_accumulation_steps": 2},
            r"`value`, and is not given it: gradient_.*MultiSteps",
        ),
        (
            optax.lbfgs,
            {"global_clipnorm": 1.0},
            r"`grad`, and is not given it: global_clipnorm= .*optax\.chain",
        ),
    ],
)
def test_extra_arguments_that_would_be_wrong(make, options, message):
    with pytest.raises(OptaxError, match=message):
        trained(as_optimizer(make(), **options))


# Weights to evaluate that are not those to train.

DATA_TO_EVALUATE = {"validation_data": (X, Y), "validation_batch_size": 20}


def test_schedule_free(assert_same, values):
    """`swapped` and the callback evaluate with the same weights, and training goes on as it was."""
    tx = contrib.schedule_free_sgd(0.1)
    expected = native(made(), tx, 5)
    optimizer = as_optimizer(tx)
    model = made()
    model.compile(optimizer, "mse")
    swap = SwapWeights(contrib.schedule_free_eval_params)
    history = model.fit(**DATA, **DATA_TO_EVALUATE, callbacks=[swap])
    assert_same(result_of(optimizer), expected)
    trained_loss = model.evaluate(X, Y, batch_size=20, verbose=0)
    with optimizer.swapped(contrib.schedule_free_eval_params):
        params = optimizer.weights_tree()
        loss = model.evaluate(X, Y, batch_size=20, verbose=0)
    jax.tree.map(
        close, values(params), values(contrib.schedule_free_eval_params(expected[1], expected[0]))
    )
    assert history.history["val_loss"] == [loss]
    assert loss != trained_loss
    assert_same(result_of(optimizer), expected)
    with optimizer.swapped(lambda state, params: state.z):
        model.evaluate(X, Y, batch_size=20, verbose=0)  # deletes the arrays of the weights
    assert_same(result_of(optimizer), expected)
    swapped = model.predict(X, verbose=0, callbacks=[swap])
    assert not np.array_equal(swapped, model.predict(X, verbose=0))


def test_checkpoints_of_the_other_weights(tmp_path, assert_same):
    """From the end of an epoch on, and training still goes on as it was."""
    tx = contrib.schedule_free_sgd(0.1)
    plain, swapping = as_optimizer(tx), as_optimizer(tx)
    one, other = made(), made()
    one.compile(plain, "mse")
    one.fit(**DATA, epochs=2)
    other.compile(swapping, "mse")
    swap = SwapWeights(contrib.schedule_free_eval_params, on_epoch_end=True)
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    other.fit(**DATA, **DATA_TO_EVALUATE, epochs=2, callbacks=[swap, save])
    assert_same(result_of(swapping), result_of(plain))
    with plain.swapped(contrib.schedule_free_eval_params):
        expected = plain.weights_tree()
    other.load_weights(tmp_path / "2.weights.h5")
    assert_same(swapping.weights_tree(), expected)


def test_swapping_that_goes_wrong():
    model = trained(as_optimizer(optax.sgd(0.1)))
    before = model.get_weights()
    message = "The swapped function of the transformation of optax_optimizer raised AttributeError"
    with (
        pytest.raises(OptaxError, match=message),
        model.optimizer.swapped(contrib.schedule_free_eval_params),
    ):
        pass
    with pytest.raises(KeyError), model.optimizer.swapped(lambda state, params: params):
        raise KeyError
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    model.compile("adam", "mse")
    with pytest.raises(OptaxError, match=r"needs an OptaxOptimizer, .* compiled with a Adam"):
        model.evaluate(X, Y, verbose=0, callbacks=[SwapWeights(lambda state, params: params)])


def test_as_optimizer_takes_keras_own():
    adam = keras.optimizers.Adam()
    assert as_optimizer(adam) is adam
    with pytest.raises(OptaxError, match="takes a transformation of Optax"):
        as_optimizer(adam, 0.1)
