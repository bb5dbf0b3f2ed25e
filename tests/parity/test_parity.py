"""Every published model is as a layer what its framework makes of it: cases x properties.

Exact wherever both sides are one compiled program, because then they are the same program;
`fit` puts more into its step than a native step has, so there a tolerance is allowed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer_core import ProgramLayer, as_layer, key_from_seed, source, trusting
from jaxlayer_core.layer import PureLayer
from jaxlayer_equinox import EquinoxLayer
from jaxlayer_flax import FlaxLayer
from jaxlayer_haiku import HaikuLayer

from . import (
    equinox_cases,
    function_cases,
    haiku_cases,
    linen_cases,
    naming,
    nnx_cases,
    pypi_cases,
)
from .cases import Case, leaves_of, split
from .native import Native, loss_of

CASES = [
    *haiku_cases.CASES,
    *linen_cases.CASES,
    *nnx_cases.CASES,
    *equinox_cases.CASES,
    *function_cases.CASES,
    *pypi_cases.CASES,
]
LAYERS = {
    "haiku": HaikuLayer,
    "linen": FlaxLayer,
    "nnx": FlaxLayer,
    "equinox": EquinoxLayer,
    "functions": as_layer,
}
SEED = 7
STEPS = 5
LEARNING_RATE = 1e-4
STEP_TOLERANCE = {"float32": {"rtol": 1e-6, "atol": 1e-12}}
"""By dtype, for weights and state after `fit`; every other dtype is exact.

