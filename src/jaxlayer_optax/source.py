"""What an optimizer was made of, in its config."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from jaxlayer_core import keras_bridge, serialization
from jaxlayer_core.errors import ConfigError, NotExpressibleError
from jaxlayer_optax.serialization import check_factory
from jaxlayer_optax.transformation import is_transformation

_ENTRY = "transformation"
_WAY_OUT = (
    "Make it in a function that can be imported, and give that: OptaxOptimizer(my_module.make_tx). "
    "Functions inside of it, such as masks, are jaxlayer_optax.Matching and Labels, or functions "
    "that can be imported."
)


class _Config(dict[str, Any]):
    """Data of a transformation; a copy made of the config itself, not of its JSON, has it."""

    parts: Mapping[str, Any]


def describe(owner: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a config.

    Args:
        owner: the optimizer's name, for messages.
        parts: what it was made with.

    Returns:
        The data; where there are none, the reason, which is also a UserWarning.
    """
    config = _Config()
    config.parts = dict(parts)
    try:
        encoded = serialization.encode(dict(parts), "the optimizer")
    except NotExpressibleError as error:
        config["reason"] = str(error)
    else:
        config["data"] = encoded.data
        if not encoded.is_importable:
            names = [ref.name for ref in encoded.objects if not ref.is_importable]
            config["reason"] = f"{', '.join(names)} cannot be imported by another process."
    if "reason" in config:
        warnings.warn(
            f"The config of {owner} is stored without what could make its transformation again. "
            f"Its state is stored. {config['reason']} {_WAY_OUT}",
            stacklevel=3,
        )
    return {_ENTRY: config}


def restore(config: dict[str, Any]) -> dict[str, Any]:
    """Takes the entry out of a config.

    Args:
        config: of an optimizer; the entry is removed from it.

    Returns:
        What to make the optimizer with.

    Raises:
        ConfigError: there is nothing to make it of, or it is broken.
        TrustError: it names what nobody trusts.
    """
    entry = config.pop(_ENTRY, None)
    if isinstance(entry, _Config):
        return dict(entry.parts)
    if not isinstance(entry, dict):
        raise ConfigError(f"The config of an optimizer has no transformation: {entry!r:.80}.")
    if "data" not in entry:
        raise ConfigError(
            "The file does not hold the transformation of the optimizer, only its state: "
            f"{entry.get('reason', 'nobody says why')} Load the model with compile=False, compile "
            "it with the optimizer, and load its state with model.load_weights(path)."
        )
    safe = keras_bridge.is_safe_mode()
    parts = serialization.decode(entry["data"], safe=safe, root="the optimizer")
    if not isinstance(parts, dict) or not {"tx"} <= parts.keys() <= {"tx", "learning_rate"}:
        raise ConfigError(f"The config of an optimizer has {parts!r:.80} for what it is made of.")
    if not is_transformation(parts["tx"]):
        check_factory(parts["tx"], safe, "The transformation of the optimizer")
    return parts
