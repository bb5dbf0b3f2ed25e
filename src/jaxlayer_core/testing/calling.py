"""Properties of a call: initial values, outputs, state, modes, arguments, shapes."""

from __future__ import annotations

import jax
import numpy as np

from jaxlayer_core.testing.base import Properties
from jaxlayer_core.testing.cases import ConformanceCase
from jaxlayer_core.testing.comparing import assert_same, require
from jaxlayer_core.testing.native import SEED
from jaxlayer_core.testing.subject import seed_of, values, variables_of

RESERVED = {"method", "structure", "training"}
"""Names that a call of a layer keeps for itself."""


class CallingProperties(Properties):
    """A call of the layer is a call of the model: the very same bits."""

    def test_initial_values(self, case: ConformanceCase) -> None:
        """Initial params and state are the bits of native init with `key_from_seed([seed, 0])`.

        The call that builds the layer is one in inference, which may move a cache on.
        """
        subject = self.subject(case)
        layer = subject.built()
        params, state = subject.native.start
        state = subject.native.run(params, state, (SEED, 1), False).state
        assert_same(layer.params, params, f"initial params of {case}")
        assert_same(layer.state, state, f"initial state of {case}")

    def test_initial_values_without_data(self, case: ConformanceCase) -> None:
        """A layer that is built before there is data, on symbols, has the same initial values.

        Where they depend on data, the data are ones. Building draws and writes nothing else.
        """
        subject = self.subject(case)
        layer = subject.layer()
        subject.call(layer, False, subject.symbols())
        ones = [np.ones(array.shape, array.dtype) for array in subject.arrays]
        params, state = subject.native.init(arrays=ones)
        assert_same(layer.params, params, f"params of {case} built on symbols")
        assert_same(layer.state, state, f"state of {case} built on symbols")
        assert_same(seed_of(layer), np.array([SEED, 1], "uint32"), f"seed of {case} after building")

    def test_inference(self, case: ConformanceCase) -> None:
        """Outputs in inference are those of the jitted native call, each time."""
        subject = self.subject(case)
        layer = subject.built()
        for number in ("first", "second"):
            expected = subject.run(layer, False)
            outputs = subject.call(layer, False)
            assert_same(outputs, expected.outputs, f"inference output of {case}, {number} call")

    def test_inference_writes_only_caches(self, case: ConformanceCase) -> None:
        """Inference leaves params and state as they are, but for what native inference keeps."""
        subject = self.subject(case)
        layer = subject.built()
        params, _ = variables_of(layer)
        for number in ("first", "second"):
            expected = subject.run(layer, False)
            subject.call(layer, False)
            assert_same(layer.params, params, f"params of {case} after inference")
            assert_same(layer.state, expected.state, f"state of {case} after {number} inference")

    def test_training(self, case: ConformanceCase) -> None:
        """Outputs, state and losses in training are native ones, call after call.

        The key of a call that draws is `key_from_seed` of the seed's state before it.
        """
        subject = self.subject(case)
        layer = subject.built()
        for number in ("first", "second", "third"):
            expected = subject.run(layer, True)
            outputs = subject.call(layer, True)
            what = f"of {case}, {number} training call"
            assert_same(outputs, expected.outputs, f"output {what}")
            assert_same(layer.state, expected.state, f"state {what}")
            loss = np.float32(sum(layer.losses))
            assert_same(loss, np.float32(expected.loss), f"sum of the losses {what}")

    def test_default_mode(self, case: ConformanceCase) -> None:
        """Without `training=` a model with two modes infers; one with a single mode just runs.

        That is `PureModule.has_modes`; native calls show when it must be true.
        """
        subject = self.subject(case)
        layer = subject.built()
        training = not (subject.native.has_modes or subject.pure().has_modes)
        expected = subject.run(layer, training)
        outputs = subject.call(layer, None)
        what = f"of {case} without `training=`, expected as with training={training}"
        assert_same(outputs, expected.outputs, f"output {what}")
        assert_same(layer.state, expected.state, f"state {what}")

    def test_arguments_reach_the_model(self, case: ConformanceCase) -> None:
        """Each array of the call counts as it counts natively; none is dropped or remembered."""
        subject = self.subject(case)
        layer = subject.built()
        for number, array in enumerate(subject.arrays):
            arrays = [*subject.arrays]
            arrays[number] = _changed(array)
            expected = subject.run(layer, False, arrays)
            outputs = subject.call(layer, False, arrays)
            what = f"output of {case} with other values in array {number} of its arguments"
            assert_same(outputs, expected.outputs, what)

    def test_arguments_by_name(self, case: ConformanceCase) -> None:
        """Positional arguments may be given by the names that the signature has for them.

        They are the model's own names: a native call with them, if there is one, is the same.
        """
        subject = self.subject(case)
        signature = subject.pure().signature
        args, kwargs = subject.native.restore(subject.arrays)
        data = [p for p in signature.parameters if p.name not in signature.flags][: len(args)]
        if len(data) < len(args) or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in data):
            return  # there are no names
        names = [p.name for p in data]
        if RESERVED & set(names):
            return
        layer = subject.built()
        named = {**dict(zip(names, args, strict=True)), **kwargs}
        try:
            expected = subject.native.run_with(*variables_of(layer), seed_of(layer), named)
        except Exception:  # the author's `apply` takes them by position only
            expected = subject.run(layer, False)
        outputs = layer(**named, training=False)
        assert_same(outputs, expected.outputs, f"output of {case} called with {names} by name")

    def test_other_batches(self, case: ConformanceCase) -> None:
        """Where native takes a batch of another size, the layer gives what native gives."""
        subject = self.subject(case)
        if not subject.native.is_batched:
            return
        layer = subject.built()
        longer = [np.concatenate([a, a[:1]]) if a.ndim else a for a in subject.arrays]
        for training in (False, True):
            expected = subject.run(layer, training, longer)
            outputs = subject.call(layer, training, longer)
            what = f"output of {case} for a longer batch (training={training})"
            assert_same(outputs, expected.outputs, what)

    def test_compiled_calls(self, case: ConformanceCase) -> None:
        """`stateless_call` inside `jax.jit` gives what an eager call of a new layer gives."""
        subject = self.subject(case)
        eager, compiled = subject.built(), subject.built()
        call = jax.jit(
            lambda own, others, arrays, training: subject.stateless(
                compiled, own, others, arrays, training
            ),
            static_argnums=3,
        )
        for training in (False, True):
            expected = subject.call(eager, training)
            own, others = (
                values(v) for v in (compiled.trainable_variables, compiled.non_trainable_variables)
            )
            outputs, after, losses = call(own, others, subject.arrays, training)
            for variable, value in zip(compiled.non_trainable_variables, after, strict=True):
                variable.assign(value)
            what = f"of a compiled call of {case} (training={training})"
            assert_same(outputs, expected, f"output {what}")
            assert_same(variables_of(compiled), variables_of(eager), f"variables {what}")
            assert_same(seed_of(compiled), seed_of(eager), f"seed {what}")
            loss, other = (np.float32(sum(given)) for given in (losses, eager.losses))
            assert_same(loss, other, f"sum of the losses {what}")

    def test_output_shapes(self, case: ConformanceCase) -> None:
        """Keras knows the outputs without running: dimensions that grow with the batch are None."""
        subject = self.subject(case)
        native = subject.native
        real = native.shapes(0)
        longer = native.shapes(1) if native.is_batched else real
        outputs = subject.call(subject.built(), False, subject.symbols())
        expected, grown, got = (_specs(tree) for tree in (real, longer, outputs))
        require(set(got) == set(expected), f"symbolic outputs of {case}: expected {expected}.")
        for path, (shape, dtype) in expected.items():
            pairs = zip(shape, grown[path][0], strict=True)
            free = tuple(one if one == other else None for one, other in pairs)
            require(
                got[path] == (free, dtype),
                f"symbolic output `{path}` of {case}: expected {(free, dtype)}, got {got[path]}.",
            )


def _changed(array: np.ndarray) -> np.ndarray:
    """Other values that are as good: ids stay in their range."""
    if np.issubdtype(array.dtype, np.inexact):
        return (array * 0.5 + 0.25).astype(array.dtype)
    if array.dtype == bool:
        return ~array
    return array.reshape(-1)[::-1].reshape(array.shape)


def _specs(tree: object) -> dict[str, tuple[tuple[int | None, ...], str]]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): (tuple(spec.shape), jax.numpy.dtype(spec.dtype).name)
        for path, spec in pairs
    }
