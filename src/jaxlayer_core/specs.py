"""Shapes with unknown dimensions: what a function returns for arrays nobody has yet.

Keras builds models before it knows the batch size. JAX can trace with symbolic
dimensions, but not every model allows that: one compares sizes, another adds two inputs
whose unknown sizes happen to be the same. `infer` therefore climbs a ladder, from the
most general assumption to concrete sizes, and takes the first that the model accepts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of an array; None stands for an unknown dimension."""

    shape: Shape
    dtype: Any

    @classmethod
    def of(cls, value: Any) -> ArraySpec:
        """Spec of an array, a tracer, a `KerasTensor` or a NumPy value."""
        dtype = value.dtype
        if not jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
            dtype = jax.dtypes.canonicalize_dtype(dtype)
        return cls(tuple(d if isinstance(d, int) else None for d in value.shape), dtype)

    def filled(self, sizes: Sequence[Any]) -> jax.ShapeDtypeStruct:
        """The spec with its unknown dimensions replaced, in order, by `sizes`."""
        replacements = iter(sizes)
        shape = tuple(next(replacements) if d is None else d for d in self.shape)
        return jax.ShapeDtypeStruct(shape, self.dtype)

    def with_size(self, size: int) -> ArraySpec:
        """The spec with one size for all of its unknown dimensions."""
        return ArraySpec(tuple(size if dim is None else dim for dim in self.shape), self.dtype)


Fill = list[list[Any]]
"""For each spec, the sizes of its unknown dimensions."""


def _unknown(specs: Sequence[ArraySpec]) -> list[list[int]]:
    return [[axis for axis, d in enumerate(s.shape) if d is None] for s in specs]


def _symbols(specs: Sequence[ArraySpec], name: Callable[[int, int], str], least: int) -> Fill:
    """Names every unknown dimension by `name(array, axis)`, all at least `least`."""
    names = [[name(i, axis) for axis in axes] for i, axes in enumerate(_unknown(specs))]
    distinct = sorted({n for row in names for n in row})
    constraints = [f"{n} >= {least}" for n in distinct] if least > 1 else []
    scope = export.SymbolicScope(constraints)
    table = {n: export.symbolic_shape(n, scope=scope)[0] for n in distinct}
    return [[table[n] for n in row] for row in names]


_SHARINGS: tuple[Callable[[int, int], str], ...] = (
    lambda array, axis: f"d{array}_{axis}",  # every dimension its own symbol
    lambda array, axis: "batch" if axis == 0 else f"d{array}_{axis}",
    lambda array, axis: f"axis{axis}",  # arrays agree axis by axis
    lambda array, axis: "d",  # all dimensions equal
)
_LEAST = (1, 2, 16)
SIZES = (2, 3, 4, 8, 16, 32, 1)
"""Concrete sizes worth trying, the least special first."""
PROBES = ((2, 3), (3, 5), (4, 8), (8, 16), (16, 32))
"""Pairs of sizes; a size in which the results for both differ is unknown."""


def symbolic_fills(
    specs: Sequence[ArraySpec], sizes: Sequence[Sequence[int | None]] | None = None
) -> Iterator[tuple[Fill, int]]:
    """The symbolic rungs of the ladder, without repeating one that names the dimensions alike.

    Args:
        specs: one spec per array.
        sizes: for each spec, sizes that its unknown dimensions had once, or None. What had
            different sizes never gets the same symbol.

    Yields:
        Sizes for the unknown dimensions of all specs, and what these are assumed to be at least.
    """
    unknown = _unknown(specs)
    known = {
        (i, axis): size
        for i, axes in enumerate(unknown if sizes else [])
        for axis, size in zip(axes, (sizes or [])[i], strict=True)
        if size is not None
    }

    def by_size(array: int, axis: int) -> str:
        size = known.get((array, axis))
        return _SHARINGS[0](array, axis) if size is None else f"size{size}"

    seen = set()
    for sharing in (_SHARINGS[0], by_size, *_SHARINGS[1:]):
        names = tuple(sharing(i, axis) for i, axes in enumerate(unknown) for axis in axes)
        if len({(sharing(*place), size) for place, size in known.items()}) > len(
            {sharing(*place) for place in known}
        ):
            continue
        partition = tuple(names.index(n) for n in names)
        if partition in seen:
            continue
        seen.add(partition)
        for least in _LEAST:
            yield _symbols(specs, sharing, least), least


def _constant(specs: Sequence[ArraySpec], size: int) -> Fill:
    return [[size] * len(axes) for axes in _unknown(specs)]


