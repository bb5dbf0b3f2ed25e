"""Properties of running: sharing, re-tracing, threads, leaks."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import keras
import numpy as np

from jaxlayer_core.adapter import Adapter
from jaxlayer_core.pure import Outcome, PureModule
from jaxlayer_core.structure import CallStructure
from jaxlayer_core.testing.base import Properties
from jaxlayer_core.testing.cases import ConformanceCase
from jaxlayer_core.testing.comparing import assert_same, is_same, require
from jaxlayer_core.testing.subject import seed_of, values, variables_of

CALLS = 3


class RunningProperties(Properties):
    """A layer can be used more than once, from more than one place."""

    def test_shared_layer(self, case: ConformanceCase) -> None:
        """Used twice in one functional model, a layer has one set of weights and both updates."""
        subject = self.subject(case)
        layer = subject.built()
        inputs = subject.symbols()
        model = keras.Model(inputs, [subject.call(layer, True, inputs) for _ in range(2)])
        require(
            len(model.weights) == len(layer.weights),
            f"{case}: a model that uses the layer twice has the weights "
            f"{[variable.path for variable in model.weights]}.",
        )
        params, state = variables_of(layer)
        seed, expected = seed_of(layer), []
        for _ in range(2):
            result = subject.native.run(params, state, seed, True)
            state = result.state
            seed = seed + np.array([0, subject.native.draws(True)], "uint32")
            expected.append(result.outputs)
        outputs = model(subject.arrays)
        if not is_same(outputs[0], expected[0]):
            outputs = outputs[::-1]  # Keras may run the later of two independent calls first
        assert_same(outputs, expected, f"outputs of {case} used twice in one model")
        assert_same(layer.state, state, f"state of {case} used twice in one model")
        assert_same(seed_of(layer), seed, f"seed of {case} used twice in one model")

    def test_no_retracing(self, case: ConformanceCase) -> None:
        """Further calls of one form run no Python of the model, eager or compiled.

        An argument that cannot be hashed may have changed, so a call with one is traced again.
        """
        subject = self.subject(case)
        _, structure = CallStructure.of(*subject.native.restore(subject.arrays))
        if not structure.is_cacheable:
            return
        adapter = self.adapter if isinstance(self.adapter, type) else type(self.adapter)
        assert issubclass(adapter, Adapter)
        with _counted(adapter) as traces:
            layer = subject.built()
            for training in (True, False):
                subject.call(layer, training)
                before = len(traces)
                for _ in range(CALLS):
                    subject.call(layer, training)
                require(
                    len(traces) == before > 0,
                    f"{case}: {CALLS} more calls of one form (training={training}) traced the "
                    f"model {len(traces) - before} times.",
                )

    def test_threads(self, case: ConformanceCase) -> None:
        """Threads that infer at the same time all get the native result.

        The model may be shared by layers and traced by several threads at once.
        """
        subject = self.subject(case)
        model = case.make()
        layers = [subject.layer(model=model) for _ in range(2)]
        for layer in layers:
            subject.call(layer, False, subject.symbols())
        expected, state, _ = subject.run(layers[0], False)
        if subject.native.draws(False) or not is_same(state, layers[0].state):
            return  # what a call gives depends on those before it
        start = threading.Barrier(2 * len(layers))

        def infer(layer: Any) -> Any:
            start.wait()
            return subject.call(layer, False)

        with ThreadPoolExecutor(start.parties) as pool:
            results = list(pool.map(infer, layers * 2))
        for outputs in results:
            assert_same(outputs, expected, f"output of {case} in one of {start.parties} threads")

    def test_no_leaks(self, case: ConformanceCase) -> None:
        """Nothing of a trace is left behind in the model or its adapter.

        What is kept from one trace and used in the next is an `UnexpectedTracerError` for the
        user, sooner or later.
        """
        subject = self.subject(case)
        layer = subject.built()
        own, others = (
            values(v) for v in (layer.trainable_variables, layer.non_trainable_variables)
        )
        for training in (False, True):

            def call(own: Any, others: Any, arrays: Any, mode: bool = training) -> Any:
                return subject.stateless(layer, own, others, arrays, mode)

            try:
                with jax.checking_leaks():
                    jax.jit(call)(own, others, subject.arrays)
            except Exception as error:  # JAX has no class of its own for it
                raise AssertionError(f"{case} (training={training}) leaks: {error}") from error


@contextmanager
def _counted(adapter: type[Adapter]) -> Iterator[list[bool]]:
    """Notes each run of a model's Python: its mode."""
    traces: list[bool] = []
    purify = adapter.purify

    def counting(self: Adapter, *args: Any, **kwargs: Any) -> PureModule:
        pure = purify(self, *args, **kwargs)

        def call(params: Any, state: Any, rng: Any, arguments: Any, training: bool) -> Outcome:
            traces.append(training)
            return pure.call(params, state, rng, arguments, training)

        return dataclasses.replace(pure, call=call)

    with mock.patch.object(adapter, "purify", counting):
        yield traces
