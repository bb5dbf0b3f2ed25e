"""Properties of the adapter itself: what it accepts, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxlayer_core import registry
from jaxlayer_core.adapter import Adapter
from jaxlayer_core.errors import AdapterError, JaxLayerError, SignatureError
from jaxlayer_core.module_layer import as_layer
from jaxlayer_core.rng import key_from_seed
from jaxlayer_core.testing.base import Properties
from jaxlayer_core.testing.cases import ConformanceCase
from jaxlayer_core.testing.comparing import assert_same, require
from jaxlayer_core.testing.native import Native
from jaxlayer_core.testing.subject import seed_of, variables_of

NONSENSE = "no_such_name_anywhere"


class AdaptingProperties(Properties):
    """What the adapter accepts, refuses and leaves alone."""

    def test_adapter_is_found(self, case: ConformanceCase) -> None:
        """`as_layer(model)` finds this adapter, which accepts the model and no other object."""
        adapter = self.adapter() if isinstance(self.adapter, type) else self.adapter
        assert isinstance(adapter, Adapter)
        model = case.make()
        require(adapter.accepts(model), f"{adapter} does not accept the model of {case}.")
        for other in (object(), None, 3, "model", {}, lambda x: x):
            require(not adapter.accepts(other), f"{adapter} accepts {other!r}.")
        try:
            found = registry.resolve(model)
            as_layer(model, **case.options)
        except AdapterError as error:
            raise AssertionError(
                f"as_layer does not find the adapter of {case}. Register it, or declare an entry "
                f"point. {error}"
            ) from error
        require(type(found) is type(adapter), f"as_layer finds {found} for {case}, not {adapter}.")

    def test_unknown_methods_and_flags_are_refused(self, case: ConformanceCase) -> None:
        """`method=` and `training_arg=` that the model does not have raise `SignatureError`.

        A model with `**kwargs` may have any flag.
        """
        subject = self.subject(case)
        wrong = [{"method": NONSENSE}]
        if not any(p.kind is p.VAR_KEYWORD for p in subject.pure().signature.parameters):
            wrong.append({"training_arg": NONSENSE})
        for options in wrong:
            _assert_refused(
                f"purify({options}) of {case}",
                lambda options=options: subject.pure(**options),
                SignatureError,
            )

    def test_unknown_arguments_are_refused(self, case: ConformanceCase) -> None:
        """An argument that the framework refuses is refused by the layer, too, not dropped."""
        subject = self.subject(case)
        args, kwargs = subject.native.restore(subject.arrays)
        kwargs = {**kwargs, NONSENSE: np.ones((), "float32")}
        key = key_from_seed(np.array([9, 0], "uint32"))
        try:
            case.apply(subject.native.model, *subject.native.start, key, args, kwargs, False)
        except Exception:  # each framework has its own errors
            layer = subject.built()
            _assert_refused(
                f"An unknown argument in a call of {case}",
                lambda: layer(*args, **kwargs, training=False),
                JaxLayerError,
            )

    def test_model_is_left_as_it_was(self, case: ConformanceCase) -> None:
        """A model that was used in a layer gives, in its framework's hands, what it gave before.

        Its weights and its mode live in the layer, not in the user's object.
        """
        subject = self.subject(case)
        model = case.make()
        layer = subject.layer(model=model)
        for training in (True, False):
            subject.call(layer, training)
        after = Native(case, model)
        assert_same(after.init(), subject.native.start, f"native init of {case} after use")
        for training in (True, False):
            assert_same(
                after.run(*after.start, (9, 0), training),
                subject.native.run(*after.start, (9, 0), training),
                f"native call of {case} after use in a layer (training={training})",
            )

    def test_layers_are_independent(self, case: ConformanceCase) -> None:
        """Two layers of one model object have their own weights, state and draws."""
        subject = self.subject(case)
        model = case.make()
        one, two = (subject.layer(seed, model) for seed in (1, 2))
        subject.call(one, False)
        subject.call(two, False)
        params, _ = subject.native.init((2, 0))
        assert_same(two.params, params, f"params of the second layer of {case}")
        before, seed = variables_of(two), seed_of(two)
        subject.call(one, True)
        assert_same(variables_of(two), before, f"variables of {case} after a call of another layer")
        assert_same(seed_of(two), seed, f"seed of {case} after a call of another layer")
        expected = subject.run(two, True)
        outputs = subject.call(two, True)
        assert_same(outputs, expected.outputs, f"output of the second layer of {case}")
        assert_same(two.state, expected.state, f"state of the second layer of {case}")


def _assert_refused(what: str, attempt: Any, expected: type[Exception]) -> None:
    try:
        attempt()
    except expected:
        return
    except Exception as error:
        raise AssertionError(
            f"{what} should raise {expected.__name__}, raised {type(error).__name__}: {error}"
        ) from error
    raise AssertionError(f"{what} should raise {expected.__name__}, but is accepted.")
