"""Properties of randomness: when the seed moves, and what it decides."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxlayer_core.testing.base import Properties
from jaxlayer_core.testing.cases import ConformanceCase
from jaxlayer_core.testing.comparing import assert_same, is_same, require
from jaxlayer_core.testing.subject import AnyLayer, Subject, seed_of, variables_of


class DrawingProperties(Properties):
    """A layer draws when its model does, from its seed and nothing else."""

    def test_seed_moves_only_for_draws(self, case: ConformanceCase) -> None:
        """A call that draws natively moves the seed's counter by one; any other leaves it."""
        subject = self.subject(case)
        layer = subject.built()
        for training in (True, False, True):
            step = int(subject.native.draws(training))
            expected = seed_of(layer) + np.array([0, step], "uint32")
            subject.call(layer, training)
            assert_same(
                seed_of(layer),
                expected,
                f"seed of {case} after a call (training={training}) that "
                f"{'draws' if step else 'does not draw'} natively",
            )

    def test_draws_are_fresh(self, case: ConformanceCase) -> None:
        """A call that draws natively gives something else each time, any other the same."""
        subject = self.subject(case)
        layer = subject.built()
        start = variables_of(layer)
        for training in (True, False):
            one, other = (_outcome(subject, layer, training, start) for _ in range(2))
            draws = subject.native.draws(training)
            require(
                is_same(one, other) is not draws,
                f"{case} {'draws' if draws else 'does not draw'} natively with "
                f"training={training}, but two calls from the same variables give "
                f"{'the same' if draws else 'different things'}.",
            )

    def test_same_seed(self, case: ConformanceCase) -> None:
        """Two layers with one seed have the same weights and draw the same."""
        subject = self.subject(case)
        one, other = subject.built(), subject.built()
        assert_same(variables_of(one), variables_of(other), f"variables of {case} with one seed")
        for training in (True, False):
            got, expected = (subject.call(layer, training) for layer in (other, one))
            assert_same(got, expected, f"output of {case} with one seed (training={training})")
        assert_same(variables_of(one), variables_of(other), f"variables of {case} after calls")

    def test_no_seed(self, case: ConformanceCase) -> None:
        """Without a seed two layers differ, in whatever is random natively."""
        subject = self.subject(case)
        one, other = subject.built(None), subject.built(None)
        if subject.native.is_random:
            require(
                not is_same(variables_of(one), variables_of(other)),
                f"Two layers of {case} without a seed have the same initial values.",
            )
        start = variables_of(one)
        if subject.native.draws(True):
            first, second = (_outcome(subject, layer, True, start) for layer in (one, other))
            require(
                not is_same(first, second),
                f"Two layers of {case} without a seed draw the same from the same weights.",
            )


def _outcome(subject: Subject, layer: AnyLayer, training: bool, start: Any) -> Any:
    """Outputs and state of a call from the variables `start`."""
    subject.assign(layer, start)
    outputs = subject.call(layer, training)
    return outputs, variables_of(layer)[1]
