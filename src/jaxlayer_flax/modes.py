"""Train flags that are attributes: of a module, of its config object, or of its children.

Linen modules are dataclasses, so a mode that is an attribute is set by cloning.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax import nnx

from jaxlayer_core.signature import ATTRIBUTE_FLAGS


def attribute_flags(
    module: nn.Module, names: Mapping[str, bool] = ATTRIBUTE_FLAGS
) -> dict[str, bool]:
    """Flags among the module's own attributes and those of its config objects.

    Args:
        module: the module.
        names: names to look for, with their values in training.

    Returns:
        Those found, with their values in training.

    Example:
        >>> attribute_flags(nn.BatchNorm(use_running_average=True))
        {'use_running_average': False}
    """
    found = {}
    for holder in (module, *_configs(module)):
        for name, in_training in names.items():
            if isinstance(_get(holder, name), bool):
                found[name] = in_training
    return found


def unset_flags(module: nn.Module) -> bool:
    """Whether a module inside this one waits for a flag that nobody sets."""
    return any(
        isinstance(field, nn.Module) and (_unset(field) or unset_flags(field))
        for value in _fields(module).values()
        for field in _children(value)
    )


def waits(module: nn.Module) -> bool:
    """Whether a module, or one inside it, has modes that only the layer can tell it of."""
    return isinstance(module, nnx.bridge.ToLinen) or any(
        isinstance(field, nn.Module) and (_unset(field) or waits(field))
        for value in _fields(module).values()
        for field in _children(value)
    )


def with_mode(module: nn.Module, flags: Mapping[str, bool], training: bool) -> nn.Module:
    """A clone with its attribute flags, and those of its configs, set for a mode."""
    changes = {
        name: replaced
        for name, value in _fields(module).items()
        if (replaced := _set(name, value, flags, training)) is not value
    }
    return module.clone(**changes) if changes else module


def with_children_mode(module: nn.Module, training: bool) -> nn.Module:
    """A clone in which the unset flags of the modules inside are set for a mode.

    A module that is shared stays shared, and one in which nothing changes stays itself:
    linen recognises shared weights by identity.
    """
    done: dict[int, Any] = {}

    def fill(value: Any) -> Any:
        if id(value) not in done:
            done[id(value)] = _filled(value)
        return done[id(value)]

    def _filled(value: Any) -> Any:
        if isinstance(value, nn.Module):
            changes = {name: fill(inner) for name, inner in _fields(value).items()}
            changes |= {name: training is ATTRIBUTE_FLAGS[name] for name in _unset(value)}
            return _changed(value, changes)
        if type(value) in (tuple, list):
            filled = type(value)(map(fill, value))
            same = all(a is b for a, b in zip(filled, value, strict=True))
            return value if same else filled
        if type(value) is dict:
            filled = {key: fill(item) for key, item in value.items()}
            return value if all(filled[key] is value[key] for key in value) else filled
        return value

    return _changed(module, {name: fill(value) for name, value in _fields(module).items()})


def _changed(module: nn.Module, fields: Mapping[str, Any]) -> nn.Module:
    """A clone with the fields that differ, or the module itself."""
    changes = {k: v for k, v in fields.items() if v is not getattr(module, k)}
    return module.clone(**changes) if changes else module


def _fields(module: nn.Module) -> dict[str, Any]:
    return {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name") and hasattr(module, field.name)
    }


def _children(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    return [value]


def _unset(module: nn.Module) -> list[str]:
    return [
        name for name, value in _fields(module).items() if name in ATTRIBUTE_FLAGS and value is None
    ]


def _configs(module: nn.Module) -> list[Any]:
    """Values of the fields that may be bags of settings: anything that is not a module."""
    return [v for v in _fields(module).values() if not isinstance(v, nn.Module | type)]


def _get(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _set(name: str, value: Any, flags: Mapping[str, bool], training: bool) -> Any:
    """A field's value with the mode in it, or the very same value."""
    if name in flags and isinstance(value, bool):
        return training is flags[name]
    if isinstance(value, nn.Module | type):
        return value
    inside = {
        flag: training is in_training
        for flag, in_training in flags.items()
        if isinstance(_get(value, flag), bool)
    }
    return _replaced(value, inside) if inside else value


def _replaced(config: Any, values: Mapping[str, bool]) -> Any:
    """A copy of a settings object of any kind with some values changed."""
    if isinstance(config, Mapping):
        kind: Any = type(config)
        return kind({**config, **values})
    if hasattr(config, "_replace"):
        return config._replace(**values)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.replace(config, **values)
    changed = copy.copy(config)
    for name, value in values.items():
        setattr(changed, name, value)
    return changed
