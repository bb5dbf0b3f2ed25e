"""Which weights Optax sees, under which names, and what is kept for them."""

import contextlib

import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

from jaxlayer_core import BuildError, PatternError, StructureError
from jaxlayer_optax import Labels, Matching, OptaxError, as_optimizer
from jaxlayer_optax.weights import Weights

from .models import DATA, made, native


def variables(*paths):
    """Weights with these paths; each holds its number."""
    found = []
    for number, path in enumerate(paths):
        *outer, name = path.split("/")
        with contextlib.ExitStack() as stack:
            for part in outer:
                stack.enter_context(keras.name_scope(part))
            found.append(keras.Variable([float(number)], name=name))
    return found


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["dense/kernel", "dense/bias"], {"dense": {"kernel": 0, "bias": 1}}),
        (["a", "a"], {"a": 0, "a_1": 1}),
        (["a/b", "a/b", "a/b_1"], {"a": {"b": 0, "b_1": 1, "b_1_1": 2}}),
        (["a", "a/b", "a/c"], {"a": 0, "a_1": {"b": 1, "c": 2}}),
        (["a/b", "a"], {"a": {"b": 0}, "a_1": 1}),
        ([], {}),
    ],
)
def test_names(paths, expected):
    weights = Weights(variables(*paths))
    assert weights.nest(range(len(paths))) == expected
    assert weights.flatten(expected) == list(range(len(paths)))


def test_other_values_than_of_the_weights():
    optimizer = as_optimizer(optax.sgd(0.1))
    optimizer.build(variables("a/b", "c"))
    assert optimizer.flatten(optimizer.nest([1, 2])) == [1, 2]
    with pytest.raises(StructureError, match="a value for each of the 2 weights, and got 3"):
        optimizer.nest([1, 2, 3])
    with pytest.raises(StructureError, match=r"flatten takes a nested dict .* got another"):
        optimizer.flatten({"a": 1, "c": 2})


def test_variables_are_named_by_the_weights():
    optimizer = as_optimizer(optax.adam(1e-3), name="adam")
    model = made()
    model.compile(optimizer, "mse")
    model.fit(**DATA)
    weights = [variable.path for variable in model.trainable_variables]
    assert "flax/params/Dense_0/kernel" in weights
    expected = {"adam/iteration", "adam/0/count"}
    expected |= {f"adam/0/{kind}/{path}" for kind in ("mu", "nu") for path in weights}
    assert {variable.path for variable in optimizer.variables} == expected
    assert optimizer.state[0].mu["dense"]["kernel"].shape == (6, 1)


def test_leaves_that_are_not_arrays(assert_same):
    """Numbers and keys of the state are variables; what is no array stays as it is."""
    state = {"count": 0, "is_on": True, "key": jnp.zeros(2, "uint32"), "name": "x", "none": None}

    def update(updates, state, params=None):
        return updates, {**state, "count": state["count"] + 1, "is_on": ~state["is_on"]}

    optimizer = as_optimizer(optax.GradientTransformation(lambda _: state, update))
    model = made()
    model.compile(optimizer, "mse")
    model.fit(**DATA)
    got = optimizer.state_tree()
    assert (int(got["count"]), bool(got["is_on"]), got["name"]) == (5, False, "x")
    assert got["is_on"].dtype == bool


def test_a_state_that_begins_as_the_weights(assert_same):
    """Keras donates both; one array for both would be deleted."""
    tx = optax.GradientTransformation(lambda params: params, lambda u, s, p=None: (u, s))
    optimizer = as_optimizer(tx)
    model = made()
    model.compile(optimizer, "mse")
    before = [v.numpy() for v in model.trainable_variables]
    model.fit(**DATA)
    assert_same(optimizer._weights.flatten(optimizer.state_tree()), before)


# Frozen weights.


def test_frozen_weights_have_no_state(assert_same):
    model = made()
    model.get_layer("flax").trainable = False
    tx = optax.adamw(1e-2)
    expected = native(model, tx)
    optimizer = as_optimizer(tx)
    model.compile(optimizer, "mse")
    frozen = [v.numpy() for v in model.non_trainable_variables]
    model.fit(**DATA)
    assert not [v.path for v in optimizer.variables if "flax" in v.path]
    assert_same((optimizer.weights_tree(), optimizer.state_tree()), expected)
    assert_same([v.numpy() for v in model.non_trainable_variables], frozen)


