"""The stored initialisation of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxlayer_core.program.arrays import Form, cast, fit
from jaxlayer_core.program.calls import Call
from jaxlayer_core.program.owned import Owned
from jaxlayer_core.program.reading import Reader, broken
from jaxlayer_core.program.trees import Node
from jaxlayer_core.pure import Annotated, Variables


@dataclasses.dataclass(frozen=True)
class Init:
    """An initialisation.

    Attributes:
        call: what it takes and gives.
        axes: the mesh axes that the model asks for, per array.
    """

    call: Call
    axes: tuple[tuple[str | None, ...] | None, ...]

    def makes(self, params: Owned, state: Owned) -> bool:
        """Whether it makes the variables that a program has."""
        if not self.call.results.has_names("params", "state"):
            return False
        owned = [("params", *leaf) for leaf in _leaves(params.tree)]
        owned += [("state", *leaf) for leaf in _leaves(state.tree)]
        made = [(path[0], path[1:], kind) for path, kind in _leaves(self.call.results)]
        return sorted(made) == sorted(owned)

    def inputs(self, arguments: Node, arrays: Sequence[Any]) -> list[Any] | None:
        """The arrays of its inputs among those of a call, or None if they do not fit it.

        They get the dtypes that it was stored for. A call may lack what it does not use.
        """
        by_path = dict(zip(arguments.arrays, arrays, strict=True))
        found = zip(self.call.arguments.arrays, self.call.inputs, self.call.reads, strict=True)
        forms: list[Form] = []
        given: list[Any] = []
        used: list[tuple[Any, Any]] = []
        for path, form, reads in found:
            if path not in by_path:
                if reads:
                    return None
                continue
            forms.append(form)
            given.append(by_path[path])
            used += [(by_path[path], form.dtype)] if reads else []
        if not fit(forms, given, self.call.least):
            return None
        return [cast(array, dtype) for array, dtype in used]

    def variables(self, results: Sequence[Any]) -> Variables:
        """The variables, of what the initialisation returned."""
        boxed = [
            value if axes is None else Annotated(value, axes)
            for value, axes in zip(results, self.axes, strict=True)
        ]
        return Variables(**self.call.results.join(iter(boxed)))

    def get_config(self) -> dict[str, Any]:
        """The initialisation as JSON data."""
        axes = [None if one is None else list(one) for one in self.axes]
        return {"call": self.call.get_config(), "axes": axes}

    @classmethod
    def read(cls, reader: Reader, params: Owned, state: Owned) -> Init:
        """The initialisation of `get_config()`."""
        call = Call.read(reader.reader("call"))
        axes = tuple(_read_axes(one, reader) for one in reader.items("axes"))
        init = cls(call, axes)
        if not init.makes(params, state) or len(axes) != len(call.results.arrays):
            raise broken(reader.where, "does not make the variables of the program")
        return init


def _leaves(tree: Node) -> list[tuple[tuple[str, ...], str]]:
    return [(path, node.kind) for path, node in tree.leaves]


def _read_axes(axes: Any, reader: Reader) -> tuple[str | None, ...] | None:
    if axes is None:
        return None
    if not isinstance(axes, list) or not all(one is None or isinstance(one, str) for one in axes):
        raise broken(f"{reader.where}.axes", "are no lists of names")
    return tuple(axes)
