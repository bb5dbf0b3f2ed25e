"""Properties of training: gradients, steps, what is frozen, precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxlayer_core import paths
from jaxlayer_core.patterns import exactly
from jaxlayer_core.testing.base import Properties
from jaxlayer_core.testing.cases import ConformanceCase
from jaxlayer_core.testing.comparing import EXACT, Tolerance, assert_same, require
from jaxlayer_core.testing.native import SEED
from jaxlayer_core.testing.subject import AnyLayer, Subject, Trained, seed_of, values, variables_of
from jaxlayer_core.testing.trees import casted, is_inexact

STEPS = 5

REORDERED: Tolerance = {
    "float32": {"rtol": 1e-5, "atol": 1e-6},
    "float64": {"rtol": 1e-12, "atol": 1e-13},
    "complex64": {"rtol": 1e-5, "atol": 1e-6},
    "bfloat16": {"rtol": 2e-2, "atol": 2e-2},
    "float16": {"rtol": 2e-3, "atol": 2e-3},
}
"""Where the two sides are not the same program, so that XLA may fuse and round differently.

Keras' step also holds the update, where `w - rate * gradient` may be one rounding instead of
two; rematerialisation and freezing change what is in the program. A step that is wrong is wrong
by a part of the learning rate, which is 0.01."""

HALF: Tolerance = {"float32": {"rtol": 2e-2, "atol": 1e-3}}
"""For what was computed in bfloat16 and is kept in float32: XLA may leave out roundings."""


class TrainingProperties(Properties):
    """Training with Keras is training natively."""

    def test_gradients(self, case: ConformanceCase) -> None:
        """`jax.grad` through `stateless_call` is `jax.grad` of native, for weights and inputs."""
        subject = self.subject(case)
        _assert_gradients(subject, subject.built(), f"of {case}")

    def test_fit(self, case: ConformanceCase) -> None:
        """Five steps of SGD in `fit` are five native steps, up to rounding."""
        subject = self.subject(case)
        layer = subject.built()
        if not layer.trainable_variables:
            return
        start, seed = variables_of(layer), seed_of(layer)
        subject.model(layer).train(STEPS)
        expected = subject.native.steps(start, seed, STEPS, Trained.RATE)
        assert_same(variables_of(layer), expected, f"{case} after {STEPS} steps", REORDERED)

    def test_frozen_layer(self, case: ConformanceCase) -> None:
        """With `trainable = False` a layer infers, whatever the mode, and writes nothing."""
        subject = self.subject(case)
        layer = subject.built()
        layer.trainable = False
        require(not layer.trainable_variables, f"{case}: a frozen layer has trainable weights.")
        before = variables_of(layer)
        expected = subject.run(layer, False)
        outputs = subject.call(layer, True)
        assert_same(outputs, expected.outputs, f"output of {case} frozen, as in inference")
        assert_same(variables_of(layer), before, f"variables of {case} frozen")

    def test_frozen_leaves(self, case: ConformanceCase) -> None:
        """`layer.freeze(path)` takes a leaf out of training; all others train as before."""
        subject = self.subject(case)
        scopes, (params, state) = subject.pure().scopes, subject.native.start
        names, kept = (
            ["/".join((*scope, *path)) for path, _ in paths.flatten(tree)[0]]
            for scope, tree in zip(scopes, (params, state), strict=True)
        )
        layer = subject.built()
        for frozen in (names[:1], kept[:1]):
            if frozen:
                layer.freeze(exactly(frozen[0]))
        pairs = zip(names, jax.tree.leaves(params), strict=True)
        mask = [name != names[0] for name, leaf in pairs if is_inexact(leaf)]
        _assert_gradients(subject, layer, f"of {case} with {names[:1]} frozen", mask, REORDERED)
        before = jax.tree.leaves(variables_of(layer)[1])
        after, treedef = jax.tree.flatten(subject.run(layer, True).state)
        subject.call(layer, True)
        expected = jax.tree.unflatten(treedef, [*before[:1], *after[1:]])
        assert_same(layer.state, expected, f"state of {case} with {kept[:1]} frozen")

    def test_remat(self, case: ConformanceCase) -> None:
        """With `remat=True` values are computed again, and gradients are what they were."""
        subject = self.subject(case)
        layer = subject.built(remat=True)
        _assert_gradients(subject, layer, f"of {case} with remat", None, REORDERED)
        own, others = (
            values(v) for v in (layer.trainable_variables, layer.non_trainable_variables)
        )
        program = jax.make_jaxpr(subject.gradients_of(layer))(own, others, subject.arrays)
        word = str(jax.make_jaxpr(jax.checkpoint(jnp.sin))(1.0).eqns[0].primitive.name)
        require(word in str(program), f"{case}: `remat=True` does not rematerialise anything.")

    def test_mixed_precision(self, case: ConformanceCase) -> None:
        """With `dtype="mixed_bfloat16"` native computes with params and inputs in bfloat16.

        Floating params are kept in float32 and get gradients in it. State is not cast.
        """
        subject = self.subject(case)
        layer = subject.layer(dtype="mixed_bfloat16")
        params, state = subject.native.start
        params = casted(params, "float32")
        arrays = casted(subject.arrays, "bfloat16")
        outputs = subject.call(layer, False)
        expected = subject.native.run(casted(params, "bfloat16"), state, (SEED, 1), False, arrays)
        assert_same(outputs, expected.outputs, f"output of {case} in mixed precision")
        assert_same(layer.params, params, f"params of {case} in mixed precision")
        # Keras casts in `__call__`, which `stateless_call` of the layer itself does not run.
        model = subject.model(layer)
        model(subject.arrays)
        state, seed = variables_of(layer)[1], seed_of(layer)
        own, others = (
            values(v) for v in (model.trainable_variables, model.non_trainable_variables)
        )
        wanted, after = subject.native.gradients(params, state, seed, subject.arrays, "bfloat16")
        got, others = jax.jit(subject.gradients_of(model))(own, others, subject.arrays)
        assert_same(got, wanted, f"gradients of {case} in mixed precision", HALF)
        for variable, value in zip(model.non_trainable_variables, others, strict=True):
            variable.assign(value)
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, state)
        assert_same(layer.state, after, f"state of {case} in mixed precision", HALF)


def _assert_gradients(
    subject: Subject,
    layer: AnyLayer,
    what: str,
    trains: Any = None,
    tolerance: Tolerance = EXACT,
) -> None:
    """Compares gradients of weights and arrays, and the state beside them.

    Args:
        subject: the case.
        layer: its layer.
        what: for the error.
        trains: per inexact leaf of params whether it is trained; None for all.
        tolerance: what may differ.
    """
    params, state = variables_of(layer)
    native = subject.native.gradients(params, state, seed_of(layer), subject.arrays)
    (wanted, data), state_after = native
    if trains is not None:
        wanted = [gradient for gradient, train in zip(wanted, trains, strict=True) if train]
    variables = layer.trainable_variables
    require(
        len(variables) == len(wanted),
        f"Trainable weights {what}: expected {len(wanted)}, the layer has "
        f"{[variable.path for variable in variables]}.",
    )
    own, others = values(variables), values(layer.non_trainable_variables)
    (got, inputs), after = jax.jit(subject.gradients_of(layer))(own, others, subject.arrays)
    named = [variable.path for variable in variables]
    assert_same(
        dict(zip(named, got, strict=True)),
        dict(zip(named, wanted, strict=True)),
        f"gradients {what}",
        tolerance,
    )
    assert_same(inputs, data, f"gradients of the inputs {what}", tolerance)
    if trains is None:
        for variable, value in zip(layer.non_trainable_variables, after, strict=True):
            variable.assign(value)
        assert_same(layer.state, state_after, f"state beside the gradients {what}", tolerance)
