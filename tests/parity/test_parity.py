"""Every published model is as a layer what its framework makes of it: cases x properties.

Exact wherever both sides are one compiled program, because then they are the same program;
`fit` puts more into its step than a native step has, so there a tolerance is allowed.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer_core import key_from_seed
from jaxlayer_flax import FlaxLayer
from jaxlayer_haiku import HaikuLayer

from . import haiku_cases, linen_cases, pypi_cases
from .cases import Case, split
from .native import Native, loss_of

CASES = [*haiku_cases.CASES, *linen_cases.CASES, *pypi_cases.CASES]
SEED = 7
STEPS = 5
LEARNING_RATE = 1e-3
STEP_TOLERANCE = {"float32": {"rtol": 1e-6, "atol": 1e-12}}
"""By dtype, for weights after `fit`; every other dtype is exact.

Keras' step also holds the update, so XLA may contract `w - rate * gradient` to one rounding
where the native step has two."""

TRAINED = {"gradients", "fit"}


def pytest_generate_tests(metafunc):
    """One test per case and property; those of a case run together, in one process."""
    prop = metafunc.function.__name__.removeprefix("test_")
    if "subject" not in metafunc.fixturenames:
        return
    params = []
    for case in CASES:
        marks = [pytest.mark.xdist_group(case.name)]
        marks += [pytest.mark.filterwarnings(f"ignore:{warning}") for warning in case.ignores]
        if case.slow or (prop in TRAINED and not case.sample):
            marks.append(pytest.mark.slow)
        if prop in case.lacks:
            marks.append(pytest.mark.skip(reason=f"{case.name}: {case.lacks[prop]}"))
        params.append(pytest.param(case, id=case.name, marks=marks))
    metafunc.parametrize("subject", params, indirect=True, scope="module")


class Subject:
    """A case with its two runs; what is expensive is made once, when first needed."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.arrays, self.restore = split(*case.inputs())

    @functools.cached_property
    def model(self) -> Any:
        return self.case.make()

    @functools.cached_property
    def native(self) -> Native:
        return Native(self.case, self.model)

    @functools.cached_property
    def layer(self) -> Any:
        """The layer, built by a first call on data, as some initial values depend on it."""
        cls = HaikuLayer if self.case.framework == "haiku" else FlaxLayer
        method = {"method": self.case.method} if self.case.method else {}
        layer = cls(self.model, seed=SEED, **method, **self.case.layer)
        self.call(layer, self.arrays, training=False)
        self._initial = [np.asarray(v.value) for v in layer.variables]
        return layer

    def call(self, layer: Any, arrays: Any, training: bool) -> Any:
        args, kwargs = self.restore(arrays)
        flags = self.case.flags(training) if self.case.explicit else {}
        return layer(*args, **kwargs, **flags, training=training)

    def symbols(self) -> list[keras.KerasTensor]:
        """Stand-ins for the arrays, of unknown batch size where the case allows that."""
        batched = self.case.batched
        shapes = [(None, *a.shape[1:]) if a.ndim and batched else a.shape for a in self.arrays]
        dtypes = [str(a.dtype) for a in self.arrays]
        return list(map(keras.KerasTensor, shapes, dtypes))

    def reset(self) -> None:
        """Undoes what a property did to the layer."""
        for variable, value in zip(self.layer.variables, self._initial, strict=True):
            variable.assign(value)

    @property
    def variables(self) -> tuple[Any, Any]:
        """Params and state as the framework has them, copied, since `fit` gives its own away."""
        copy = functools.partial(
            jax.tree.map,
            lambda leaf: jnp.array(leaf.value) if isinstance(leaf, keras.Variable) else leaf,
            is_leaf=lambda leaf: isinstance(leaf, keras.Variable),
        )
        return copy(self.layer.params) or {}, copy(self.layer.state) or {}

    @property
    def seed(self) -> np.ndarray:
        return np.asarray(self.layer.seed_generator.state.value)


@pytest.fixture(scope="module")
def subject(request):
    case = request.param
    if missing := case.missing():
        pytest.skip(f"{case.name} needs: {missing}")
    return Subject(case)


def test_build(subject, assert_same):
    """The initial values are the bits of the framework's own eager init.

    The layer was built by an inference call, which may have moved a cache on.
    """
    native = subject.native
    subject.reset()
    params, state = native.init([SEED, 0])
    _, written = native.inference(params, state, key_from_seed([SEED, 1]), subject.arrays)
    assert_same(subject.variables, (params, {**state, **written}))