def test_freezing_a_part_and_compiling_again():
    model = made()
    tx = optax.adam(1e-2)
    model.compile(as_optimizer(tx), "mse")
    model.fit(**DATA)
    old = model.optimizer
    model.get_layer("flax").freeze("kernel")
    model.compile(as_optimizer(tx), "mse")
    model.fit(**DATA)
    assert len(model.optimizer.variables) == 2 + 2 * 3
    model.compile(old, "mse")
    message = "was built for 4 weights, and is now given 3, or others.*compile again with a new one"
    with pytest.raises(StructureError, match=message):
        model.fit(**DATA)


def test_nothing_to_train():
    model = made()
    model.trainable = False
    model.compile(as_optimizer(optax.adam(1e-2)), "mse")
    before = model.get_weights()
    model.fit(**DATA)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


# Two optimizers for one weight, and one for two models.


def test_one_optimizer_for_two_models():
    optimizer = as_optimizer(optax.adam(1e-2))
    first, second = made(), keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    first.compile(optimizer, "mse")
    first.fit(**DATA)
    second.compile(optimizer, "mse")
    with pytest.raises(StructureError, match=r"make a new one for another model"):
        second.fit(**DATA)
    with pytest.raises(StructureError, match=r"make a new one for another model"):
        optimizer.build(second.trainable_variables)
    optimizer.build(first.trainable_variables)


def test_one_weight_twice():
    one, two = variables("one", "two")
    with pytest.raises(StructureError, match=r"The weight 'one' is given to the optimizer twice"):
        as_optimizer(optax.adam(1e-2)).build([one, two, one])


def test_two_labels_for_one_weight():
    labels = Labels({"kernel$": "adam", "flax": "sgd"}, default="sgd")
    tx = optax.multi_transform({"adam": optax.adam(1e-2), "sgd": optax.sgd(0.1)}, labels)
    message = r"flax/params/Dense_0/kernel` would be updated twice: 'kernel\$' says 'adam', 'flax'"
    with pytest.raises(PatternError, match=message):
        as_optimizer(tx).build(made().trainable_variables)


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (
            lambda params: Labels({"kernel": "a"})(params),
            "no expression matches the weight `.*bias",
        ),
        (lambda params: Labels({"kernal": "a"}, "b")(params), "'kernal' matches no path.*kernel"),
        (lambda params: Matching("kernal")(params), "'kernal' matches no path.*kernel"),
        (lambda params: Matching("("), "not a regular expression"),
        (lambda params: Labels({3: "a"}), "takes regular expressions"),
    ],
)
def test_bad_patterns(choose, message):
    params = Weights(made().trainable_variables).tree()
    with pytest.raises(PatternError, match=message):
        choose(params)


def test_some_of_the_weights():
    weights = variables("one", "two")
    optimizer = as_optimizer(optax.adam(1e-2))
    optimizer.build(weights)
    with pytest.raises(StructureError, match="Optax updates all weights at once"):
        optimizer.apply([jnp.ones(1)], weights[:1])


def test_weights_that_keras_sets_itself():
    """Scales of 8-bit training: their gradient is their value, and Optax does not see them."""
    weight, scale = variables("weight", "scale")
    scale.overwrite_with_gradient = True
    optimizer = as_optimizer(optax.adam(1e-2))
    optimizer.apply([jnp.ones(1), jnp.full(1, 7.0)], [weight, scale])
    assert float(scale[0]) == 7
    assert set(optimizer.weights_tree()) == {"weight"}
    optimizer.save_own_variables({})


def test_a_weight_without_a_gradient():
    """It gets zeros, as from `jax.grad`: decay still moves it."""
    one, two = variables("one", "two")
    optimizer = as_optimizer(optax.chain(optax.add_decayed_weights(1.0), optax.sgd(0.5)))
    with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
        optimizer.apply([jnp.ones(1), None], [one, two])
    assert (float(one[0]), float(two[0])) == (-0.5, 0.5)


