"""A Keras layer whose model can leave it: as a pure function, or as a program."""

from __future__ import annotations

import functools

from jaxlayer_core import leaving
from jaxlayer_core.building import BuildingLayer
from jaxlayer_core.leaving import PureModel
from jaxlayer_core.program import CallKind, Program, export_program


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
