"""What an update needs beside gradients and state: it is given, or told to be missing."""

import jax
import jax.numpy as jnp
import keras
import optax
import pytest
from optax import contrib

from jaxlayer_optax import OptaxError, as_optimizer

from .models import DATA, OneDense, X, Y, made


def variable(value=1.0):
    return keras.Variable([value], name="weight")


def message_of(tx, use=lambda optimizer, weight: optimizer.apply([jnp.ones(1)], [weight])):
    """The error of an update in a loop of one's own."""
    with pytest.raises(OptaxError) as caught:
        use(as_optimizer(tx), variable())
    assert caught.value.__cause__ is not None
    return str(caught.value)


def fitted(optimizer):
    model = made()
    model.compile(optimizer, "mse")
    model.fit(**DATA)
    return model


def transformation(update):
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


# The weights.


@pytest.mark.parametrize("make", [optax.adamw, optax.lamb])
def test_the_weights_are_always_given(make):
    """Optax raises where they are not. Here every way of training gives them."""
    tx, seen = make(1e-2), []
    with pytest.raises(ValueError, match="params"):
        tx.update({"a": jnp.ones(1)}, tx.init({"a": jnp.ones(1)}))

    def init(params):
        seen.append(params)
        return tx.init(params)

    def update(updates, state, params=None):
        seen.append(params)
        return tx.update(updates, state, params)

    recorded = optax.GradientTransformation(init, update)
    optimizer, weight, grads = as_optimizer(recorded), variable(3.0), [jnp.ones(1)]
    optimizer.apply(grads, [weight])
    optimizer.apply(grads)
    optimizer.apply_gradients([(grads[0], weight)])
    optimizer.stateless_apply([v.value for v in optimizer.variables], grads, [weight.value])
    before, *others = [float(params["weight"][0]) for params in seen]
    assert before == others[0] == 3 > others[1] > others[2] > others[3]
    assert len(others) == 4
    seen.clear()
    expected = jax.tree.structure(fitted(as_optimizer(recorded)).optimizer.weights_tree())
    assert len(seen) >= 2
    assert {jax.tree.structure(params) for params in seen} == {expected}


# Values that only Keras' own train step has.


def lookup(updates, state, params=None, **extra_args):
    return jax.tree.map(lambda update: update * extra_args["value"], updates), state


def lenient(updates, state, params=None, *, value=None, **extra_args):
    return jax.tree.map(lambda update: update * (value + 1), updates), state


NEEDS = {
    "lbfgs": (optax.lbfgs, ["value", "grad", "value_fn"], True),
    "polyak": (optax.polyak_sgd, ["value"], False),
    "sam": (
        lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=True),
        ["grad_fn"],
        True,
    ),
    "lookup": (lambda: transformation(lookup), ["value"], False),
}


@pytest.mark.parametrize(("make", "names", "has_trees"), NEEDS.values(), ids=NEEDS)
def test_a_loop_of_ones_own(make, names, has_trees):
    """All that is missing is named, and what to type."""
    *others, last = (f"`{name}`" for name in names)
    listed, them = (f"{', '.join(others)} and {last}", "them") if others else (last, "it")
    message = message_of(make())
    assert message.startswith(
        f"The transformation of optax_optimizer needs {listed}, and is not given {them}: this is "
        f"not Keras' own train step. Train with fit, which gives {them}, or give {them} around the "
        f"update: with optimizer.extra_args({', '.join(f'{name}=...' for name in names)}): "
        "optimizer.apply(...)."
    )
    assert ("optimizer.nest and optimizer.flatten convert" in message) == has_trees
    assert "Its update raised" in message


def test_what_is_given_is_not_missing():
    def use(optimizer, weight):
        with optimizer.extra_args(value=1.0, grad={"weight": jnp.ones(1)}):
            optimizer.apply([jnp.ones(1)], [weight])

    message = message_of(optax.scale_by_backtracking_linesearch(5), use)
    assert "needs `value_fn`, and is not given it" in message


def test_an_error_that_names_nothing():
    """An update that goes on without, until something else is wrong."""
    message = message_of(transformation(lenient))
    assert "The update of the transformation of optax_optimizer raised TypeError" in message
    assert "It may need `value`, `value_fn`, `grad`, `grad_fn` and `obj_fn`, and is not" in message


class OwnStep(OneDense):
    def train_step(self, state, data):
        trainable, rest, optimizer, metrics = state
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, trainable, trainable)
        return {}, (trainable, rest, optimizer, metrics)


def test_a_train_step_of_ones_own():
    model = OwnStep()
    model(X)
    model.compile(as_optimizer(optax.polyak_sgd()), "mse")
    with pytest.raises(OptaxError, match="needs `value`, and is not given it: this is not Keras'"):
        model.fit(X, Y, verbose=0)


def test_the_step_of_another_model():
    """What is updated inside of the step of another model's weights does not get its loss."""
    weight = variable()
    inner = as_optimizer(optax.polyak_sgd())
    inner.build([weight])

    class Outer(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            inner.apply([jnp.ones(1)], [weight])

    with pytest.raises(OptaxError, match="needs `value`, and is not given it: this is not Keras'"):
        fitted(Outer())


# Values that nobody has, and parts that do not agree.


def sized(updates, state, params=None, *, batch_size, **extra_args):
    return updates, state


def test_an_argument_that_keras_does_not_have():
    """It can be given around `fit`, too."""
    tx = transformation(sized)
    message = (
        r"needs `batch_size`, and is not given it: Keras has no such thing\. Give it around the "
        r"update, or around fit .*with optimizer\.extra_args\(batch_size=\.\.\.\): model\.fit"
    )
    with pytest.raises(OptaxError, match=message):
        fitted(as_optimizer(tx))
    optimizer = as_optimizer(tx)
    with optimizer.extra_args(batch_size=4):
        fitted(optimizer)


def refusing(updates, state, params=None):
    return updates, state


def test_a_part_that_refuses_what_another_needs():
    """It can be made a transformation that is given nothing."""
    part = transformation(refusing)
    polyak = optax.polyak_sgd()
    message = (
        r"needs `value`, and is not given it: another part of the transformation does not take it\."
        r" Hide it from that part: optax\.GradientTransformation\(part\.init, part\.update\)"
    )
    with pytest.raises(OptaxError, match=message):
        fitted(as_optimizer(optax.chain(part, polyak)))
    hidden = optax.GradientTransformation(part.init, part.update)
    fitted(as_optimizer(optax.chain(hidden, polyak)))


def test_what_a_user_gives_is_not_taken_away():
    def use(optimizer, weight):
        with optimizer.extra_args(speed=1.0):
            optimizer.apply([jnp.ones(1)], [weight])

    tx = optax.chain(transformation(refusing))
    assert "raised TypeError: refusing() got an unexpected keyword arg" in message_of(tx, use)