Keras' step also holds the update, so XLA may contract `w - rate * gradient` to one rounding
where the native step has two."""


def pytest_generate_tests(metafunc):
    """One test per case and property; those of a case run together, in one process."""
    if "subject" not in metafunc.fixturenames:
        return
    prop = metafunc.function.__name__.removeprefix("test_")
    params = []
    for case in CASES:
        marks = [pytest.mark.xdist_group(case.name)]
        marks += [pytest.mark.filterwarnings(f"ignore:{warning}") for warning in case.ignores]
        if not case.sample:
            marks.append(pytest.mark.slow)
        if prop in case.lacks:
            marks.append(pytest.mark.skip(reason=f"{case.name}: {case.lacks[prop]}"))
        params.append(pytest.param(case, id=case.name, marks=marks))
    metafunc.parametrize("subject", params, indirect=True, scope="module")


@pytest.fixture(scope="module")
def subject(request):
    """A case, shared by all its properties."""
    case = request.param
    if missing := case.missing():
        pytest.skip(f"{case.name} needs: {missing}")
    return Subject(case)


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
    def _built(self) -> tuple[Any, list[np.ndarray]]:
        """The layer, built by a call on data, as some initial values depend on it."""
        cls = LAYERS[self.case.framework]
        method = {"method": self.case.method} if self.case.method else {}
        layer = cls(self.model, seed=SEED, **method, **self.case.layer)
        self.call(layer, self.arrays, training=False)
        return layer, [np.asarray(v.value) for v in layer.variables]

    def fresh(self) -> Any:
        """The layer as it was when it was built, whatever other properties did to it."""
        layer, initial = self._built
        for variable, value in zip(layer.variables, initial, strict=True):
            variable.assign(value)
        return layer

    def arguments(self, arrays: Any, training: bool) -> tuple[tuple, dict]:
        """What the layer is called with."""
        args, kwargs = self.restore(arrays)
        flags = self.case.flags(training) if self.case.explicit else {}
        return args, {**kwargs, **flags, "training": training}

    def call(self, layer: Any, arrays: Any, training: bool) -> Any:
        args, kwargs = self.arguments(arrays, training)
        return layer(*args, **kwargs)


def variables_of(layer: Any) -> tuple[Any, Any]:
    """Params and state as the framework has them, copied, since `fit` gives its own away."""

    def copy(leaf: Any) -> Any:
        return jnp.array(leaf.value) if isinstance(leaf, keras.Variable) else leaf

    def is_leaf(leaf: Any) -> bool:
        return isinstance(leaf, keras.Variable)

    return tuple(
        jax.tree.map(copy, tree, is_leaf=is_leaf) or {} for tree in (layer.params, layer.state)
    )


def seed_of(layer: Any) -> np.ndarray:
    """What the key of the next drawing call is made of."""
    return np.asarray(layer.seed_generator.state.value)


def assert_equal(got: Any, expected: Any, tolerance: Any = None) -> None:
    """Asserts the same paths, dtypes and bits, up to a tolerance by dtype."""
    assert type(got) is type(expected)
    got, expected = leaves_of(got), leaves_of(expected)
    assert list(got) == list(expected)
    for path, other in expected.items():
        one, other = np.asarray(got[path]), np.asarray(other)
        assert one.dtype == other.dtype, path
        allowed = (tolerance or {}).get(one.dtype.name)
        if allowed is None:
            np.testing.assert_array_equal(one, other, err_msg=path)
        else:
            np.testing.assert_allclose(one, other, err_msg=path, **allowed)


def test_build(subject):
    """The initial values are the bits of the framework's own eager init.

    The layer was built by an inference call, which may have moved a cache on.
    """
    layer, native = subject.fresh(), subject.native
    params, state = native.init([SEED, 0])
    _, written = native.inference(params, state, key_from_seed([SEED, 1]), subject.arrays)
    assert_equal(variables_of(layer), (params, {**state, **written}))


def test_inference(subject):
    """The same outputs; no state is written but what the framework writes in inference."""
    layer = subject.fresh()
    (params, state), key = variables_of(layer), key_from_seed(seed_of(layer))
    outputs = subject.call(layer, subject.arrays, training=False)
    expected, written = subject.native.inference(params, state, key, subject.arrays)
    assert_equal(outputs, expected)
    assert_equal(variables_of(layer), (params, {**state, **written}))


def test_training(subject):
    """The same outputs, state and losses from the same key."""
    layer = subject.fresh()
    (params, state), key = variables_of(layer), key_from_seed(seed_of(layer))
    outputs = subject.call(layer, subject.arrays, training=True)
    expected = subject.native.training(params, state, key, subject.arrays)
    assert_equal(outputs, expected.outputs)
    assert_equal(variables_of(layer), (params, expected.state))
    assert_equal(np.float32(sum(layer.losses)), np.float32(expected.sown))


def test_gradients(subject):
    """The same gradients, through `stateless_call`, and the same state beside them."""
    layer = subject.fresh()
    (params, state), seed = variables_of(layer), seed_of(layer)

    @jax.jit
    def gradients(trainable: Any, others: Any, arrays: Any) -> Any:
        def loss(trainable: Any) -> Any:
            args, kwargs = subject.arguments(arrays, training=True)
            outputs, others_after, losses = layer.stateless_call(
                trainable, others, *args, **kwargs, return_losses=True
            )
            return loss_of(outputs) + sum(losses), others_after

        return jax.grad(loss, has_aux=True)(trainable)

    got, others_after = gradients(
        [v.value for v in layer.trainable_variables],
        [v.value for v in layer.non_trainable_variables],
        subject.arrays,
    )
    expected, state_after = subject.native.gradients(params, state, seed, subject.arrays)
    assert any(np.any(np.asarray(leaf)) for leaf in expected), "declare in `lacks` why"
    assert_equal(got, expected)
    for variable, value in zip(layer.non_trainable_variables, others_after, strict=True):
        variable.assign(value)
    assert_equal(variables_of(layer)[1], state_after)


class Trained(keras.Model):
    """A model around a layer, whose loss is `loss_of` its outputs."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(autocast=False)
        self.subject = subject
        self.layer = subject.fresh()

    def call(self, arrays: Any, training: bool = False) -> Any:
        return self.subject.call(self.layer, arrays, training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return loss_of(y_pred) + sum(self.losses)


def test_fit(subject):
    """Five steps of `fit` are five native steps."""
    model = Trained(subject)
    before, seed = variables_of(model.layer), seed_of(model.layer)

    def batches() -> Iterator[Any]:
        while True:
            yield (subject.arrays,)

    model.compile(optimizer=keras.optimizers.SGD(LEARNING_RATE))
    model.fit(batches(), steps_per_epoch=STEPS, shuffle=False, verbose=0)
    after = variables_of(model.layer)
    expected = subject.native.sgd(*before, seed, steps=STEPS, learning_rate=LEARNING_RATE)
    assert_equal(after, expected, STEP_TOLERANCE)
    trained = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in trained), "nothing changed"
    assert all(np.all(np.isfinite(np.asarray(b).astype("complex64"))) for _, b in trained)


