"""Five steps of `fit` are five steps of a loop with Optax alone, bit for bit."""

import functools
import inspect
import sys

import jax
import keras
import numpy as np
import optax
import pytest
from optax import contrib

from jaxlayer_optax import Labels, Matching, OptaxOptimizer, as_optimizer

from .models import BATCH, DATA, OneDense, X, Y, made, native, params_of, result_of
from .shampoo import shampoo

pytestmark = pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated:DeprecationWarning")
KERNELS = Matching("kernel$")


def _is_even(step):
    return step % 2 == 0


# What people use, and each kind of state and of extra argument.
USUAL = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1, mask=KERNELS),
    "schedule": lambda: optax.adam(optax.cosine_decay_schedule(1e-2, 10)),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.lamb(1e-2)),
    "named_chain": lambda: optax.named_chain(("a", optax.clip(0.1)), ("b", optax.yogi(1e-2))),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "masked": lambda: optax.masked(optax.adam(1e-2), KERNELS),
    "multi_transform": lambda: optax.multi_transform(
        {"slow": optax.sgd(1e-3), "fast": optax.adam(1e-2)}, Labels({"flax/": "slow"}, "fast")
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(
        learning_rate=optax.linear_schedule(1e-2, 0.0, 5), b2=0.99
    ),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2), every_k_schedule=2),
    "add_noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, 3), optax.sgd(0.1)),
    "schedule_free": lambda: contrib.schedule_free_adamw(1e-2),
    "reduce_on_plateau": lambda: optax.chain(
        optax.adam(1e-2), contrib.reduce_on_plateau(patience=1)
    ),
    "lbfgs": lambda: optax.lbfgs(),
    "sam": lambda: contrib.sam(
        optax.sgd(0.1), optax.chain(contrib.normalize(), optax.sgd(0.05)), opaque_mode=True
    ),
}
MORE = {
    "acprop": lambda: contrib.acprop(1e-2),
    "adabelief": lambda: optax.adabelief(1e-2),
    "adadelta": lambda: optax.adadelta(1e-2),
    "adagrad": lambda: optax.adagrad(1e-2),
    "adamax": lambda: optax.adamax(1e-2),
    "adamaxw": lambda: optax.adamaxw(1e-2),
    "adan": lambda: optax.adan(1e-2),
    "amsgrad": lambda: optax.amsgrad(1e-2),
    "apply_every": lambda: optax.chain(optax.trace(0.9), optax.apply_every(2), optax.scale(-0.1)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
    "clipping": lambda: optax.chain(
        optax.zero_nans(),
        optax.adaptive_grad_clip(0.1),
        optax.centralize(),
        optax.clip_by_block_rms(0.1),
        optax.scale_by_rss(),
        optax.scale_by_stddev(),
        optax.scale_by_param_block_norm(),
        optax.scale_by_param_block_rms(),
        optax.sgd(0.1),
        optax.keep_params_nonnegative(),
    ),
    "cocob": lambda: contrib.cocob(),
    "conditional": lambda: optax.chain(
        optax.conditionally_mask(optax.adam(1e-2), _is_even),
        optax.conditionally_transform(optax.scale(0.5), _is_even),
    ),
    "dadapt_adamw": lambda: contrib.dadapt_adamw(1.0),
    "dog": lambda: contrib.dog(1.0),
    "dowg": lambda: contrib.dowg(1.0),
    "fromage": lambda: optax.fromage(1e-2),
    "lars": lambda: optax.lars(1e-2),
    "lion": lambda: optax.lion(1e-2),
    "line_search": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)
    ),
    "mechanize": lambda: contrib.mechanize(optax.sgd(0.1)),
    "momo": lambda: contrib.momo(1.0),
    "nadam": lambda: optax.nadam(1e-2),
    "nadamw": lambda: optax.nadamw(1e-2),
    "noisy_sgd": lambda: optax.noisy_sgd(1e-2, 0.01, 0.55, 3),
    "novograd": lambda: optax.novograd(1e-2),
    "optimistic": lambda: optax.optimistic_gradient_descent(1e-2),
    "polyak_sgd": lambda: optax.polyak_sgd(),
    "radam": lambda: optax.radam(1e-2),
    "rmsprop": lambda: optax.rmsprop(1e-2),
    "rprop": lambda: optax.rprop(1e-2),
    "schedule_free_sgd": lambda: contrib.schedule_free_sgd(0.1),
    "shampoo": lambda: shampoo(0.1),
    "simple": lambda: optax.chain(
        optax.identity(),
        optax.stateless(lambda updates, params: updates),
        optax.stateless_with_tree_map(lambda update, param: update * 2),
        optax.ema(0.9),
        optax.flatten(optax.sgd(0.1)),
        contrib.split_real_and_imaginary(optax.scale(2.0)),
    ),
    "zero": lambda: optax.multi_transform(
        {"zero": optax.set_to_zero(), "sgd": optax.sgd(0.1)}, Labels({"flax/": "zero"}, "sgd")
    ),
}
# What Optax has gained since the lowest version that is supported.
LATER = {
    "ademamix": lambda: contrib.ademamix(1e-2),
    "adopt": lambda: contrib.adopt(1e-2),
    "freeze": lambda: optax.chain(
        optax.freeze({"flax": True, "dense": False}),
        optax.selective_transform(optax.sgd(0.1), freeze_mask={"flax": True, "dense": False}),
    ),
    "galore": lambda: contrib.galore(1e-2, 2),
    "madgrad": lambda: contrib.madgrad(1e-2),
    "muon": lambda: contrib.muon(1e-2),
    "normalize_by_update_norm": lambda: optax.chain(optax.normalize_by_update_norm(), optax.sgd(1)),
    "optimistic_adam": lambda: optax.optimistic_adam(1e-2),
    "optimistic_adam_v2": lambda: optax.optimistic_adam_v2(1e-2),
    "scale_by_distance_over_gradients": lambda: optax.chain(
        optax.scale_by_distance_over_gradients(), optax.sgd(1.0)
    ),
    "sign_sgd": lambda: optax.sign_sgd(1e-2),
    "signum": lambda: optax.signum(1e-2),
    "snapshot": lambda: optax.chain(optax.snapshot("norm", optax.tree.norm), optax.sgd(0.1)),
    "simplified_ademamix": lambda: contrib.simplified_ademamix(1e-2),
    "sophia": lambda: contrib.sophia(1e-2),
}
for _name, _make in LATER.items():
    if hasattr(optax, _name) or hasattr(contrib, _name):
        (USUAL if _name in ("muon", "sophia") else MORE)[_name] = _make

