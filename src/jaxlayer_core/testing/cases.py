"""What a plug-in author gives: models, and how their framework itself runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

PyTree = Any


class NativeInit(Protocol):
    """How a user of the framework initialises a model: in training mode, with one key."""

    def __call__(
        self, model: Any, key: jax.Array, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[PyTree, PyTree]:
        """Returns params and state, `{}` where there is none, laid out as the adapter does."""
        ...


class NativeApply(Protocol):
    """How a user of the framework runs a model. It runs under `jax.jit`.

    What a framework makes of one key, such as named streams, belongs to its adapter, and is done
    here by hand as the adapter's documentation says.
    """

    def __call__(
        self,
        model: Any,
        params: PyTree,
        state: PyTree,
        key: jax.Array,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        training: bool,
    ) -> tuple[PyTree, PyTree] | tuple[PyTree, PyTree, PyTree]:
        """Returns outputs, the state that the user keeps, and losses where the model makes any.

        The state has the structure of the one that went in. In inference it is the one that went
        in, but for what inference is meant to write (a decoding cache).
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ConformanceCase:
    """One model, small enough that everything is tried on it.

    Which properties say something about it is found by running `init` and `apply`: whether it
    draws, whether it has state, whether its modes differ, whether the batch may have any size.

    Attributes:
        name: unique.
        make: makes the model, the same each time.
        arguments: gives args and kwargs. Arrays are data, all other leaves are static; train
            flags are not among them. Four rows or more, and no two alike, show the most.
        init: the framework's own way to initialise the model.
        apply: the framework's own way to run it.
        options: of the layer, such as `{"training_arg": "learning"}`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> ConformanceCase(
        ...     "scale",
        ...     make=lambda: 2.0,
        ...     arguments=lambda: ((jnp.ones((4, 3)),), {}),
        ...     init=lambda model, key, args, kwargs: ({"scale": model}, {}),
        ...     apply=lambda model, params, state, key, args, kwargs, training: (
        ...         args[0] * params["scale"], state),
        ... )
        <ConformanceCase scale>
    """

    name: str
    make: Callable[[], Any]
    arguments: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    init: NativeInit
    apply: NativeApply
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<ConformanceCase {self.name}>"
