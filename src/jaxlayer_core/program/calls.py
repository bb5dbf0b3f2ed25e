"""One stored call: what it takes, what it gives, and which blob computes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxlayer_core.program import arrays as forms
from jaxlayer_core.program.arrays import Form
from jaxlayer_core.program.reading import Reader, broken
from jaxlayer_core.program.trees import Node

_MOST = 2**16


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a model in one mode, or its initialisation.

    Attributes:
        method: which of the model's methods; None for the usual one.
        training: the mode.
        arguments: the arguments by name.
        inputs: their arrays.
        least: what open sizes of the inputs must be at least.
        draws: whether it takes a key.
        reads: which of the inputs it takes.
        results: all that it returns.
        blob: the digest of its blob.
        platforms: where it runs.
        no_gradient: why it has no gradient, or None if it has.
    """

    method: str | None
    training: bool
    arguments: Node
    inputs: tuple[Form, ...]
    least: int
    draws: bool
    reads: tuple[bool, ...]
    results: Node
    blob: str
    platforms: tuple[str, ...]
    no_gradient: str | None

    def __str__(self) -> str:
        return show(self.method, self.training, self.arguments, self.inputs)

    def is_like(self, method: str | None, training: bool, arguments: Node) -> bool:
        """Whether a call has the same method, mode, structure and static values."""
        mine = self.method, self.training, self.arguments.contents
        return mine == (method, training, arguments.contents)

    def is_same(self, other: Call) -> bool:
        """Whether another call takes just what this one takes."""
        alike = self.is_like(other.method, other.training, other.arguments)
        return alike and self.ordered(other.arguments, other.inputs) == list(self.inputs)

    def is_variant(self, other: Call) -> bool:
        """Whether another call differs from this one in nothing but sizes."""
        if not self.is_like(other.method, other.training, other.arguments):
            return False
        pairs = zip(self.inputs, self.ordered(other.arguments, other.inputs), strict=True)
        return all((one.dtype, len(one.shape)) == (two.dtype, len(two.shape)) for one, two in pairs)

    @property
    def has_sizes(self) -> bool:
        """Whether its inputs have any size that a caller could want to change."""
        nodes = (node for _, node in self.arguments.walk() if node.kind in ("array", "key"))
        pairs = zip(nodes, self.inputs, strict=True)
        return any(node.kind == "array" and form.shape for node, form in pairs)

    @property
    def is_open(self) -> bool:
        """Whether it takes more than one size."""
        return any(form.is_open for form in self.inputs)

    def ordered(self, arguments: Node, arrays: Sequence[Any]) -> list[Any]:
        """The arrays of a call like this one in the order of this one."""
        by_path = dict(zip(arguments.arrays, arrays, strict=True))
        return [by_path[path] for path in self.arguments.arrays]

    def takes(self, arrays: Sequence[Any]) -> bool:
        """Whether the arrays, in order, have shapes and dtypes that it takes."""
        return forms.fit(self.inputs, arrays, self.least)

    def is_exact(self, arrays: Sequence[Any]) -> bool:
        """Whether the arrays have just the dtypes that it was stored for."""
        pairs = zip(arrays, self.inputs, strict=True)
        return all(array.dtype == form.dtype for array, form in pairs)

    def read_inputs(self, arrays: Sequence[Any]) -> list[Any]:
        """What the blob takes of the arrays, in its dtypes."""
        kept = zip(arrays, self.inputs, self.reads, strict=True)
        return [forms.cast(array, form.dtype) for array, form, reads in kept if reads]

    def get_config(self) -> dict[str, Any]:
        """The call as JSON data."""
        return {
            "method": self.method,
            "training": self.training,
            "arguments": self.arguments.get_config(),
            "inputs": [form.get_config() for form in self.inputs],
            "least": self.least,
            "draws": self.draws,
            "reads": list(self.reads),
            "results": self.results.get_config(),
            "blob": self.blob,
            "platforms": list(self.platforms),
            "no_gradient": self.no_gradient,
        }

    @classmethod
    def read(cls, reader: Reader) -> Call:
        """The call of `get_config()`."""
        arguments = Node.read(reader, "arguments")
        inputs = tuple(map(Form.read, reader.readers("inputs")))
        reads = reader.items("reads")
        if not len(arguments.arrays) == len(inputs) == len(reads):
            raise broken(reader.where, "has not as many inputs as its arguments have arrays")
        if not all(isinstance(one, bool) for one in reads):
            raise broken(f"{reader.where}.reads", "is no list of booleans")
        return cls(
            method=reader.optional_text("method"),
            training=reader.flag("training"),
            arguments=arguments,
            inputs=inputs,
            least=reader.number("least", most=_MOST),
            draws=reader.flag("draws"),
            reads=tuple(reads),
            results=Node.read(reader, "results"),
            blob=reader.text("blob"),
            platforms=tuple(reader.texts("platforms")),
            no_gradient=reader.optional_text("no_gradient"),
        )


def show(method: str | None, training: bool, arguments: Node, inputs: Sequence[Form]) -> str:
    """A call as text, such as `encode(x=float32[None, 3], mode="fast") in inference`."""
    forms = dict(zip(arguments.arrays, inputs, strict=True))
    parts = [
        f"{'.'.join(path)}={forms.get(path, node.label or node.kind)}"
        for path, node in arguments.walk()
        if path
    ]
    return (
        f"{method or '__call__'}({', '.join(parts)}) in {'training' if training else 'inference'}"
    )