def _evaluate(fn: Callable[[list[Any]], Any], specs: Sequence[ArraySpec], fill: Fill) -> Any:
    arrays = [spec.filled(sizes) for spec, sizes in zip(specs, fill, strict=True)]
    return jax.eval_shape(fn, arrays)


def _to_spec(leaf: Any) -> ArraySpec:
    return ArraySpec(tuple(d if isinstance(d, int) else None for d in leaf.shape), leaf.dtype)


def _merge(one: Any, other: Any) -> ArraySpec:
    """Marks the dimensions in which two probes differ as unknown."""
    if len(one.shape) != len(other.shape) or one.dtype != other.dtype:
        raise TypeError(f"the result changes its kind with the input size: {one} and {other}")
    shape = tuple(a if a == b else None for a, b in zip(one.shape, other.shape, strict=True))
    return ArraySpec(shape, one.dtype)


def infer(fn: Callable[[list[Any]], Any], specs: Sequence[ArraySpec]) -> Any:
    """Specs of what `fn` returns, without running it.

    Args:
        fn: takes a list of arrays, returns a pytree of arrays.
        specs: one spec per array.

    Returns:
        The pytree, its leaves `ArraySpec`.

    Raises:
        Exception: what `fn` itself raises on concrete sizes, if no rung works.

    Example:
        >>> import jax.numpy as jnp
        >>> infer(lambda xs: xs[0] @ jnp.ones((3, 4)), [ArraySpec((None, 3), jnp.float32)])
        ArraySpec(shape=(None, 4), dtype=dtype('float32'))
    """
    if not any(_unknown(specs)):
        return jax.tree.map(_to_spec, _evaluate(fn, specs, _constant(specs, 0)))
    size: int | None = None
    for fill, _ in symbolic_fills(specs):
        try:
            return jax.tree.map(_to_spec, _evaluate(fn, specs, fill))
        except Exception:
            # The next rung assumes more. If no concrete size works either, it is not the
            # ladder that fails but the model, and `_accepted_size` raises its own error.
            size = size or _accepted_size(fn, specs)
    for sizes in PROBES:
        try:
            one, other = (_evaluate(fn, specs, _constant(specs, size)) for size in sizes)
            merged = jax.tree.map(_merge, one, other)
        except Exception:
            continue  # the next pair
        if not any(0 in leaf.shape for leaf in jax.tree.leaves(one)):  # too small to tell
            return merged
    # A single size works; nothing can be said about how the result grows with it.
    assert size is not None
    return jax.tree.map(_to_spec, _evaluate(fn, specs, _constant(specs, size)))


def _accepted_size(fn: Callable[[list[Any]], Any], specs: Sequence[ArraySpec]) -> int:
    """The first size of the unknown dimensions that `fn` accepts; raises if there is none."""
    first: Exception | None = None
    for size in SIZES:
        try:
            _evaluate(fn, specs, _constant(specs, size))
        except Exception as error:
            first = first or error
        else:
            return size
    assert first is not None
    raise first


_KINDS = (np.bool_, np.integer, np.floating, np.complexfloating)


def kind(dtype: Any) -> int:
    """The kind of a dtype, ordered so that a lower one fits into a higher one without loss.

    Returns:
        0 to 3 for booleans, integers, floating and complex numbers; -1 for PRNG keys.
    """
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return -1
    return next(i for i, k in enumerate(_KINDS) if jax.numpy.issubdtype(dtype, k))


def is_numeric(dtype: np.dtype[Any]) -> bool:
    """Whether JAX has arrays of a NumPy dtype: not of text, bytes, times and objects."""
    return dtype.kind not in "USOmM"


def placeholder(spec: ArraySpec, size: int = 1) -> Any:
    """An array of ones to initialise with.

    Args:
        spec: what is known of the array.
        size: the size of its unknown dimensions.
    """
    return np.ones(tuple(size if d is None else d for d in spec.shape), spec.dtype)


def program_text(fn: Callable[[list[Any]], Any], specs: Sequence[ArraySpec]) -> str | None:
    """The traced program of `fn` as text, or None if `fn` raises for every size."""
    for size in SIZES if any(_unknown(specs)) else SIZES[:1]:
        arrays = [
            spec.filled(sizes) for spec, sizes in zip(specs, _constant(specs, size), strict=True)
        ]
        try:
            return str(jax.make_jaxpr(fn)(arrays))
        except Exception:
            continue  # perhaps another size; a model that refuses a keyword refuses it always
    return None