# They add up many products, which XLA fuses in another way inside of Keras' step.
ROUNDED = {
    "momo_adam": lambda: contrib.momo_adam(1.0),
    "prodigy": lambda: contrib.prodigy(1.0),
    "sm3": lambda: optax.sm3(1.0),
}

NOT_TRIED = {
    "differentially_private_aggregate": "needs a gradient for each example, see test_weights.py",
    "dpsgd": "needs a gradient for each example, see test_weights.py",
    "inject_stateful_hyperparams": "what `inject_hyperparams` makes",
    "lookahead": "has two sets of weights, see test_weights.py",
    "measure_with_ema": "a part of `monitor`, whose state changes, see test_weights.py",
    "scale_by_zoom_linesearch": "made when `lbfgs` is defined, as its default",
}


@pytest.mark.skipif(not hasattr(optax, "freeze"), reason="the table is that of a later Optax")
def test_all_of_optax_is_in_the_table():
    """What makes a transformation is run by the table, or it says why not."""
    ran = set()

    def note(frame, event, _):
        ran.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for make in (USUAL | MORE | ROUNDED).values():
            make()
    finally:
        sys.setprofile(before)
    found = {
        name: inspect.unwrap(factory).__code__ in ran
        for name, factory in (vars(optax) | vars(contrib)).items()
        if inspect.isfunction(factory)
        and not name.startswith("_")
        and "GradientTransformation" in str(inspect.signature(factory).return_annotation)
    }
    assert len(found) > 90
    assert sorted(name for name, is_run in found.items() if not is_run) == sorted(NOT_TRIED)


def trained(tx, **options):
    """What `made()` is after five steps of `fit`."""
    model, optimizer = made(), as_optimizer(tx)
    model.compile(optimizer, "mse", **options)
    model.fit(**DATA)
    return result_of(optimizer)


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, id=name) for name, make in USUAL.items()),
        *(pytest.param(make, id=name, marks=pytest.mark.slow) for name, make in MORE.items()),
    ],
)
def test_five_steps(make, assert_same):
    tx = make()
    assert_same(trained(tx), native(made(), tx))


@pytest.mark.slow
@pytest.mark.parametrize("make", ROUNDED.values(), ids=ROUNDED)
def test_five_steps_but_for_the_order_of_sums(make, values, assert_same):
    """Compiled the same but for rounding, and the same bits operation by operation."""
    tx = make()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8),
        values(trained(tx)),
        values(native(made(), tx)),
    )
    with jax.disable_jit():
        assert_same(trained(tx, run_eagerly=True), native(made(), tx))


def plain(tx):
    """A transformation that is given no extra arguments."""
    return optax.GradientTransformation(tx.init, lambda u, s, p=None: tx.update(u, s, p))