def test_inference(subject, assert_same):
    layer = subject.layer
    subject.reset()
    (params, state), seed = subject.variables, subject.seed
    outputs = subject.call(layer, subject.arrays, training=False)
    expected, written = subject.native.inference(params, state, key_from_seed(seed), subject.arrays)
    assert_same(outputs, expected)
    assert_same(subject.variables, (params, {**state, **written}))


def test_training(subject, assert_same):
    layer = subject.layer
    subject.reset()
    (params, state), seed = subject.variables, subject.seed
    outputs = subject.call(layer, subject.arrays, training=True)
    expected = subject.native.training(params, state, key_from_seed(seed), subject.arrays)
    assert_same(outputs, expected.outputs)
    assert_same(subject.variables, (params, expected.state))
    assert_same(sum(layer.losses, start=np.float32(0)), np.float32(expected.sown))


def test_gradients(subject, assert_same):
    layer = subject.layer
    subject.reset()
    (params, state), seed = subject.variables, subject.seed

    @jax.jit
    def gradients(trainable: Any, others: Any, arrays: Any) -> Any:
        def loss(trainable: Any) -> Any:
            args, kwargs = subject.restore(arrays)
            flags = subject.case.train if subject.case.explicit else {}
            outputs, new, losses = layer.stateless_call(
                trainable, others, *args, **kwargs, **flags, training=True, return_losses=True
            )
            return loss_of(outputs) + sum(losses), new

        return jax.grad(loss, has_aux=True)(trainable)

    got, new = gradients(
        [v.value for v in layer.trainable_variables],
        [v.value for v in layer.non_trainable_variables],
        subject.arrays,
    )
    expected, expected_state = subject.native.gradients(params, state, seed, subject.arrays)
    assert got, "nothing is trained: declare in `lacks` why"
    assert any(np.any(np.asarray(leaf)) for leaf in expected), "all gradients are zero"
    assert_same(got, expected)
    for variable, value in zip(layer.non_trainable_variables, new, strict=True):
        variable.assign(value)
    assert_same(subject.variables[1], expected_state)


class Trained(keras.Model):
    """A model around a layer whose loss is `loss_of` its outputs."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(autocast=False)
        self.subject = subject
        self.layer = subject.layer

    def call(self, arrays: Any, training: bool = False) -> Any:
        return self.subject.call(self.layer, arrays, training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return loss_of(y_pred) + sum(self.losses)


def test_fit(subject, values):
    """Five steps of `fit` are five native steps."""
    subject.reset()
    (params, state), seed = subject.variables, subject.seed
    before = values((params, state))

    def batches():
        while True:
            yield (subject.arrays,)

    model = Trained(subject)
    model.compile(optimizer=keras.optimizers.SGD(LEARNING_RATE))
    model.fit(batches(), steps_per_epoch=STEPS, shuffle=False, verbose=0)
    expected = subject.native.sgd(params, state, seed, steps=STEPS, learning_rate=LEARNING_RATE)
    got, expected = values(subject.variables), values(expected)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert_close(got, expected)
    assert any(map(np.any, jax.tree.leaves(jax.tree.map(np.not_equal, got, before)))), "no change"


def assert_close(got: Any, expected: Any) -> None:
    """Asserts that trees are finite and equal, up to the tolerance of a step."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True)
    for (path, one), other in pairs:
        where = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(one.astype("complex64"))), where
        tolerance = STEP_TOLERANCE.get(one.dtype.name, {"rtol": 0, "atol": 0})
        np.testing.assert_allclose(one, other, err_msg=where, **tolerance)


def test_output_spec(subject):
    """Keras knows the shapes: those that grow with the batch are None, the others true."""
    layer, native, case = subject.layer, subject.native, subject.case
    subject.reset()
    variables = subject.variables

    def sizes(add: int) -> list[jax.ShapeDtypeStruct]:
        return [
            jax.ShapeDtypeStruct((a.shape[0] + add, *a.shape[1:]) if a.ndim else (), a.dtype)
            for a in subject.arrays
        ]

    real = native.shapes(*variables, sizes(0))
    other = native.shapes(*variables, sizes(1)) if case.batched else real
    expected = jax.tree.map(
        lambda one, two: (
            tuple(a if a == b else None for a, b in zip(one.shape, two.shape, strict=True)),
            one.dtype.name,
        ),
        real,
        other,
    )
    outputs = subject.call(layer, subject.symbols(), training=False)
    got = jax.tree.map(
        lambda leaf: (tuple(leaf.shape), leaf.dtype),
        outputs,
        is_leaf=lambda leaf: isinstance(leaf, keras.KerasTensor),
    )
    assert got == expected
