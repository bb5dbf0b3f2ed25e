"""`JaxLayer`: plain JAX functions with the argument names of `keras.layers.JaxLayer`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import keras

from jaxlayer_core import leaves, model_config
from jaxlayer_core.errors import SignatureError, StructureError
from jaxlayer_core.layer import PureLayer
from jaxlayer_core.pure import Arguments, Outcome, PureModule, PyTree, Variables
from jaxlayer_core.roles import Policy, Role
from jaxlayer_core.signature import CallSignature
from jaxlayer_core.source import Source

_CALL_NAMES = ("params", "state", "rng", "inputs", "training")
_INIT_NAMES = ("rng", "inputs", "training")


def _argument_names(fn: Callable[..., Any], role: str, allowed: tuple[str, ...]) -> list[str]:
    """The names a function takes, checked against the contract."""
    names = list(inspect.signature(fn).parameters)
    if "inputs" not in names:
        raise SignatureError(
            f"Missing required argument in `{role}`: `inputs`. It takes "
            f"({', '.join(names)}); the input to the model must be called `inputs`."
        )
    for name in names:
        if name not in allowed:
            raise SignatureError(
                f"Unsupported argument in `{role}`: `{name}`. Supported arguments are "
                f"{', '.join(f'`{a}`' for a in allowed)}. Wrap the function in one with these "
                "names; for Haiku and Flax models use HaikuLayer and FlaxLayer, which take "
                "the model's own."
            )
    return names


def purify(
    call_fn: Callable[..., Any],
    init_fn: Callable[..., Any] | None = None,
) -> PureModule:
    """Makes the canonical form of functions that follow the contract of `JaxLayer`.

    Args:
        call_fn: takes any of `params`, `state`, `rng`, `inputs`, `training`.
        init_fn: takes any of `rng`, `inputs`, `training`; None if nothing is initialised.
    """
    call_names = _argument_names(call_fn, "call_fn", _CALL_NAMES)
    owner = f"`call_fn` ({getattr(call_fn, '__name__', type(call_fn).__name__)})"
    stateful = "state" in call_names

    def call(
        params: PyTree, state: PyTree, rng: jax.Array, arguments: Arguments, training: bool
    ) -> Outcome:
        values = {
            "params": params,
            "state": state,
            "rng": rng,
            "inputs": arguments.args[0],
            "training": training,
        }
        # By position, whatever the order, as the contract names arguments only.
        result = call_fn(*(values[name] for name in call_names))
        if not stateful:
            return Outcome(result, state)
        outputs, new_state = _pair(result, owner, "(outputs, state)")
        return Outcome(outputs, new_state)

    init = None
    if init_fn is not None:
        init_names = _argument_names(init_fn, "init_fn", _INIT_NAMES)

        def init(rng: jax.Array, arguments: Arguments) -> Variables:
            values = {"rng": rng, "inputs": arguments.args[0], "training": True}
            result = init_fn(*(values[name] for name in init_names))
            if not stateful:
                return Variables(result, None)
            return Variables(*_pair(result, "`init_fn`", "(params, state)"))

    inputs = inspect.Parameter("inputs", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    has_modes = "training" in call_names
    return PureModule(
        init=init,
        call=call,
        signature=CallSignature(owner, (inputs,), {}),
        has_modes=has_modes,
        # A function that is told the mode decides by it what state it returns.
        policy=Policy({}, Role.CACHE if has_modes else Role.STATE),
    )


def _pair(result: Any, owner: str, names: str) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise StructureError(
            f"{owner} must return the tuple {names}, because `call_fn` has a `state` argument, "
            f"but it returned a {type(result).__name__}. Return both, or leave out `state`."
        )
    return result


@keras.saving.register_keras_serializable(package="jaxlayer")
class JaxLayer(PureLayer):
    """Keras layer that runs plain JAX functions.

    Takes everything that `keras.layers.JaxLayer` takes, with the same meaning, and also
    works where that does not: without TensorFlow, inside traces, with integer inputs,
    with unknown dimensions.

    `call_fn` takes, by these names and in any order, any of `params`, `state`, `rng` (a
    typed JAX key), `inputs` (required) and `training` (a bool). With `state` it returns
    `(outputs, new_state)`, otherwise the outputs. `init_fn` takes any of `rng`, `inputs`
    (required) and `training` (always True), and returns `params`, or `(params, state)` if
    `call_fn` has `state`.

    Args:
        call_fn: runs the model.
        init_fn: makes the initial variables. Used if neither `params` nor `state` is given.
        params: pytree of trainable parameters. Python numbers count as arrays; leaves that
            are neither, such as strings and None, are handed to `call_fn` as they are.
        state: pytree of non-trainable state, likewise.
        seed: integer seed; makes the initial weights and all draws reproducible.
        native_serialization_platforms: accepted for compatibility with Keras; it concerns
            the TensorFlow backend.
        **kwargs: see `PureLayer`.

    Raises:
        SignatureError: a function has arguments outside the contract.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def init_fn(rng, inputs):
        ...     return {"w": jax.random.normal(rng, (inputs.shape[-1], 2))}
        >>> def call_fn(params, inputs):
        ...     return inputs @ params["w"]
        >>> layer = JaxLayer(call_fn, init_fn, seed=0)
        >>> layer(jnp.ones((4, 3))).shape
        (4, 2)
        >>> layer.params["w"].path
        'jax_layer/params/w'
    """

    def __init__(
        self,
        call_fn: Callable[..., Any],
        init_fn: Callable[..., Any] | None = None,
        params: PyTree = None,
        state: PyTree = None,
        seed: int | None = None,
        native_serialization_platforms: Any = None,
        **kwargs: Any,
    ) -> None:
        names = _argument_names(call_fn, "call_fn", _CALL_NAMES)
        if init_fn is not None:
            _argument_names(init_fn, "init_fn", _INIT_NAMES)
        owns = "params" in names or "state" in names
        given = params is not None or state is not None
        if owns and not given and init_fn is None:
            raise SignatureError(
                "`init_fn`, `params` and `state` cannot all be None when `call_fn` takes `params` "
                "or `state`. Give an `init_fn` that makes them, or the values."
            )
        self.call_fn = call_fn
        self.init_fn = init_fn
        self._native_serialization_platforms = native_serialization_platforms
        module = purify(call_fn, init_fn if owns and not given else None)

        def only(method: str | None) -> PureModule:
            if method is not None:
                raise SignatureError(f"A JaxLayer has no methods to choose, got {method!r}.")
            return module

        super().__init__(only, params=params, state=state, seed=seed, **kwargs)
        parts: dict[str, Any] = {"call_fn": call_fn, "init_fn": init_fn}
        if self._init_key is None:  # nothing but the config can tell what was given
            parts |= {"params": self._params.blank, "state": self._state.blank}
        self._source = Source(self.name, parts)

    def get_config(self) -> dict[str, Any]:
        """Config with both functions."""
        return {
            **super().get_config(),
            **model_config.describe(self, self._source),
            "native_serialization_platforms": self._native_serialization_platforms,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PureLayer:
        """Rebuilds the layer from `get_config()`.

        Returns:
            The layer; a `ProgramLayer` where the functions are not to be had, but their program
            is. Variables that were given are zeros, until weights are loaded.

        Raises:
            TrustError: the config names what nobody trusts.
            ConfigError: the config is broken.
        """
        config = dict(config)
        parts = model_config.restore(cls, config, "call_fn")
        if isinstance(parts, PureLayer):
            return parts
        given = {name: leaves.zeros(parts[name]) for name in ("params", "state") if name in parts}
        layer: JaxLayer = super().from_config({**config, **parts, **given})
        return layer
