"""What a call of an NNX module writes, and a layer cannot keep."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from flax import nnx

from jaxlayer_core import StructureError
from jaxlayer_core.paths import show
from jaxlayer_core.roles import Role
from jaxlayer_flax.nnx_leaves import ARRAYS, collection_of, hook, names_of
from jaxlayer_flax.nnx_trees import Parts
from jaxlayer_flax.roles import Collections

_KEPT_NATIVELY = (Role.STATE, Role.CACHE, Role.CONSTANT)


class Writes:
    """Looks for what is written to params, and for variables that a call makes.

    Args:
        owner: what messages call the module.
        collections: the roles of its collections.
    """

    def __init__(self, owner: str, collections: Collections) -> None:
        self._owner = owner
        self._collections = collections
        self._told: set[str] = set()

    def watch(self, module: nnx.Module) -> None:
        """Warns as soon as a call of this module, which is used for one, writes a param.

        Also inside of `nnx.scan` and its kin, where variables are others: what tells goes with
        their metadata.
        """
        for path, leaf in nnx.iter_graph(module):
            if isinstance(leaf, nnx.Variable) and self._role(leaf) is Role.PARAM:
                hook(leaf, functools.partial(self._written, show(names_of(path))))

    def check_made(self, before: Parts, after: Parts) -> None:
        """Refuses params that a call has made; warns of other variables that it has made.

        Raises:
            StructureError: a param.
        """
        known = {(collection_of(leaf), path) for path, leaf in before.leaves}
        for path, leaf in after.leaves:
            collection, name = collection_of(leaf), show(names_of(path))
            if (collection, path) in known or collection == ARRAYS:
                continue
            if self._role(leaf) is Role.PARAM:
                raise StructureError(
                    f"{self._owner} makes the param `{name}` when it is called, and a layer has "
                    "all its weights before that. Make it in __init__; or call the module once "
                    "before the layer gets it: FlaxLayer(module) after module(x), or "
                    "FlaxLayer(make) where make(rngs) returns a module that it has called."
                )
            if self._role(leaf) in _KEPT_NATIVELY:
                self._tell(
                    name,
                    f"{self._owner} makes the variable `{name}` ({collection}) when it is called, "
                    "and each call of the layer forgets it. If later calls need it, make it in "
                    "__init__, or call the module once before the layer gets it. If it is a loss, "
                    f"or to be looked at: state_policy={{{collection!r}: 'loss'}}, 'metric' or "
                    "'output'; 'drop' if it is neither.",
                )

    def _written(self, name: str, variable: Any, value: Any) -> Any:
        self._tell(
            name,
            f"{self._owner} writes the param `{name}` when it is called. The layer leaves params "
            "to the optimizer, and forgets what calls write to them: training goes on from what "
            "was there before the call. If calls are to keep it, make it a variable that is not "
            "trained, such as nnx.BatchStat.",
        )
        return value

    def _tell(self, name: str, message: str) -> None:
        if name not in self._told:
            self._told.add(name)
            warnings.warn(message, stacklevel=2)

    def _role(self, leaf: Any) -> Role:
        return self._collections.role(collection_of(leaf))
