"""Five steps of `fit` are five steps of a loop with Optax alone, bit for bit."""

import functools

import jax
import numpy as np
import optax
import pytest
from optax import contrib

from jaxlayer_optax import Labels, Matching, OptaxOptimizer, as_optimizer

from .models import DATA, OneDense, X, made, native, params_of, result_of

KERNELS = Matching("kernel$")

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
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, 3), optax.sgd(0.1)),
    "schedule_free": lambda: contrib.schedule_free_adamw(1e-2),
    "value": lambda: optax.chain(optax.adam(1e-2), contrib.reduce_on_plateau(patience=1)),
    "value_fn": lambda: optax.lbfgs(),
    "grad_fn": lambda: contrib.sam(
        optax.sgd(0.1), optax.chain(contrib.normalize(), optax.sgd(0.05)), opaque_mode=True
    ),
}
MORE = {
    "acprop": lambda: contrib.acprop(1e-2),
    "adadelta": lambda: optax.adadelta(1e-2),
    "adan": lambda: optax.adan(1e-2),
    "amsgrad": lambda: optax.amsgrad(1e-2),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
    "cocob": lambda: contrib.cocob(),
    "dadapt_adamw": lambda: contrib.dadapt_adamw(1.0),
    "dog": lambda: contrib.dog(1.0),
    "dowg": lambda: contrib.dowg(1.0),
    "fromage": lambda: optax.fromage(1e-2),
    "lars": lambda: optax.lars(1e-2),
    "lion": lambda: optax.lion(1e-2),
    "mechanize": lambda: contrib.mechanize(optax.sgd(0.1)),
    "momo": lambda: contrib.momo(1.0),
    "novograd": lambda: optax.novograd(1e-2),
    "optimistic": lambda: optax.optimistic_gradient_descent(1e-2),
    "polyak_sgd": lambda: optax.polyak_sgd(),
    "radam": lambda: optax.radam(1e-2),
    "rprop": lambda: optax.rprop(1e-2),
}
# What Optax has gained since the lowest version that is supported.
if hasattr(contrib, "muon"):
    USUAL["muon"] = lambda: contrib.muon(1e-2)
if hasattr(contrib, "sophia"):
    USUAL["obj_fn"] = lambda: contrib.sophia(1e-2)
for _name, _arguments in {"ademamix": [], "adopt": [], "galore": [2], "madgrad": []}.items():
    if hasattr(contrib, _name):
        MORE[_name] = functools.partial(getattr(contrib, _name), 1e-2, *_arguments)


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, id=name) for name, make in USUAL.items()),
        *(pytest.param(make, id=name, marks=pytest.mark.slow) for name, make in MORE.items()),
    ],
)
def test_five_steps(make, assert_same):
    model, tx = made(), make()
    expected = native(model, tx)
    optimizer = as_optimizer(tx)
    model.compile(optimizer, "mse")
    model.fit(**DATA)
    assert_same(result_of(optimizer), expected)


@pytest.mark.slow
@pytest.mark.parametrize("make", [contrib.prodigy, contrib.momo_adam, optax.sm3])
def test_five_steps_but_for_the_order_of_sums(make, values):
    """They add up many products, which XLA may fuse in another way inside of Keras' step."""
    model, tx = made(), make(1.0)
    expected = native(model, tx)
    optimizer = as_optimizer(tx)
    model.compile(optimizer, "mse")
    model.fit(**DATA)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8),
        values(result_of(optimizer)),
        values(expected),
    )


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
        nested = optimizer._weights.nest(grads)
        updates, state = tx.update(nested, state, params, value=value)
        params = optax.apply_updates(params, updates)
        with optimizer.extra_args(value=value):
            optimizer.apply(grads, model.trainable_variables)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), optimizer.weights_tree(), params
    )
    assert float(optimizer.state[1].scale.value) == float(state[1].scale) < 1


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