def test_a_part_that_refuses_extra_arguments(assert_same):
    """A chain takes any, and hands them on to a part that takes none."""
    inner = optax.adam(1e-2)
    part = optax.GradientTransformationExtraArgs(inner.init, plain(inner).update)
    tx = optax.chain(optax.clip(0.1), part)
    assert_same(trained(tx), native(made(), plain(tx)))


@pytest.mark.slow
def test_a_published_optimizer_with_a_preconditioner_for_each_dimension(assert_same):
    """PSGD Kron. What is published as Shampoo runs with no JAX of today; `shampoo.py` does."""
    tx = pytest.importorskip("psgdax").kron(1e-2)
    assert_same(trained(tx), native(made(), plain(tx)))


@pytest.mark.parametrize(
    ("factory", "rate"),
    [
        (functools.partial(optax.adamw, weight_decay=0.1), 1e-2),
        (optax.sgd, optax.cosine_decay_schedule(0.1, 10)),
    ],
    ids=["number", "schedule"],
)
def test_five_steps_with_a_learning_rate_of_keras(factory, rate, assert_same):
    """The same weights. The state of a schedule is Keras' count of the steps."""
    model = made()
    expected, _ = native(model, factory(learning_rate=rate))
    optimizer = OptaxOptimizer(factory, learning_rate=rate)
    model.compile(optimizer, "mse")
    model.fit(**DATA)
    assert_same(optimizer.weights_tree(), expected)


def test_without_compiling(values):
    """`run_eagerly` runs operation by operation, which rounds in other places."""
    model, tx = made(), optax.chain(optax.adam(1e-2), contrib.reduce_on_plateau())
    expected, _ = native(model, tx)
    optimizer = as_optimizer(tx)
    model.compile(optimizer, "mse", run_eagerly=True)
    model.fit(**DATA)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5),
        values(optimizer.weights_tree()),
        values(expected),
    )


def test_several_steps_per_execution(assert_same):
    model, tx = made(), contrib.momo(1.0)
    expected = native(model, tx)
    optimizer = as_optimizer(tx)
    model.compile(optimizer, "mse", steps_per_execution=2)
    model.fit(**DATA)
    assert_same(result_of(optimizer), expected)


def test_a_loop_of_ones_own(assert_same):
    """Extra arguments are given by hand, and go before those of Keras."""
    model = made()
    tx = optax.chain(optax.sgd(0.1), contrib.reduce_on_plateau(patience=0, cooldown=0))
    optimizer = as_optimizer(tx)
    optimizer.build(model.trainable_variables)
    params = params_of(model)
    grads = [v.value * 0.1 for v in model.trainable_variables]
    state = tx.init(params)
    for value in (1.0, 2.0, 3.0):
        updates, state = tx.update(optimizer.nest(grads), state, params, value=value)
        params = optax.apply_updates(params, updates)
        with optimizer.extra_args(value=value):
            optimizer.apply(grads, model.trainable_variables)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), optimizer.weights_tree(), params
    )
    assert float(optimizer.state[1].scale.value) == float(state[1].scale) < 1


def test_all_arguments_in_a_loop_of_ones_own(assert_same):
    """`nest` and `flatten` are all that it takes."""
    model = made()
    tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5))
    expected = native(model, tx, 1)
    optimizer = as_optimizer(tx)
    optimizer.build(model.trainable_variables)

    @jax.jit
    def step(trainable, rest, state, x, y):
        def loss_of(params):
            outputs, _ = model.stateless_call(optimizer.flatten(params), rest, x, training=True)
            return keras.losses.MeanSquaredError()(y, outputs)

        loss, grads = jax.value_and_grad(loss_of)(optimizer.nest(trainable))
        with optimizer.extra_args(value=loss, grad=grads, value_fn=loss_of):
            return optimizer.stateless_apply(state, optimizer.flatten(grads), trainable)

    trainable, rest, state = (
        [v.value for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
    )
    trainable, _ = step(trainable, rest, state, X[:BATCH], Y[:BATCH])
    assert_same(optimizer.nest(trainable), expected[0])


def test_given_arguments_go_first():
    """A loss of zero: Polyak's step is none."""
    model = made()
    optimizer = as_optimizer(optax.polyak_sgd())
    model.compile(optimizer, "mse")
    before = model.get_weights()
    with optimizer.extra_args(value=0.0):
        model.fit(**DATA)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


class Own(OneDense):
    """A train step that only wraps Keras' own: what that has is still found."""

    def train_step(self, state, data):
        return super().train_step(state, data)


def test_a_step_that_calls_keras_own():
    model = Own()
    optimizer = as_optimizer(optax.polyak_sgd())
    model.compile(optimizer, "mse")
    before = model(X), model.fit(**DATA)
    assert not np.array_equal(before[0], model(X))
