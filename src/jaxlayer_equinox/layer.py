"""`EquinoxLayer`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import equinox as eqx
import jax
import keras

from jaxlayer_core import ModuleLayer
from jaxlayer_equinox import states
from jaxlayer_equinox.adapter import EquinoxAdapter
from jaxlayer_equinox.batching import BatchAxis
from jaxlayer_equinox.models import Model


@keras.saving.register_keras_serializable(package="jaxlayer")
class EquinoxLayer(ModuleLayer):
    """Keras layer that runs an Equinox module as its author wrote it.

    `layer(*args, **kwargs)` takes the module's own arguments, with a batch. A module is written
    for one example, so it is mapped over the batch, as `jax.vmap(module)` does. An argument
    `key` gets the key of `layer.seed_generator`'s state, split for the examples; it is no
    argument of the layer. `inference` attributes follow Keras' `training`, as
    `eqx.nn.inference_mode` sets them.

    The weights are the module's arrays, by path: `layer.params["layers/0/weight"]`. Inexact ones
    are trained. Static fields, functions and Python numbers stay as they are.

    Args:
        module: a module, whose arrays are the initial weights; or what makes one: a class, a
            `functools.partial` of it, or a function. It gets the key
            `jaxlayer_core.key_from_seed([seed, 0])`, as `key=` or as its only argument.
        batch_axis: the axis of the arguments that is the batch; None for a module that takes
            whole batches; or a dict from an argument's name to its axis, None if all examples
            share it. Outputs have the batch as their first axis.
        axis_name: what the module calls the batch, in `jax.lax.pmean(x, axis_name)`. By default
            the `axis_name` of its layers, such as `eqx.nn.BatchNorm`; without any, `"batch"`.
        method: which method to call; None for `__call__`. A single call can choose another by
            name: `layer(x, method="encode")`.
        params: initial params: a module like this one, or a dict by path.
        state: the `eqx.nn.State` that `eqx.nn.make_with_state` returned with the module, or a
            dict by path. A module that was made without `make_with_state` has its own.
        seed: integer seed; makes the initial weights and all draws reproducible.
        training_arg: the train flag among the arguments of the call, where it has an unusual
            name; see `ModuleLayer`.
        **kwargs: options of the layer, see `PureLayer`.

    Raises:
        AdapterError: `module` is none of these, or needs more than a key.
        SignatureError: there is no such method, flag or argument.
        StructureError: `params` or `state` are of another module.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp
        >>> layer = EquinoxLayer(eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0)))
        >>> layer(jnp.ones((4, 3))).shape
        (4, 2)
        >>> layer.params["layers/0/weight"].shape
        (8, 3)
        >>> EquinoxLayer(lambda key: eqx.nn.Linear(3, 2, key=key), seed=0)(jnp.ones((4, 3))).shape
        (4, 2)
    """

    adapter_class = EquinoxAdapter

    def __init__(
        self,
        module: Any,
        *,
        batch_axis: BatchAxis = 0,
        axis_name: Hashable = None,
        method: Any = None,
        params: Any = None,
        state: Any = None,
        seed: int | None = None,
        training_arg: str | Iterable[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(module, eqx.Module) and isinstance(state, eqx.nn.State):
            module, state = states.join(module, state), None
        self._model = Model(module)
        own_params, own_state = _values(self._model, module)
        if isinstance(params, eqx.Module):
            params = self._model.arrays(params)
        if isinstance(state, eqx.nn.State):
            state = self._model.state_arrays(state)
        self._batch_axis = batch_axis
        self._axis_name = axis_name
        super().__init__(
            module,
            adapter=EquinoxAdapter(batch_axis, axis_name),
            method=method,
            params=own_params if params is None else params,
            state=own_state if state is None else state,
            seed=seed,
            training_arg=training_arg,
            **kwargs,
        )

    def variables_tree(self) -> Any:
        """The module with the values of the layer's variables.

        Returns:
            A module that Equinox code takes; for a module with state, `(module, state)`. The
            arrays are copies.

        Raises:
            BuildError: the layer is not built.
        """
        module, state = self._model.restore(*super().variables_tree())
        return (module, state) if self._model.is_stateful else module

    def _named_tree(self, tree: Any) -> Any:
        if isinstance(tree, eqx.Module):
            return states.named(tree)
        match tree:
            case eqx.Module() as module, eqx.nn.State() as state:
                return states.named(states.join(module, state))
        return tree

    def get_config(self) -> dict[str, Any]:
        """Config with the module as Keras serialises it; its arrays are weights."""
        return {
            **super().get_config(),
            "batch_axis": self._batch_axis,
            "axis_name": self._axis_name,
        }


def _values(model: Model, module: Any) -> tuple[Any, Any]:
    """The arrays of a module that exists, if their values are known; otherwise `(None, None)`."""
    if not isinstance(module, eqx.Module):
        return None, None
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(module)):
        return None, None
    apart, state = eqx.nn.make_with_state(lambda: module)()
    return model.arrays(apart), model.state_arrays(state)
