"""NNX modules taken apart: their structure, and the values of their variables by collection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxlayer_flax.nnx_leaves import (
    annotated,
    as_arrays,
    collection_of,
    is_rng_state,
    names_of,
    raw,
    replace,
)
from jaxlayer_flax.nnx_rngs import reseeded

Path = tuple[Any, ...]
Leaves = Sequence[tuple[Path, Any]]
"""Path and NNX variable, or array that is no variable, in the order of `nnx.split`."""


class Parts(NamedTuple):
    """A module as `nnx.split` takes it apart, from which modules are made in any trace.

    Attributes:
        graphdef: all that is not an array.
        leaves: the variables, each object once however many share it.
    """

    graphdef: Any
    leaves: Leaves

    @classmethod
    def of(cls, module: Any) -> Parts:
        """Takes a module apart."""
        graphdef, state = nnx.split(module)
        return cls(graphdef, tuple(nnx.to_flat_state(state)))

    def named(self) -> dict[tuple[str, ...], Any]:
        """The values by path, collection first, without the states of random streams.

        Values without arrays, as a bias that is None, belong to the structure.
        """
        return {path: as_arrays(raw(leaf)) for path, leaf in self._owned()}

    def variables(self) -> dict[str, Any]:
        """The same as dicts of dicts."""
        return nested(self.named())

    def annotated(self) -> dict[str, Any]:
        """The same, each value with the mesh axes that its variable names."""
        return nested({path: annotated(leaf, as_arrays(raw(leaf))) for path, leaf in self._owned()})

    def streams(self) -> set[str]:
        """Paths of the states of random streams, as files may have them."""
        paths = ("/".join(names_of(path)) for path, leaf in self.leaves if is_rng_state(leaf))
        return {name for path in paths for name in (path, f"{path}/value")}

    def as_it_is(self) -> Any:
        """A new module with the same values, be they specs."""
        leaves = [(path, replace(leaf, raw(leaf))) for path, leaf in self.leaves]
        return nnx.merge(self.graphdef, nnx.from_flat_state(leaves))

    def holding(self, values: Iterable[Any]) -> Parts:
        """The same with other values, in the order of the leaves."""
        pairs = zip(self.leaves, values, strict=True)
        return Parts(self.graphdef, [(path, replace(leaf, value)) for (path, leaf), value in pairs])

    def without(self, collections: Collection[str]) -> Parts:
        """A module like this one that lacks the variables of some collections."""
        module = self.as_it_is()
        nnx.pop(module, lambda path, leaf: collection_of(leaf) in collections)
        return Parts.of(module)

    def _owned(self) -> list[tuple[tuple[str, ...], Any]]:
        return [
            ((collection_of(leaf), *names_of(path)), leaf)
            for path, leaf in self.leaves
            if not is_rng_state(leaf) and jax.tree.leaves(raw(leaf))
        ]

    def merge(self, variables: Mapping[str, Any], key: jax.Array) -> Any:
        """A new module.

        Args:
            variables: values by collection and path; those that are missing stay as they are.
            key: what the random streams start anew from.
        """

        def value(path: Path, leaf: Any) -> Any:
            if is_rng_state(leaf):
                return reseeded(path, leaf, key)
            return find(variables, (collection_of(leaf), *names_of(path)), raw(leaf))

        leaves = [(path, replace(leaf, value(path, leaf))) for path, leaf in self.leaves]
        return nnx.merge(self.graphdef, nnx.from_flat_state(leaves))


class Traced:
    """A function that makes modules, traced once: all modules are made of that trace.

    Args:
        make: makes a module, with a key.

    Attributes:
        parts: a module taken apart; its arrays are specs.
    """

    parts: Parts

    def __init__(self, make: Callable[[jax.Array], Any]) -> None:
        found: list[Parts] = []

        def values(key: jax.Array) -> list[Any]:
            found[:] = [Parts.of(make(key))]
            return [raw(leaf) for _, leaf in found[0].leaves]

        # Inlined into other traces, it is what `make` would be there, at the cost of a lookup.
        self._values = jax.jit(values, inline=True)
        specs = jax.eval_shape(self._values, jax.random.key(0))
        self.parts = found[0].holding(specs)

    def make(self, key: jax.Array) -> Any:
        """A new module, in the trace in progress."""
        return self.parts.holding(self._values(key)).as_it_is()


def nested(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Dicts of dicts out of values by path.

    Example:
        >>> nested({("params", "layers", "0", "bias"): 1})
        {'params': {'layers': {'0': {'bias': 1}}}}
    """
    tree: dict[str, Any] = {}
    for (*parents, last), value in values.items():
        branch = tree
        for name in parents:
            branch = branch.setdefault(name, {})
        branch[last] = value
    return tree


def updated(tree: Any, values: Any) -> Any:
    """Dicts of dicts with the values of others that have them."""
    if not isinstance(tree, Mapping):
        return values
    return {
        name: updated(branch, values[name]) if name in values else branch
        for name, branch in tree.items()
    }


def find(tree: Any, path: Sequence[str], default: Any) -> Any:
    """What is at a path in dicts of dicts, or the default."""
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return default
        tree = tree[name]
    return tree


@contextlib.contextmanager
def unsharded() -> Iterator[None]:
    """Annotated variables can be made without a mesh: Keras places them, not Flax."""
    eager: Callable[[bool], Any] | None = getattr(nnx, "use_eager_sharding", None)
    with eager(False) if eager is not None else contextlib.nullcontext():
        yield
