"""`eqx.nn.State`: taken out of a module, put back, and named by the module's own paths."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax

from jaxlayer_core import StructureError, paths
from jaxlayer_equinox.trees import Arrays, Template


def is_index(node: Any) -> bool:
    """Whether a node says where state is kept."""
    return isinstance(node, eqx.nn.StateIndex)


def join(module: eqx.Module, state: eqx.nn.State) -> eqx.Module:
    """The module as its class made it, before `eqx.nn.make_with_state` took the state out.

    Raises:
        StructureError: it is the state of another module.
    """

    def with_init(node: Any) -> Any:
        return eqx.nn.StateIndex(own.get(node)) if is_index(node) else node

    try:
        own = state.substate(module)
        return jax.tree.map(with_init, module, is_leaf=is_index)
    except KeyError as error:
        raise StructureError(
            f"The state given for {type(module).__name__} has nothing for {error}. Give the state "
            "that eqx.nn.make_with_state returned together with the module.",
            cause=error,
        ) from error


def is_apart(module: eqx.Module) -> bool:
    """Whether a module's state was taken out of it."""
    inits = [n.init for n in jax.tree.leaves(module, is_leaf=is_index) if is_index(n)]
    # What Equinox puts there has no public name; it is a module without any field.
    return any(isinstance(init, eqx.Module) and not dataclasses.fields(init) for init in inits)


def named(module: eqx.Module) -> dict[str, Arrays]:
    """The arrays of a module and of its state, if it was not taken out, by the layer's paths."""
    state: Arrays = {}
    if not is_apart(module):
        module, own = eqx.nn.make_with_state(lambda: module)()
        state = template(module, own).arrays(own)
    return {"params": Template(module).arrays(module), "state": state}


def template(module: eqx.Module, state: eqx.nn.State) -> Template:
    """The state without its arrays, which are named as the index that they belong to.

    Args:
        module: with the state taken out.
        state: its whole state; leaves may be anything.
    """
    leaves, treedef = jax.tree.flatten(state)
    names = [str(number) for number in range(len(leaves))]
    numbered = jax.tree.unflatten(treedef, range(len(leaves)))
    for path, index in paths.flatten(module, is_leaf=is_index)[0]:
        if is_index(index):
            for inside, number in paths.flatten(numbered.get(index))[0]:
                names[number] = paths.show((*path, *inside))
    return Template(state, names)
