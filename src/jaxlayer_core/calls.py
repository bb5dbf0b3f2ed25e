"""What is known of a call before it runs, and how it is read from what users write."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import keras
import numpy as np

from jaxlayer_core import errors, memory, specs
from jaxlayer_core.errors import BuildError, ConfigError, JaxLayerError, ModuleError
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.structure import CallStructure, Static, is_array

_LARGEST = 2**63 - 1
"""The largest size that an array can have."""


@dataclasses.dataclass(frozen=True)
class CallForm:
    """A call: its structure and its arrays.

    Attributes:
        structure: the call without its arrays.
        specs: specs of the arrays.
        values: the arrays (tracers and `KerasTensor`s included), or () where there are none.
    """

    structure: CallStructure
    specs: tuple[ArraySpec, ...]
    values: tuple[Any, ...] = ()

    @classmethod
    def of(cls, structure: CallStructure, arrays: Sequence[Any]) -> CallForm:
        """The form of a structure with its arrays."""
        return cls(structure, tuple(map(ArraySpec.of, arrays)), tuple(arrays))

    @classmethod
    def read(
        cls,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        method: str | None = None,
        unpack: bool = False,
    ) -> CallForm:
        """Splits a call into its arrays and the rest.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.
            method: the method that is called.
            unpack: whether a single container stands for several arguments.
        """
        if unpack and len(args) == 1 and not kwargs and not is_array(args[0]):
            (only,) = args
            if isinstance(only, dict):
                args, kwargs = (), only
            elif isinstance(only, tuple | list):
                args = tuple(only)
        arrays, structure = CallStructure.of(args, kwargs, method)
        return cls.of(structure, arrays)

    @property
    def has_unknown_dimensions(self) -> bool:
        """Whether any dimension is None or a symbol."""
        return any(None in spec.shape for spec in self.specs)

    def value(self, index: int, size: int) -> Any:
        """An input to initialise with: the real one, or ones.

        Args:
            index: which array.
            size: the size of unknown dimensions.
        """
        value = self.values[index] if self.values else None
        if _is_concrete(value):
            return value
        spec = self.specs[index]
        filled = ArraySpec(tuple(size if dim is None else dim for dim in spec.shape), spec.dtype)
        memory.check_fits(f"An input of shape {spec.shape} to initialise with", [filled])
        return specs.placeholder(spec, size)

    def concrete(self) -> CallForm:
        """The form with those of its arrays that have data; the others must not be kept."""
        values = (value if _is_concrete(value) else None for value in self.values)
        return dataclasses.replace(self, values=tuple(values))

    def without_values(self) -> CallForm:
        """The form without its arrays, to be kept."""
        return dataclasses.replace(self, values=())

    def get_config(self) -> dict[str, Any]:
        """The call as data."""
        return {
            "structure": self.structure.get_config(),
            "arrays": [
                {"shape": list(spec.shape), "dtype": jax.numpy.dtype(spec.dtype).name}
                for spec in self.specs
            ],
        }

    @classmethod
    def from_config(cls, config: Any) -> CallForm:
        """The call of `get_config()`.

        Raises:
            ConfigError: the config is broken, or names what may not be had.
        """
        with errors.in_config_of("call"):
            structure = CallStructure.from_config(config["structure"])
            arrays = tuple(_spec(**array) for array in config["arrays"])
        if len(arrays) != sum(not isinstance(leaf, Static) for leaf in structure.leaves):
            raise ConfigError(f"The config of a call has {len(arrays)} arrays, and other places.")
        return cls(structure, arrays)


def _spec(shape: Any, dtype: Any) -> ArraySpec:
    if not all(dim is None or (type(dim) is int and 0 <= dim <= _LARGEST) for dim in shape):
        raise ConfigError(f"The config of a call has an array of the shape {shape!r:.80}.")
    return ArraySpec(tuple(shape), jax.numpy.dtype(keras.backend.standardize_dtype(dtype)))


def _is_concrete(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray) and not isinstance(value, jax.core.Tracer)


def forms_of_shape(name: str, shape: Any, dtype: str, unpack: bool) -> list[CallForm]:
    """The calls that a bare input shape may stand for: floating data, or integers.

    Args:
        name: the layer's name, for the error.
        shape: shape or nest of shapes of one positional input.
        dtype: the floating dtype to assume.
        unpack: as in `CallForm.read`.

    Raises:
        BuildError: there is no shape.
    """
    if shape is None:
        raise BuildError(
            f"{name} cannot be built before the shape of its input is known. Call it on data "
            "or on keras.Input(...), or use layer.build(input_shape)."
        )
    return [form_of_shape(shape, [], unpack, default) for default in (dtype, "int32")]


def form_of_shape(shape: Any, dtypes: Sequence[Any], unpack: bool, default: str) -> CallForm:
    """The call with one positional input of a shape.

    Args:
        shape: shape or nest of shapes.
        dtypes: dtypes of the arrays, in order, as far as they are known.
        unpack: as in `CallForm.read`.
        default: dtype of the other arrays.
    """
    known = iter(dtypes)

    def tensor(one: Any) -> keras.KerasTensor:
        return keras.KerasTensor(one, keras.backend.standardize_dtype(next(known, default)))

    nest = keras.tree.map_shape_structure(tensor, shape)
    return CallForm.read((nest,), {}, None, unpack)


@contextlib.contextmanager
def explained(layer: str, owner: str, doing: str, form: CallForm) -> Iterator[None]:
    """Turns what a framework raises into an error that says which layer and inputs.

    Args:
        layer: the layer's name.
        owner: the model's name.
        doing: `"call"`, or what else is done to it.
        form: the call.
    """
    try:
        yield
    except JaxLayerError:
        raise
    except Exception as error:
        shown = ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in form.specs)
        kind = ModuleError if doing == "call" else BuildError
        raise kind(
            f"{owner}, wrapped by the layer {layer!r}, failed to {doing} its model on inputs "
            f"{shown or '(none)'}: {type(error).__name__}: {error}",
            cause=error,
        ) from error
