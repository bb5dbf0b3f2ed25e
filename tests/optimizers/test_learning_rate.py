"""The learning rate as Keras' callbacks see it."""

import functools

import keras
import numpy as np
import optax
import pytest

from jaxlayer_core import BuildError
from jaxlayer_optax import OptaxError, OptaxOptimizer, as_optimizer

from .models import DATA, STEPS, made, native

KINDS = {
    "factory": lambda: OptaxOptimizer(optax.sgd, learning_rate=0.1),
    "inject_hyperparams": lambda: as_optimizer(
        optax.chain(optax.clip(10.0), optax.inject_hyperparams(optax.sgd)(learning_rate=0.1))
    ),
}


def compiled(optimizer):
    model = made()
    model.compile(optimizer, "mse")
    return model


@pytest.fixture(params=KINDS)
def optimizer(request):
    return KINDS[request.param]()


def test_it_can_be_set_between_steps(optimizer, assert_same):
    model = compiled(optimizer)
    one, state = native(model, optax.sgd(0.1))
    expected, _ = native(model, optax.sgd(0.05), start=(one, state, 0))
    model.fit(**DATA)
    assert float(optimizer.learning_rate) == np.float32(0.1)
    optimizer.learning_rate = 0.05
    assert float(optimizer.learning_rate) == np.float32(0.05)
    model.fit(**DATA)
    assert_same(optimizer.weights_tree(), expected)


def test_callbacks(optimizer):
    """One halves it in each epoch, one cuts it as the loss does not become better."""
    model = compiled(optimizer)
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    cut = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=1e9)
    history = model.fit(**DATA, epochs=3, callbacks=[halve, cut])
    assert history.history["learning_rate"] == pytest.approx([0.05, 0.025, 0.00125])
    assert float(optimizer.learning_rate) == pytest.approx(0.000125)


def test_a_loss_scale_optimizer_around_it(optimizer):
    model = compiled(keras.optimizers.LossScaleOptimizer(optimizer))
    model.fit(**DATA)
    model.optimizer.learning_rate = 0.5
    assert float(optimizer.learning_rate) == 0.5


@pytest.mark.parametrize(
    "schedule",
    [optax.linear_schedule(0.1, 0.0, 10), keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.0)],
    ids=["Optax", "Keras"],
)
def test_a_schedule_is_seen(schedule):
    optimizer = OptaxOptimizer(optax.sgd, learning_rate=schedule)
    compiled(optimizer).fit(**DATA)
    assert float(optimizer.learning_rate) == pytest.approx(0.1 * (1 - STEPS / 10))
    with pytest.raises(TypeError, match="its learning rate is not settable"):
        optimizer.learning_rate = 0.1


def test_a_schedule_in_place_of_a_number():
    optimizer = OptaxOptimizer(optax.sgd, learning_rate=0.1)
    optimizer.learning_rate = optax.constant_schedule(0.3)
    compiled(optimizer).fit(**DATA)
    assert np.float32(optimizer.learning_rate) == np.float32(0.3)
    assert "learning_rate" not in [variable.name for variable in optimizer.variables]


def test_a_function_without_arguments_as_keras_takes_it():
    optimizer = OptaxOptimizer(optax.sgd, learning_rate=lambda: 0.2)
    assert optimizer.learning_rate == 0.2


# What cannot be seen or set.


def test_inside_of_functions():
    optimizer = as_optimizer(optax.adam(1e-3))
    model = compiled(optimizer)
    with pytest.raises(BuildError, match=r"not made yet. Build it first: optimizer\.build"):
        _ = optimizer.learning_rate
    model.fit(**DATA)
    message = r"cannot be seen or set: .*OptaxOptimizer\(optax.adamw, learning_rate=1e-3\)"
    with pytest.raises(OptaxError, match=message):
        _ = optimizer.learning_rate
    with pytest.raises(OptaxError, match=message):
        optimizer.learning_rate = 0.1
    with pytest.raises(OptaxError, match=message):
        model.fit(**DATA, callbacks=[keras.callbacks.LearningRateScheduler(lambda _: 0.1)])


def test_several(assert_same):
    inject = optax.inject_hyperparams(optax.sgd)
    optimizer = as_optimizer(optax.chain(inject(learning_rate=0.1), inject(learning_rate=0.2)))
    model = compiled(optimizer)
    model.fit(**DATA)
    message = r"has 2 learning rates: 0/hyperparams/learning_rate, 1/.*optimizer\.state"
    with pytest.raises(OptaxError, match=message):
        _ = optimizer.learning_rate
    before = optimizer.weights_tree()
    optimizer.state[0].hyperparams["learning_rate"].assign(0.0)
    model.fit(**DATA)
    assert_same(optimizer.weights_tree(), before)


def test_a_schedule_in_the_state():
    optimizer = as_optimizer(
        optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(0.1, 0.0, 10))
    )
    compiled(optimizer).fit(**DATA)
    assert float(optimizer.learning_rate) == pytest.approx(0.1 * (1 - (STEPS - 1) / 10))
    with pytest.raises(OptaxError, match="comes from the schedule"):
        optimizer.learning_rate = 0.1


def test_a_schedule_for_a_number_in_the_state():
    optimizer = KINDS["inject_hyperparams"]()
    compiled(optimizer).fit(**DATA)
    with pytest.raises(OptaxError, match=r"takes a number, .*to optax\.inject_hyperparams"):
        optimizer.learning_rate = optax.constant_schedule(0.3)


@pytest.mark.parametrize(
    ("tx", "rate", "message"),
    [
        (optax.adam(1e-3), 0.1, r"has its learning rate inside, and learning_rate= beside it"),
        (optax.clip, 0.1, r"clip takes no argument `learning_rate`"),
        (optax.sgd, "fast", r"is a number or a schedule, got 'fast'"),
        (optax.sgd, None, r"sgd\(\), .* raised TypeError: .* give learning_rate="),
        (functools.partial(optax.sgd, momentun=1), 0.1, r"raised TypeError: .*momentun"),
        (3, None, r"takes a transformation of Optax, .* got 3 of type int"),
        (lambda: 3, None, r"should make a transformation of Optax, and made 3"),
        (lambda learning_rate: 3, 0.1, r"should make a transformation of Optax, and made 3"),
    ],
)
def test_what_is_refused(tx, rate, message):
    with pytest.raises(OptaxError, match=message):
        OptaxOptimizer(tx, rate).build([])