@pytest.mark.skipif(not hasattr(keras.optimizers, "OptimizerMap"), reason="Keras has none yet")
def test_keras_sends_weights_to_several():
    """Each then sees only its own, and the loss as a function of these."""
    model = made()
    slow, fast = as_optimizer(optax.lbfgs(0.1)), as_optimizer(optax.adam(1e-2))
    choose = keras.optimizers.OptimizerMap(fast, {".*flax.*": slow})
    model.compile(keras.optimizers.MultiOptimizer(choose), "mse")
    model.fit(**DATA)
    assert set(slow.weights_tree()) == {"flax"}
    assert set(fast.weights_tree()) == {"dense"}


@pytest.mark.skipif(not hasattr(keras.optimizers, "OptimizerMap"), reason="Keras has none yet")
def test_keras_sends_a_weight_to_two():
    other, one, two = (as_optimizer(optax.sgd(0.1)) for _ in range(3))
    choose = keras.optimizers.OptimizerMap(other, {".*flax.*": one, ".*kernel.*": two})
    model = made()
    model.compile(keras.optimizers.MultiOptimizer(choose), "mse")
    with pytest.raises(ValueError, match="Multiple optimizers assigned to variable flax/params"):
        model.fit(**DATA)


def test_two_that_take_turns():
    """A weight may get another optimizer while the old one is still there."""
    weight = variables("weight")
    first, second = as_optimizer(optax.sgd(0.5)), as_optimizer(optax.sgd(0.25))
    for optimizer in (first, second, first):
        optimizer.apply([jnp.ones(1)], weight)
    assert float(weight[0][0]) == -1.25


# What a transformation cannot do.


def nothing(params):
    return optax.EmptyState()


def message_of(optimizer, **options):
    model = made()
    model.compile(optimizer, "mse", **options)
    with pytest.raises(OptaxError) as caught:
        model.fit(**DATA)
    assert caught.value.__cause__ is not None
    return str(caught.value)


def test_an_update_that_raises():
    def update(updates, state, params=None):
        raise KeyError("oh")

    message = message_of(as_optimizer(optax.GradientTransformation(nothing, update)))
    assert "The update of the transformation of optax_optimizer raised KeyError: 'oh'" in message
    assert "one nested dict of the weights by path" in message


def test_an_init_that_raises():
    labels = Labels({"kernel": "a"}, "b")
    message = message_of(as_optimizer(optax.multi_transform({"a": optax.sgd(0.1)}, labels)))
    assert "The init of the transformation of optax_optimizer raised ValueError" in message
    assert "no corresponding transformation" in message


@pytest.mark.filterwarnings("ignore")
def test_other_trees_than_the_weights():
    """Two sets of weights, and a gradient for each example: Keras has neither."""
    message = message_of(as_optimizer(optax.lookahead(optax.sgd(0.1), 2, 0.5)))
    assert "'dict' object has no attribute 'fast'. It works on one nested dict" in message
    message = message_of(as_optimizer(optax.contrib.dpsgd(0.1, 1.0, 1.0, 0)))
    assert "batch dimension in the 0th axis" in message


def test_a_state_that_changes():
    def update(updates, state, params=None):
        return updates, {**state, "more": 1.0}

    tx = optax.GradientTransformation(lambda params: {"one": 1.0}, update)
    model = made()
    model.compile(as_optimizer(tx), "mse")
    with pytest.raises(StructureError, match=r"transformation of optax_optimizer .*\['more'\]"):
        model.fit(**DATA)


@pytest.mark.skipif(not hasattr(optax, "monitor"), reason="Optax has none yet")
def test_a_monitor():
    """Its measurements are no part of its first state."""
    monitor = optax.monitor({"norm": optax.tree.norm})
    (weight,) = variables("weight")
    with pytest.raises(StructureError, match=r"was not initialised with: \['measurements/norm'\]"):
        as_optimizer(monitor).apply([jnp.ones(1)], [weight])


def test_before_it_is_built():
    optimizer = as_optimizer(optax.adam(1e-3))
    for use in (
        optimizer.state_tree,
        optimizer.weights_tree,
        lambda: optimizer.state,
        lambda: optimizer.nest([]),
        lambda: optimizer.flatten({}),
    ):
        with pytest.raises(BuildError, match=r"no state before it is built.*optimizer\.build"):
            use()
