"""A Keras layer whose model can leave it: as a pure function, or as a program."""

from __future__ import annotations

import functools
from typing import Any

from jaxlayer_core import leaving
from jaxlayer_core.building import BuildingLayer
from jaxlayer_core.leaves import to_abstract
from jaxlayer_core.leaving import PureModel
from jaxlayer_core.program import CallKind, Program, export_program
from jaxlayer_core.variables import VariableTree


class LeavingLayer(BuildingLayer):
    """Hands its model out. Abstract; see `PureLayer` for the arguments."""

    def to_pure(self) -> PureModel:
        """The model as a pure function, with copies of its variables.

        Returns:
            `(call_fn, params, state)`: `call_fn(params, state, rng, *args, training=False,
            **kwargs)` takes the model's own arguments and gives `(outputs, new_state)`. It
            changes nothing, so `jax.vmap`, `jax.jvp` and an optax loop can have it. `rng` is
            the key of the call. What `trainable`, `freeze` and the dtype policy do is Keras'
            part and stays behind.

        Raises:
            BuildError: the layer is not built.

        Example:
            >>> import flax.linen as nn, jax, jax.numpy as jnp
            >>> from jaxlayer_core import as_layer
            >>> layer = as_layer(nn.Dense(2))
            >>> layer.build((None, 3))
            >>> call_fn, params, state = layer.to_pure()
            >>> one = lambda x: call_fn(params, state, jax.random.key(0), x)[0]
            >>> jax.vmap(one)(jnp.ones((4, 3))).shape
            (4, 2)
        """
        params, state = super().variables_tree()
        return PureModel(leaving.call_fn(self._methods[None]), params, state)

    def to_abstract(self, *args: Any, **kwargs: Any) -> PureModel:
        """The model as a pure function, with shapes in place of its variables.

        Nothing is allocated, so a model that is larger than this machine can be laid out over
        the mesh of a `keras.distribution`, lowered and compiled for it:
        `jax.jit(call_fn).lower(params, state, key, x).compile().memory_analysis()`.

        Args:
            *args: what the layer is called with; `jax.ShapeDtypeStruct` or `keras.Input` will do.
                A layer that is built needs none.
            **kwargs: likewise.

        Returns:
            As `to_pure`; the leaves of params and state are `jax.ShapeDtypeStruct`s, with the
            shardings that the variables have or would get under the active distribution.

        Raises:
            BuildError: the layer is not built and no arguments are given.
            LayoutError: the distribution splits a variable in a way that is not possible.

        Example:
            >>> import flax.linen as nn, jax
            >>> from jaxlayer_core import as_layer
            >>> layer = as_layer(nn.Dense(2**20))
            >>> x = jax.ShapeDtypeStruct((8, 2**20), "float32")
            >>> call_fn, params, state = layer.to_abstract(x)
            >>> params["params"]["kernel"].size * 4 // 2**30
            4096
            >>> jax.eval_shape(call_fn, params, state, jax.random.key(0), x)[0].shape
            (8, 1048576)
        """
        params, state = self._abstract_trees(args, kwargs)
        return PureModel(leaving.call_fn(self._methods[None]), params.structs, state.structs)

    def _abstract_trees(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[VariableTree, VariableTree]:
        if self._is_complete:
            return self._params, self._state
        params, state = self.plan(args, kwargs, (self._params, self._state))
        module = self._methods[None]
        return self._trees(
            params,
            state,
            owner=self._owner,
            scopes=module.scopes,
            policy=module.policy,
            make=to_abstract,
        )

    @property
    def save_program(self) -> bool:
        """Whether a saved model has the program of this layer in any case."""
        return self._save_program

    def to_program(self) -> Program:
        """The model as a program that needs neither its source nor its framework.

        Returns:
            The calls made so far, in training and in inference, without the values of the
            variables.

        Raises:
            ProgramError: no call was made yet, or JAX cannot export one.

        Example:
            >>> import flax.linen as nn, jax.numpy as jnp
            >>> from jaxlayer_core import as_layer
            >>> layer = as_layer(nn.Dense(2))
            >>> outputs = layer(jnp.ones((4, 3)))
            >>> from jaxlayer_core.program_layer import ProgramLayer
            >>> ProgramLayer(layer.to_program())(jnp.ones((7, 3))).shape
            (7, 2)
        """
        dtype = self.compute_dtype if self._has_policy else None
        built, recorded = self._built_form, self._recorded
        kinds = recorded.kinds or ([CallKind.of(built)] if built else [])
        export = functools.partial(export_program, self._methods, kinds, self._params, self._state)
        program = recorded.once(
            (dtype, self.autocast),
            lambda: export(built=built, compute_dtype=dtype, casts_inputs=self.autocast),
        )
        return program.with_gaps(*recorded.gaps) if recorded.gaps else program
