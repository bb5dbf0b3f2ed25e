"""What a program cannot do that its model could, for whoever is about to rely on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxlayer_core.program.calls import Call
from jaxlayer_core.program.exporting import NOT_DIFFERENTIABLE, PLATFORMS


def of(calls: Sequence[Call], gaps: Sequence[str]) -> list[str]:
    """The shortcomings, one a sentence; none for a program that does all that its model did.

    Args:
        calls: the calls that the program holds.
        gaps: what could not be stored, and why.
    """
    concerned: dict[str, list[str]] = {}
    for call in calls:
        for shortcoming in _of_call(call, calls):
            concerned.setdefault(shortcoming, []).append(str(call))
    return [*gaps, *(f"{what}: {', '.join(them)}" for what, them in concerned.items())]


def _of_call(call: Call, calls: Sequence[Call]) -> Iterator[str]:
    if call.no_gradient not in (None, NOT_DIFFERENTIABLE):
        yield f"No gradient ({call.no_gradient})"
    if call.is_open and call.least > 1:
        yield f"Unknown sizes (None) must be at least {call.least}"
    if call.has_sizes and not call.is_open:
        yield "For these sizes only"
    elif any(other.is_variant(call) for other in calls if other is not call):
        yield "Besides None, for these sizes only"
    if missing := [name for name in PLATFORMS if name not in call.platforms]:
        yield f"Not on {', '.join(missing)}"
