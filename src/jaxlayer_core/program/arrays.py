"""What is known of a program's arrays: dtypes, and shapes in which sizes may be open."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxlayer_core import specs
from jaxlayer_core.program.reading import Reader, broken
from jaxlayer_core.specs import ArraySpec

_LARGEST = 2**40


@dataclasses.dataclass(frozen=True)
class Form:
    """An array that a program takes.

    Attributes:
        shape: sizes; a name stands for any, and for the same size wherever it occurs.
        dtype: the dtype.
    """

    shape: tuple[int | str, ...]
    dtype: Any

    @classmethod
    def of(cls, value: Any) -> Form:
        """The form of an array, whose dimensions may be symbols of JAX."""
        shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
        return cls(shape, jnp.dtype(value.dtype))

    @property
    def spec(self) -> ArraySpec:
        """The same with None for what is open, as Keras shows it."""
        return ArraySpec(tuple(d if isinstance(d, int) else None for d in self.shape), self.dtype)

    @property
    def is_open(self) -> bool:
        """Whether it has a size that a name stands for."""
        return any(isinstance(size, str) for size in self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.spec.shape)}"

    def get_config(self) -> dict[str, Any]:
        """The form as JSON data."""
        return {"shape": list(self.shape), "dtype": self.dtype.name}

    @classmethod
    def read(cls, reader: Reader) -> Form:
        """The form of `get_config()`."""
        shape = reader.items("shape")
        for size in shape:
            is_size = type(size) is int and 0 <= size < _LARGEST
            if not is_size and not (isinstance(size, str) and size.isidentifier()):
                raise broken(f"{reader.where}.shape", f"has the size {size!r:.40}")
        return cls(tuple(shape), read_dtype(reader, "dtype"))


def read_dtype(reader: Reader, key: str) -> Any:
    """A dtype of JAX by its name."""
    name = reader.text(key)
    try:
        dtype = jnp.dtype(name)
        is_known = dtype.name == name and jnp.issubdtype(dtype, jnp.generic)
        is_known = is_known and specs.kind(dtype) >= 0
    except (TypeError, ValueError, StopIteration) as error:
        raise broken(f"{reader.where}.{key}", f"is {name!r:.40}, no dtype", error) from error
    if not is_known:
        raise broken(f"{reader.where}.{key}", f"is {name!r:.40}, no dtype of JAX")
    return dtype


def fit(forms: Sequence[Form], arrays: Sequence[Any], least: int) -> bool:
    """Whether a program takes these arrays.

    Args:
        forms: what it takes.
        arrays: as many arrays.
        least: what open sizes must be at least.

    Example:
        >>> import numpy as np
        >>> forms = [Form(("batch", 3), np.dtype("float32")), Form(("batch",), np.dtype("int32"))]
        >>> fit(forms, [np.ones((5, 3), "float32"), np.ones(5, "int32")], least=1)
        True
        >>> fit(forms, [np.ones((5, 3), "float32"), np.ones(4, "int32")], least=1)
        False
    """
    sizes: dict[str, Any] = {}
    for form, array in zip(forms, arrays, strict=True):
        if not is_castable(array.dtype, form.dtype) or len(array.shape) != len(form.shape):
            return False
        for want, got in zip(form.shape, array.shape, strict=True):
            if isinstance(want, str):
                want = sizes.setdefault(want, got)
                if isinstance(got, int) and got < least:
                    return False
            if want != got:
                return False
    return True


def is_castable(have: Any, want: Any) -> bool:
    """Whether a value of one dtype stands for one of another: both are of the same kind."""
    return specs.kind(have) == specs.kind(want)


def cast(array: Any, dtype: Any) -> Any:
    """An array of another dtype of the same kind; itself where it has that."""
    return array if array.dtype == dtype else jnp.asarray(array).astype(dtype)
