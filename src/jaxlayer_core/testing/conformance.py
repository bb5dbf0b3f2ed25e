"""`AdapterConformance`: every property that can be stated for any framework."""

from __future__ import annotations

from typing import Any

from jaxlayer_core.testing.adapting import AdaptingProperties
from jaxlayer_core.testing.calling import CallingProperties
from jaxlayer_core.testing.drawing import DrawingProperties
from jaxlayer_core.testing.owning import OwningProperties
from jaxlayer_core.testing.running import RunningProperties
from jaxlayer_core.testing.training import TrainingProperties


class AdapterConformance(
    AdaptingProperties,
    CallingProperties,
    DrawingProperties,
    OwningProperties,
    TrainingProperties,
    RunningProperties,
):
    """The properties that every adapter has. Abstract: subclass it in a test file of pytest.

    Each `test_` method is one property, and its docstring says what the users of the adapter can
    rely on. pytest runs each with every case; `check` does so without pytest. Whether a property
    says something about a case is decided by what the framework itself shows.

    Attributes:
        adapter: the adapter, or its class.
        cases: the models to try; a handful of small ones, which together draw, have state, take
            several arguments, and have whatever else the framework has.

    Example:
        class TestScaleAdapter(AdapterConformance):
            adapter = ScaleAdapter
            cases = [ConformanceCase("scale", make=lambda: Scale(2.0), ...)]
    """

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Pytest's hook: one test per property and case."""
        self.check_declared()
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases, ids=[case.name for case in self.cases])

    @classmethod
    def properties(cls) -> list[str]:
        """Names of all properties."""
        return [name for name in dir(cls) if name.startswith("test_")]

    @classmethod
    def check(cls) -> None:
        """Checks every property of every case, without pytest.

        Raises:
            AssertionError: the first that does not hold.
        """
        cls.check_declared()
        for case in cls.cases:
            for name in cls.properties():
                getattr(cls(), name)(case)
