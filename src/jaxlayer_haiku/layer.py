"""`HaikuLayer`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import haiku as hk
import keras

from jaxlayer_core import AdapterError, ModuleLayer, SignatureError
from jaxlayer_haiku import transforms
from jaxlayer_haiku.adapter import HaikuAdapter

_LAYER_OPTIONS = {
    "activity_regularizer",
    "autocast",
    "constraints",
    "copy_variables",
    "dtype",
    "has_own_dtype",
    "has_policy",
    "input_dim",
    "input_shape",
    "keep_float32",
    "name",
    "non_array_outputs",
    "regularizers",
    "remat",
    "save_program",
    "state_policy",
    "trainable",
    "unpack_inputs",
}


@keras.saving.register_keras_serializable(package="jaxlayer")
class HaikuLayer(ModuleLayer):
    """Keras layer that runs a Haiku model as its author wrote it.

    `layer(*args, **kwargs)` takes the model's own arguments. Its train flag, whatever its
    name, follows Keras' `training`. The initial weights are those of
    `transform.init(key, ...)` with the key `jaxlayer_core.key_from_seed([seed, 0])`, in
    training mode; a call that draws gets the key of `layer.seed_generator`'s state.

    Args:
        module: a function that uses Haiku modules, which is transformed; an
            `hk.Transformed`, `hk.TransformedWithState`, what `hk.without_apply_rng` makes of
            them; an `hk.MultiTransformed(WithState)`; or an `hk.Module` class, followed by
            its arguments.
        *args: arguments of the `hk.Module` class.
        method: which method of the class or entry of the multi-transform to call. A single
            call can choose another: `layer(x, method="encode")`.
        params: initial params; None to initialise.
        state: initial state; None to initialise.
        seed: integer seed; makes the initial weights and all draws reproducible.
        training_arg: the train flag, where it has an unusual name; see `ModuleLayer`.
        capture: names of modules, as in the params (`resnet/~/block_0`), or regular
            expressions for whole names: the layer then returns `(output, {name: value})`
            with what these modules return. For a method: `encoder/embed`. What runs inside
            `hk.remat`, `hk.scan` or `hk.layer_stack` does not come out; the module around does.
            Calls of another method capture nothing.
        module_kwargs: keyword arguments of the `hk.Module` class, where they have the name
            of a layer option, such as `name`.
        **kwargs: options of the layer, see `PureLayer`; the rest are keyword arguments of
            the `hk.Module` class.

    Raises:
        AdapterError: `module` is none of these.
        SignatureError: unknown arguments, or no such method or flag.

    Example:
        >>> import haiku as hk, jax.numpy as jnp
        >>> layer = HaikuLayer(lambda x: hk.nets.MLP([8, 2])(x), seed=0)
        >>> layer(jnp.ones((4, 3))).shape
        (4, 2)
        >>> HaikuLayer(hk.nets.MLP, [8, 2], activate_final=True)(jnp.ones((4, 3))).shape
        (4, 2)
    """

    adapter_class = HaikuAdapter

    def __init__(
        self,
        module: Any,
        *args: Any,
        method: Any = None,
        params: Any = None,
        state: Any = None,
        seed: int | None = None,
        training_arg: str | Iterable[str] | None = None,
        capture: str | Iterable[str] = (),
        module_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not (callable(module) or HaikuAdapter().accepts(module)):
            raise AdapterError(
                "HaikuLayer takes a function that uses Haiku modules, a Haiku transform or an "
                f"hk.Module class, got {module!r}."
            )
        own = {**(module_kwargs or {})}
        own |= {name: kwargs.pop(name) for name in list(kwargs) if name not in _LAYER_OPTIONS}
        if args or own:
            if not transforms.is_module_class(module):
                raise SignatureError(
                    f"HaikuLayer got {[*args, *own]} in addition to {module!r}. Only an hk.Module "
                    "class is followed by arguments. Options of the layer are: "
                    f"{', '.join(sorted(_LAYER_OPTIONS))}."
                )
            module = functools.partial(module, *args, **own)
        super().__init__(
            module,
            adapter=HaikuAdapter(),
            method=method,
            params=_plain(params),
            state=_plain(state),
            seed=seed,
            training_arg=training_arg,
            capture=capture,
            **kwargs,
        )


def _plain(tree: Any) -> Any:
    """Dicts, where older versions of Haiku gave mappings of their own."""
    return hk.data_structures.to_mutable_dict(tree) if isinstance(tree, Mapping) else tree
