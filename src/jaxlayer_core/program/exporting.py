"""One function of arrays as a stored program: for any sizes, on any platform, if it can be."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters import partial_eval

from jaxlayer_core import dependencies, operations, specs
from jaxlayer_core.errors import ProgramError
from jaxlayer_core.program import checking, trial
from jaxlayer_core.program.arrays import Form, fit
from jaxlayer_core.program.blobs import Blob
from jaxlayer_core.specs import ArraySpec

PLATFORMS = ("cpu", "cuda", "tpu")
"""What a program is stored for, besides the platform that it is stored on."""


NOT_DIFFERENTIABLE = "none of its arguments was differentiable"
"""Why there is no gradient where nobody could want one."""


class Rung(NamedTuple):
    """Inputs that a model may accept, more or less general.

    Attributes:
        inputs: shapes, in which symbols stand for what is open.
        least: what these are assumed to be at least.
    """

    inputs: list[jax.ShapeDtypeStruct]
    least: int

    def takes(self, inputs: Sequence[ArraySpec]) -> bool:
        """Whether it has room for inputs of these specs, in which sizes may be unknown."""
        return fit(list(map(Form.of, self.inputs)), inputs, self.least)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A stored function.

    Attributes:
        blob: the program, of those arguments that it keeps.
        kept: which arguments it keeps.
        inputs: what it takes as inputs.
        least: what open sizes must be at least.
        platforms: where it runs.
        no_gradient: why it has no gradient, or None if it has.
    """

    blob: Blob
    kept: tuple[bool, ...]
    inputs: tuple[Form, ...]
    least: int
    platforms: tuple[str, ...]
    no_gradient: str | None


def store(
    function: Callable[..., Sequence[Any]],
    own: Sequence[jax.ShapeDtypeStruct],
    ladder: Sequence[Rung],
    *,
    droppable: Callable[[int], bool],
    gradient: bool,
) -> Stored:
    """Stores a function, as general as it allows.

    Args:
        function: takes arrays, returns a flat sequence of arrays.
        own: specs of the first arguments, which are as they are.
        ladder: specs of the others, the most general first.
        droppable: whether an argument, by its number, is left out if it is not used.
        gradient: whether the gradient is wanted.

    Raises:
        Exception: what the most concrete attempt raised, if none works.
    """
    failure: Exception | None = None
    for wants_gradient in (True, False) if gradient else (False,):
        no_gradient = None if gradient else "none was stored"
        if gradient and not wants_gradient:
            no_gradient = f"{type(failure).__name__}: {failure}"
        for rung in ladder:
            try:
                # The wrapper makes JAX trace anew: the function notes what it returns.
                traced = jax.jit(lambda *arrays: function(*arrays)).trace(*own, *rung.inputs)
                blob, kept, platforms, has = _lower(traced, droppable, wants_gradient)
            except Exception as error:  # the next rung assumes more
                failure = error
                continue
            if wants_gradient and not has:
                no_gradient = NOT_DIFFERENTIABLE
            forms = tuple(map(Form.of, rung.inputs))
            return Stored(blob, kept, forms, rung.least, platforms, no_gradient)
    assert failure is not None
    raise failure


def rungs(
    inputs: Sequence[ArraySpec],
    batch: int | None,
    closed: Collection[int] = (),
    seen: Sequence[Sequence[ArraySpec]] = (),
) -> Iterator[Rung]:
    """From sizes that are all open, as far as they may be, to those of the recorded call.

    The first dimension is taken for that of the examples, even in a call with data: of all inputs,
    then of those in which it is the batch size.

    Args:
        inputs: specs of the recorded call.
        batch: its batch size, None if it is unknown.
        closed: numbers of the inputs whose sizes are never open.
        seen: inputs of calls that were made. Open sizes may have to be the same only where they
            were in all of these.
    """
    done: set[tuple[ArraySpec, ...]] = set()
    concrete = [call for call in seen if not any(None in spec.shape for spec in call)]
    for opens in (lambda size: True, lambda size: size == batch, lambda size: False):
        opened = tuple(
            spec if index in closed else _opened(spec, opens) for index, spec in enumerate(inputs)
        )
        if opened in done:
            continue
        done.add(opened)
        if not any(None in spec.shape for spec in opened):
            yield Rung([spec.filled(()) for spec in opened], 1)
            continue
        for fill, least in specs.symbolic_fills(opened, _sizes(opened, concrete or [inputs])):
            filled = [spec.filled(sizes) for spec, sizes in zip(opened, fill, strict=True)]
            yield Rung(filled, least)