def stored(layer: Any, config: Any, safe_mode: bool) -> Any:
    """The layer that a config makes, through JSON, with the variables of another."""
    config = json.loads(json.dumps(config))
    again = keras.saving.deserialize_keras_object(config, safe_mode=safe_mode)
    files: dict[str, np.ndarray] = {}
    layer.save_own_variables(files)
    again.load_own_variables(files)
    return again


def assert_runs_alike(subject: Subject, again: Any, tolerance: Any = None) -> None:
    """Asserts that a layer that was loaded calls, draws and updates as its original."""
    layer = subject.fresh()
    for training in (False, True):
        for name in ("outputs", "losses", "state"):
            got, expected = (_called(subject, one, training)[name] for one in (again, layer))
            got, expected = (list(leaves_of(tree).values()) for tree in (got, expected))
            assert len(got) == len(expected)
            for one, other in zip(got, expected, strict=True):
                assert one.dtype == other.dtype
                if tolerance and jnp.issubdtype(one.dtype, np.inexact):
                    scale = np.max(np.abs(np.asarray(other, "complex64")), initial=1e-3)
                    np.testing.assert_allclose(
                        np.asarray(one, "complex64"), np.asarray(other, "complex64"),
                        rtol=tolerance, atol=tolerance * scale,
                    )  # fmt: skip
                else:
                    np.testing.assert_array_equal(one, other)


def _called(subject: Subject, layer: Any, training: bool) -> dict[str, Any]:
    outputs = subject.call(layer, subject.arrays, training)
    return {"outputs": outputs, "losses": layer.losses, "state": variables_of(layer)}


@pytest.mark.filterwarnings("ignore:The program that is saved for")  # it takes the sizes seen only
def test_config(subject, monkeypatch):
    """The layer's config, as JSON, makes the same layer where only modules can be imported.

    The user trusts the packages that the model is from, by name.
    """
    layer = subject.fresh()
    naming.give_names(subject.model)
    config = keras.saving.serialize_keras_object(layer)
    monkeypatch.setattr(source, "_LIVE", {})  # as in another process
    if reason := config["config"]["source"].get("reason"):
        pytest.skip(f"{subject.case.name} is saved as a program: {reason}")
    with trusting(*naming.packages(subject.case)):
        again = stored(layer, config, safe_mode=True)
    assert type(again) is type(layer)
    assert_runs_alike(subject, again)


def test_program(subject):
    """The layer's program, as JSON, makes a layer that runs alike without the model."""
    layer = subject.fresh()
    subject.call(layer, subject.arrays, training=True)  # it holds the calls that were made
    layer = subject.fresh()
    own = ProgramLayer.config_of("Loaded", PureLayer.get_config(layer), layer.to_program())
    config = {
        "class_name": "Loaded",
        "registered_name": "jaxlayer>ProgramLayer",
        "module": None,
        "config": own,
        "build_config": layer.get_build_config(),
    }
    again = stored(layer, config, safe_mode=True)
    assert isinstance(again, ProgramLayer)
    assert_runs_alike(subject, again, tolerance=1e-5)


def test_output_spec(subject):
    """Keras knows the shapes: those that grow with the batch are None, the others true."""
    layer, case = subject.fresh(), subject.case

    def outputs(longer: int) -> dict[str, jax.ShapeDtypeStruct]:
        specs = [
            jax.ShapeDtypeStruct((a.shape[0] + longer, *a.shape[1:]) if a.ndim else (), a.dtype)
            for a in subject.arrays
        ]
        return subject.native.shapes(*variables_of(layer), specs)

    real = outputs(0)
    longer = outputs(1) if case.batched else real
    expected = {
        path: (tuple(a if a == b else None for a, b in pairs), spec.dtype.name)
        for path, spec in real.items()
        for pairs in [zip(spec.shape, longer[path].shape, strict=True)]
    }
    symbols = [
        keras.KerasTensor(
            (None, *a.shape[1:]) if a.ndim and case.batched else a.shape, a.dtype.name
        )
        for a in subject.arrays
    ]
    got = leaves_of(subject.call(layer, symbols, training=False))
    assert {path: (tuple(spec.shape), spec.dtype) for path, spec in got.items()} == expected
