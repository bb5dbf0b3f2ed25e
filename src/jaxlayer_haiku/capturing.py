"""Intermediate results of a Haiku model, by the names of the modules that gave them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import haiku as hk

from jaxlayer_core import PatternError
from jaxlayer_core.patterns import near


class Capture:
    """What to capture.

    Args:
        names: `mlp/~/linear_0` for what that module returns, `encoder/embed` for its method
            `embed`; or regular expressions for whole names.
    """

    def __init__(self, names: str | Iterable[str]) -> None:
        self._names = [names] if isinstance(names, str) else list(names)
        self._expressions = [re.compile(name) for name in self._names]

    def __bool__(self) -> bool:
        return bool(self._names)

    @contextlib.contextmanager
    def recording(self, owner: str) -> Iterator[dict[str, Any]]:
        """Records while the model runs.

        Args:
            owner: the model's name, for errors.

        Yields:
            What is wanted, by name, once the model has run; a tuple where a module was
            called several times.

        Raises:
            PatternError: nothing was found for a name.
        """
        captured: dict[str, Any] = {}
        if not self._names:
            yield captured
            return
        calls: dict[str, list[Any]] = {}

        def record(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = method(*args, **kwargs)
            if context.method_name == "__init__":
                return result
            name = context.module.module_name
            if context.method_name != "__call__":
                name += f"/{context.method_name}"
            calls.setdefault(name, []).append(result)
            return result

        with hk.intercept_methods(record):
            yield captured
        for name, expression in zip(self._names, self._expressions, strict=True):
            found = {n: v for n, v in calls.items() if expression.fullmatch(n)}
            if not found:
                raise PatternError(
                    f"capture: {name!r} matches no module that {owner} called. "
                    f"{near(name, list(calls))}"
                )
            captured.update({n: v[0] if len(v) == 1 else tuple(v) for n, v in found.items()})