def _sizes(
    opened: Sequence[ArraySpec], calls: Sequence[Sequence[ArraySpec]]
) -> list[list[int | None]]:
    """Numbers for the open sizes, the same for those that are the same in each of the calls."""
    numbers: dict[tuple[int | None, ...], int] = {}

    def number(index: int, axis: int) -> int | None:
        sizes = tuple(call[index].shape[axis] for call in calls)
        return None if None in sizes else numbers.setdefault(sizes, len(numbers))

    return [
        [number(index, axis) for axis, size in enumerate(spec.shape) if size is None]
        for index, spec in enumerate(opened)
    ]


def _opened(spec: ArraySpec, opens: Callable[[int | None], bool]) -> ArraySpec:
    if not spec.shape or not opens(spec.shape[0]):
        return spec
    return dataclasses.replace(spec, shape=(None, *spec.shape[1:]))


def _lower(
    traced: Any, droppable: Callable[[int], bool], gradient: bool
) -> tuple[Blob, tuple[bool, ...], tuple[str, ...], bool]:
    """Stores what was traced, for as many platforms as have all of its operations."""
    closed = traced.jaxpr
    if calls := sorted({name for name in operations.names(closed.jaxpr) if "callback" in name}):
        raise ProgramError(
            f"it calls back into Python ({', '.join(calls)}), which no program can hold"
        )
    count = len(closed.jaxpr.invars)
    needed = [not droppable(index) for index in range(count)]
    outputs = [True] * len(closed.jaxpr.outvars)
    live, kept = partial_eval.dce_jaxpr(closed.jaxpr, outputs, instantiate=needed)
    function = jax.jit(jaxpr_as_fun(ClosedJaxpr(live, closed.consts)))
    avals = [v.aval for v, keep in zip(closed.jaxpr.invars, kept, strict=True) if keep]
    arguments = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    gradient = gradient and any(jnp.issubdtype(aval.dtype, np.inexact) for aval in avals)
    failure: Exception | None = None
    for platforms in _platforms():
        try:
            blob = _serialize(function, arguments, platforms, gradient)
        except Exception as error:  # fewer platforms may have what it needs
            failure = error
        else:
            return blob, tuple(kept), platforms, gradient
    assert failure is not None
    raise failure


def _platforms() -> Iterator[tuple[str, ...]]:
    """Sets of platforms, the largest first; the current one is in all of them."""
    current = export.default_export_platform()
    others = [name for name in PLATFORMS if name != current]
    for count in range(len(others), -1, -1):
        for some in itertools.combinations(others, count):
            yield (current, *some)


def _serialize(
    function: Any,
    arguments: Sequence[jax.ShapeDtypeStruct],
    platforms: tuple[str, ...],
    gradient: bool,
) -> Blob:
    with _no_locations():
        exported = export.export(function, platforms=platforms)(*arguments)
        content = bytes(exported.serialize(vjp_order=int(gradient)))
    checking.check(export.deserialize(bytearray(content)), "The program")
    blob = Blob.of(content)
    trial.remember(blob.digest)
    return blob


def require_serializer() -> None:
    """Checks that the package is there that JAX reads and writes programs with.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        importlib.import_module("flatbuffers")
    except ImportError as error:
        raise dependencies.missing("flatbuffers", error) from error


@contextmanager
def _no_locations() -> Iterator[None]:
    """Keeps the names and lines of the user's own files out of what is stored."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
