"""What all groups of properties share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxlayer_core.adapter import Adapter
from jaxlayer_core.testing.cases import ConformanceCase
from jaxlayer_core.testing.comparing import require
from jaxlayer_core.testing.subject import Subject


class Properties:
    """Abstract: cases, and one test method per property. See `AdapterConformance`."""

    adapter: ClassVar[Adapter | type[Adapter] | None] = None
    cases: ClassVar[Sequence[ConformanceCase]] = ()

    @staticmethod
    def given(params: Any, state: Any) -> dict[str, Any]:
        """The layer's options for variables that the user has already.

        Override it where the framework's own layer takes them in its own words.
        """
        return {"params": params, "state": state}

    def subject(self, case: ConformanceCase) -> Subject:
        """The case under this adapter."""
        self.check_declared()
        assert self.adapter is not None
        return Subject(self.adapter, case)

    @classmethod
    def check_declared(cls) -> None:
        """Refuses a class that would test nothing.

        Raises:
            AssertionError: there is no adapter or no case, or two cases have one name.
        """
        require(
            isinstance(cls.adapter, Adapter)
            or (isinstance(cls.adapter, type) and issubclass(cls.adapter, Adapter)),
            f"{cls.__name__}.adapter must be an Adapter or its class, got {cls.adapter!r}.",
        )
        require(cls.cases, f"{cls.__name__}.cases is empty: nothing would be tested.")
        names = [case.name for case in cls.cases]
        require(
            len(set(names)) == len(names), f"{cls.__name__}.cases: names are not unique: {names}."
        )
