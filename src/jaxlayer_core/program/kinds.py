"""Calls that differ in nothing but the sizes of their arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence

from jaxlayer_core.calls import CallForm
from jaxlayer_core.specs import ArraySpec

Specs = tuple[ArraySpec, ...]
"""Specs of the arrays of a call, in its order."""

_MOST = 8
"""How many calls of a kind are kept as they were."""


@dataclasses.dataclass(frozen=True)
class CallKind:
    """Calls of the same structure, whose arrays have the same dtypes and numbers of dimensions.

    Attributes:
        form: what they have in common; a size in which they differ is unknown.
        seen: specs of the first of them.
    """

    form: CallForm
    seen: tuple[Specs, ...]

    @classmethod
    def of(cls, form: CallForm) -> CallKind:
        """The kind of which one call is known."""
        return cls(form.without_values(), (form.specs,))

    def with_call(self, specs: Specs) -> CallKind:
        """The kind with one call more; itself if that says nothing new.

        Example:
            >>> import numpy as np
            >>> from jaxlayer_core.calls import CallForm
            >>> kind = CallKind.of(CallForm.read((np.ones((4, 3), "float32"),), {}))
            >>> kind.with_call((ArraySpec((8, 3), np.dtype("float32")),)).form.specs[0].shape
            (None, 3)
        """
        common = tuple(map(_common, self.form.specs, specs))
        is_new = specs not in self.seen and len(self.seen) < _MOST
        if common == self.form.specs and not is_new:
            return self
        form = dataclasses.replace(self.form, specs=common)
        return CallKind(form, (*self.seen, specs) if is_new else self.seen)

    def map(self, function: Callable[[ArraySpec], ArraySpec]) -> CallKind:
        """The kind with other specs."""
        form, *seen = (tuple(map(function, specs)) for specs in (self.form.specs, *self.seen))
        return CallKind(dataclasses.replace(self.form, specs=form), tuple(seen))

    def covers(self, form: CallForm) -> bool:
        """Whether a call differs from those of the kind in nothing but dtypes."""
        alike = self.form.structure == form.structure and len(self.form.specs) == len(form.specs)
        return alike and all(
            len(own.shape) == len(other.shape)
            and all(a in (None, b) for a, b in zip(own.shape, other.shape, strict=True))
            for own, other in zip(self.form.specs, form.specs, strict=True)
        )

    def openings(self, specs: Specs) -> Iterator[Specs]:
        """One of the calls, with all sizes unknown that differ between calls, then with fewer.

        The sizes of first dimensions, which are those of the examples, are the last that become
        known.
        """
        sizes = sorted(
            {
                size
                for spec, general in zip(specs, self.form.specs, strict=True)
                for size, common in zip(spec.shape[1:], general.shape[1:], strict=True)
                if size is not None and common is None
            }
        )
        for closed in ([], *([size] for size in sizes), sizes):
            yield tuple(
                _opened(spec, general, closed)
                for spec, general in zip(specs, self.form.specs, strict=True)
            )
        yield specs


def _common(one: ArraySpec, other: ArraySpec) -> ArraySpec:
    """The spec that both have, with None where they differ."""
    dims = zip(one.shape, other.shape, strict=True)
    return ArraySpec(tuple(a if a == b else None for a, b in dims), one.dtype)


def _opened(spec: ArraySpec, general: ArraySpec, closed: Collection[int]) -> ArraySpec:
    """The spec with None where the general one has it, but for sizes that stay closed."""
    shape = tuple(
        None if common is None and (axis == 0 or size not in closed) else size
        for axis, (size, common) in enumerate(zip(spec.shape, general.shape, strict=True))
    )
    return dataclasses.replace(spec, shape=shape)


def kind_of(kinds: Sequence[CallKind], form: CallForm) -> CallKind:
    """The kind among these that covers a call, or one of its own."""
    return next((kind for kind in kinds if kind.covers(form)), CallKind.of(form))
