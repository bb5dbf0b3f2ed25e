"""`FlaxLayer`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import keras

from jaxlayer_core import (
    Adapter,
    AdapterError,
    ModuleLayer,
    SignatureError,
    key_from_seed,
)
from jaxlayer_core.roles import Role
from jaxlayer_flax.adapting import FlaxAdapter
from jaxlayer_flax.linen import LinenAdapter
from jaxlayer_flax.nnx import NnxAdapter

ADAPTERS: tuple[type[FlaxAdapter], ...] = (LinenAdapter, NnxAdapter)
"""The first that accepts a module adapts it."""


@keras.saving.register_keras_serializable(package="jaxlayer")
class FlaxLayer(ModuleLayer):
    """Keras layer that runs a Flax module, of linen or of NNX, as its author wrote it.

    `layer(*args, **kwargs)` takes the module's own arguments. Its train flag, whatever its
    name and polarity, follows Keras' `training`.

    Linen: the initial variables are those of `module.init(key, ...)` with the key
    `jaxlayer_core.key_from_seed([seed, 0])`, in training mode. In a call, `rngs` has the streams
    that the module asks for, each `jaxlayer_core.stream_key(key, name)` of the key of
    `layer.seed_generator`'s state.

    NNX: an instance stays as it is, and its variables are the initial ones. A class or function
    is called with `rngs=nnx.Rngs(key)`, with the same key, when the layer is built. Variables
    are in collections by type: `nnx.Param` is `params`, `nnx.BatchStat` is `batch_stats`. The mode
    is set by the module's own `train()` and `eval()`, and attributes named as train flags. In a
    call, the module's streams start as `jaxlayer_flax.reseed(module, key)` has them start, and
    `rngs`, if the call takes that, is `nnx.Rngs(key)`.

    Takes everything that `keras.layers.FlaxLayer` takes, with the same meaning.

    Args:
        module: a `flax.linen.Module`; or a `flax.nnx.Module`, a class of these, or a function that
            makes one, the last two with arguments as a `functools.partial`.
        method: which method to call: a name, a bound method, or a function that takes the
            module first; None for `__call__`. A single call can choose another by name:
            `layer(x, method="encode")`.
        variables: dict of collections, as `module.init` returns them; a FrozenDict and
            boxed (`nn.Partitioned`) leaves are fine, and for NNX an `nnx.State`. Collections that
            are missing are initialised.
        training_arg: the train flag, where it has an unusual name; see `ModuleLayer`.
        rngs: streams to supply in training besides those that the module demands with
            `make_rng`: those that it only looks for with `has_rng`. For NNX, streams that
            `nnx.Rngs(...)` has besides the default.
        capture: paths of modules whose results, or of sown values, that the layer returns
            beside its output: it then returns `(output, {path: value})`. A path is
            `encoder/block_0`, or a regular expression for whole paths. Calls of another
            method capture nothing.
        state_policy: collection, or pattern for paths that begin with the collection, to
            role: `"state"`, `"cache"` (written in inference, too), `"loss"`, `"metric"`,
            `"output"`, `"constant"`, `"drop"`, and for whole collections `"param"`. It goes
            before `jaxlayer_flax.roles.COLLECTIONS`. A collection that is a loss, a metric or
            an output is made anew in each call, so it is for what `sow` makes; what `variable`
            makes gets such a role leaf by leaf, as `batch_stats/.*`, and is kept, too.
        seed: integer seed; makes the initial weights and all draws reproducible.
        native_serialization_platforms: accepted for compatibility with Keras; it concerns
            the TensorFlow backend.
        **kwargs: options of the layer, see `PureLayer`.

    Raises:
        AdapterError: `module` is no Flax module, and makes none.
        SignatureError: there is no such method or flag.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> layer = FlaxLayer(nn.Dense(2), seed=0)
        >>> layer(jnp.ones((4, 3))).shape
        (4, 2)
        >>> layer.params["params"]["kernel"].path
        'flax_layer/params/kernel'
        >>> import functools
        >>> from flax import nnx
        >>> FlaxLayer(functools.partial(nnx.Linear, 3, 2), seed=0)(jnp.ones((4, 3))).shape
        (4, 2)
    """

    adapter_class = FlaxAdapter

    @classmethod
    def is_for(cls, adapter: Adapter) -> bool:
        """Whether `as_layer` wraps the models of an adapter in this class."""
        return type(adapter) in ADAPTERS

    def __init__(
        self,
        module: Any,
        method: Any = None,
        variables: Any = None,
        *,
        training_arg: str | Iterable[str] | None = None,
        rngs: Iterable[str] = (),
        capture: str | Iterable[str] = (),
        state_policy: Mapping[str, Role | str] | None = None,
        seed: int | None = None,
        native_serialization_platforms: Any = None,
        **kwargs: Any,
    ) -> None:
        for name in ("params", "state"):
            if name in kwargs:
                raise SignatureError(
                    f"FlaxLayer has no argument {name!r}: params and state of a Flax module come "
                    "together, as variables={'params': ..., 'batch_stats': ...}."
                )
        self._rngs = tuple(rngs)
        adapter = _adapter_of(module, self._rngs)
        params, state = (None, None)
        if variables is not None:
            params, state = adapter.variables(module, variables, state_policy)
        self._adapter = adapter
        self._native_serialization_platforms = native_serialization_platforms
        super().__init__(
            module,
            adapter=adapter,
            method=method,
            params=params,
            state=state,
            training_arg=training_arg,
            capture=capture,
            state_policy=state_policy,
            seed=seed,
            **kwargs,
        )

    def variables_tree(self) -> dict[str, Any]:
        """The values of the variables, as a dict of collections that `module.apply` takes."""
        params, state = super().variables_tree()
        return {**(params or {}), **(state or {})}

    def _named_tree(self, tree: Any) -> Any:
        return self._adapter.collections(tree)

    def _passed_over(self) -> Collection[str]:
        return self._adapter.passed_over(self.module)

    def to_module(self) -> Any:
        """A module of Flax with copies of the layer's variables, to work with outside of Keras.

        Returns:
            For NNX a live module, in the mode that the module given is in; its random streams
            start from the layer's seed. For linen the module, bound to the variables.

        Raises:
            BuildError: the layer has no variables yet.
        """
        key = key_from_seed(self.seed_generator.state.value)
        return self._adapter.live(self.module, self.variables_tree(), key)

    def get_config(self) -> dict[str, Any]:
        """Config with the module as Keras serialises it."""
        return {
            **super().get_config(),
            "rngs": list(self._rngs),
            "native_serialization_platforms": self._native_serialization_platforms,
        }


def _adapter_of(module: Any, rngs: tuple[str, ...]) -> FlaxAdapter:
    found = next((made for made in (cls(rngs) for cls in ADAPTERS) if made.takes(module)), None)
    if found is None:
        raise AdapterError(
            f"FlaxLayer takes an instance of flax.linen.Module, or a flax.nnx.Module, its class or "
            f"a function that makes one, got {module!r}"
            f"{', which is a class' if isinstance(module, type) else ''}. Models of other "
            "frameworks become layers by HaikuLayer, JaxLayer or as_layer."
        )
    return found
