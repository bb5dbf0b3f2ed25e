"""The params or the state of a stored model: structure, shapes and dtypes, no values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlayer_core import memory, paths
from jaxlayer_core.errors import StructureError
from jaxlayer_core.program import arrays as forms
from jaxlayer_core.program import trees
from jaxlayer_core.program.arrays import Form, read_dtype
from jaxlayer_core.program.reading import Reader, broken
from jaxlayer_core.program.trees import Node
from jaxlayer_core.pure import PyTree
from jaxlayer_core.specs import ArraySpec


@dataclasses.dataclass(frozen=True)
class Owned:
    """One of the two pytrees of a model.

    Attributes:
        tree: its structure.
        arrays: its arrays as they are kept.
        compute: the dtype in which a call sees each.
    """

    tree: Node
    arrays: tuple[Form, ...]
    compute: tuple[Any, ...]

    @classmethod
    def of(cls, tree: PyTree, compute: Sequence[ArraySpec]) -> Owned:
        """What is known of a pytree.

        Args:
            tree: the pytree; leaves need shape and dtype only.
            compute: specs of its arrays as a call sees them.
        """
        arrays, node = trees.split(tree, numbers=True)
        dtypes = tuple(jnp.dtype(spec.dtype) for spec in compute)
        return cls(node, tuple(map(Form.of, arrays)), dtypes)

    def zeros(self) -> PyTree:
        """The pytree with zeros, to load weights into.

        Raises:
            BuildError: they are more than the machine can hold.
        """
        memory.check_fits("The variables of a saved program", [a.spec for a in self.arrays])
        return self.tree.join(iter([jnp.zeros(a.spec.shape, a.dtype) for a in self.arrays]))

    def seen(self) -> list[jax.ShapeDtypeStruct]:
        """Specs of the arrays as a call sees them."""
        pairs = zip(self.arrays, self.compute, strict=True)
        return [jax.ShapeDtypeStruct(form.spec.shape, dtype) for form, dtype in pairs]

    def forms(self) -> list[Form]:
        """The arrays as a call sees them."""
        return list(map(Form.of, self.seen()))

    def values(self, tree: PyTree, owner: str) -> list[Any]:
        """The arrays of a pytree of this structure, in order, as a call sees them.

        Args:
            tree: containers may be of other classes; the paths count.
            owner: the model's name, for errors.

        Raises:
            StructureError: an array is missing, or does not fit.
        """
        found, node = trees.split(tree, numbers=True)
        by_path = dict(zip(node.arrays, found, strict=True))
        values = []
        for path, want in zip(self.tree.arrays, self.seen(), strict=True):
            value = by_path.get(path)
            got = "nothing" if value is None else str(Form.of(jnp.asarray(value)))
            if value is None or not _fits(jnp.asarray(value), want):
                raise StructureError(
                    f"{owner}, loaded from a saved program, needs {want.dtype}{list(want.shape)} "
                    f"at `{paths.show(path)}` of its variables, and got {got}. Give variables of "
                    "the model that was saved."
                )
            values.append(forms.cast(jnp.asarray(value), want.dtype))
        return values

    def updated(self, tree: PyTree, values: Sequence[Any]) -> PyTree:
        """The pytree with new values, in the order of `values()`, and the same containers."""
        new = dict(zip(self.tree.arrays, values, strict=True))
        leaves, treedef = jax.tree_util.tree_flatten(tree)
        places = trees.split(tree, numbers=True)[1].leaves
        replaced = [
            node.join(iter([new[path]])) if path in new else leaf
            for (path, node), leaf in zip(places, leaves, strict=True)
        ]
        return jax.tree_util.tree_unflatten(treedef, replaced)

    def get_config(self) -> dict[str, Any]:
        """The structure as JSON data."""
        return {
            "tree": self.tree.get_config(),
            "arrays": [
                form.get_config() | {"compute": dtype.name}
                for form, dtype in zip(self.arrays, self.compute, strict=True)
            ],
        }

    @classmethod
    def read(cls, reader: Reader) -> Owned:
        """The structure of `get_config()`."""
        tree, readers = Node.read(reader, "tree"), reader.readers("arrays")
        arrays = tuple(map(Form.read, readers))
        if len(tree.arrays) != len(arrays):
            raise broken(reader.where, "has not as many arrays as its tree")
        if any(form.is_open for form in arrays):
            raise broken(reader.where, "has an array whose shape is open")
        return cls(tree, arrays, tuple(read_dtype(one, "compute") for one in readers))


def _fits(value: Any, want: jax.ShapeDtypeStruct) -> bool:
    return value.shape == want.shape and forms.is_castable(value.dtype, want.dtype)
