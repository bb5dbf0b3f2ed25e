"""The options in a layer's config, which may come from anywhere."""

from __future__ import annotations

import inspect
from typing import Any

from jaxlayer_core import effort, keras_bridge
from jaxlayer_core.errors import ConfigError

_PATTERNS = (
    *("capture", "constraints", "freezing", "keep_float32", "regularizers", "state_policy"),
)
"""Options that have regular expressions."""


def checked(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config, its flags checked, and patterns marked that nobody vouches for.

    Args:
        cls: the layer's class. What it and its bases annotate as `bool` is a flag.
        config: the config.

    Raises:
        ConfigError: a flag is neither True nor False. Python would take any value for one.
    """
    config = dict(config)
    for name in _flags(cls) & config.keys():
        _check_flag(cls, name, config[name])
    if keras_bridge.is_reading_safely():
        config |= {name: effort.stored(config[name]) for name in _PATTERNS if name in config}
    return config


def _flags(cls: type) -> set[str]:
    makers = (vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base))
    return {
        parameter.name
        for maker in makers
        if inspect.isfunction(maker)
        for parameter in inspect.signature(maker).parameters.values()
        if parameter.annotation in ("bool", "bool | None", bool)
    }


def _check_flag(cls: type, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(
            f"The config of a {cls.__name__} is broken: {name!r} is {value!r:.80}, and not True or "
            "False."
        )
