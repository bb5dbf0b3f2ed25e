"""Out of Keras: models as pure functions for `jax.vmap`, `jax.jvp`, an optax loop."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import keras

from jaxlayer_core import layouts, paths
from jaxlayer_core.errors import BuildError
from jaxlayer_core.pure import Arguments, PureModule, PyTree
from jaxlayer_core.rng import SEED_NAME


class PureModel(NamedTuple):
    """A model outside of Keras.

    Attributes:
        call_fn: `call_fn(params, state, rng, *args, training=False, **kwargs)` gives the outputs
            and the new state, and changes nothing.
        params: pytree of what is trained.
        state: pytree of what the model itself updates.
    """

    call_fn: Callable[..., tuple[PyTree, PyTree]]
    params: PyTree
    state: PyTree


def call_fn(module: PureModule) -> Callable[..., tuple[PyTree, PyTree]]:
    """A module's call with the model's own arguments, as `PureModel.call_fn`."""

    def call(
        params: PyTree,
        state: PyTree,
        rng: jax.Array,
        *args: Any,
        training: bool = False,
        **kwargs: Any,
    ) -> tuple[PyTree, PyTree]:
        arguments = Arguments(*module.signature.complete(args, kwargs, training))
        with layouts.under_mesh():
            outcome = module.call(params, state, rng, arguments, training)
        return outcome.outputs, _written(module, state, outcome.state, training)

    return call


def _written(module: PureModule, before: PyTree, after: PyTree, training: bool) -> PyTree:
    """The state that a layer would have after the call."""
    named, treedef = paths.flatten(after)
    kept = jax.tree.leaves(before)
    leaves = [
        new if module.policy.writes(path, training) else old
        for (path, new), old in zip(named, kept, strict=True)
    ]
    return jax.tree_util.tree_unflatten(treedef, leaves)


def to_pure(model: keras.Model | keras.layers.Layer) -> PureModel:
    """A whole Keras model, or a layer of any kind, as a pure function.

    Params and state are dicts from the paths of Keras' variables to copies of their values.
    The key that `call_fn` gets seeds every random layer anew; with None they draw from the
    seeds in the state, as Keras does. For the model inside a layer of jaxlayer, with its own
    variables and arguments, see `PureLayer.to_pure`.

    Args:
        model: must be built.

    Returns:
        The function, and the values of the model's variables.

    Raises:
        BuildError: it is not built.

    Example:
        >>> import jax, keras, jax.numpy as jnp
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> call_fn, params, state = to_pure(model)
        >>> one = lambda x: call_fn(params, state, None, x[None])[0][0]
        >>> jax.vmap(one)(jnp.ones((4, 3))).shape
        (4, 2)
    """
    if not model.built:
        raise BuildError(f"{model.name} has no variables before it is built. Call it on data.")
    trained, kept = model.trainable_variables, model.non_trainable_variables
    has_modes = "training" in inspect.signature(model.call).parameters
    trained_names, kept_names = _names(trained), _names(kept)

    def call(
        params: PyTree,
        state: PyTree,
        rng: jax.Array | None,
        *args: Any,
        training: bool = False,
        **kwargs: Any,
    ) -> tuple[PyTree, PyTree]:
        values = [state[name] for name in kept_names]
        if rng is not None:
            values = _seeded(rng, kept, values)
        mode = {"training": training} if has_modes else {}
        outputs, after = model.stateless_call(
            [params[name] for name in trained_names], values, *args, **mode, **kwargs
        )
        return outputs, dict(zip(kept_names, after, strict=True))

    return PureModel(call, _copies(trained_names, trained), _copies(kept_names, kept))


def _names(variables: Sequence[keras.Variable]) -> list[str]:
    """Their paths, numbered where Keras gives two variables the same one."""
    names: dict[str, None] = {}
    for variable in variables:
        numbered = (f"{variable.path}_{number}" for number in itertools.count(1))
        name = next(n for n in itertools.chain([variable.path], numbered) if n not in names)
        names[name] = None
    return list(names)


def _copies(names: Sequence[str], variables: Sequence[keras.Variable]) -> dict[str, jax.Array]:
    # Copies, because Keras donates the buffers of its variables when it trains on.
    return {name: jax.numpy.array(v.value) for name, v in zip(names, variables, strict=True)}


def _seeded(
    key: jax.Array, variables: Sequence[keras.Variable], values: Sequence[Any]
) -> list[Any]:
    """The values, with those of seed generators from a key."""
    seeded = []
    for index, (variable, value) in enumerate(zip(variables, values, strict=True)):
        own = jax.random.fold_in(key, index)
        seeded.append(jax.random.bits(own, (2,), "uint32") if variable.name == SEED_NAME else value)
    return seeded
