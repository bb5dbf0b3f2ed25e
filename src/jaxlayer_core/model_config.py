"""A layer's model in its config: what it was made of, and its program where that is needed."""

from __future__ import annotations

import inspect
import textwrap
import warnings
from typing import Any

from jaxlayer_core import source
from jaxlayer_core.errors import ProgramError
from jaxlayer_core.layer import PureLayer
from jaxlayer_core.program_layer import ProgramLayer
from jaxlayer_core.source import Objects, Source


def describe(layer: PureLayer, made_of: Source) -> dict[str, Any]:
    """Entries of a layer's config that tell of its model.

    Args:
        layer: the layer.
        made_of: what its class was made with.
    """

    def as_program() -> dict[str, Any]:
        if type(layer).call is not PureLayer.call:
            raise ProgramError(
                f"{type(layer).__name__} has a `call` of its own, which a program of its model "
                "would lack."
            )
        program = layer.to_program()
        if lacks := program.shortcomings():
            shown = "\n- ".join(textwrap.shorten(lack, 300) for lack in lacks)
            warnings.warn(
                f"The program that is saved for {layer.name} lacks something:\n- {shown}",
                stacklevel=2,
            )
        options = PureLayer.get_config(layer)
        return ProgramLayer.config_of(type(layer).__name__, options, program)

    return made_of.get_config(as_program if layer.built else None, always=layer.save_program)


def restore(cls: Any, config: dict[str, Any], model: str) -> Objects | ProgramLayer:
    """What `describe` has told.

    Args:
        cls: the layer's class.
        config: the config of a layer; the entries are removed from it.
        model: the argument that takes the model. A user's subclass may make its own and take none;
            its config then says what it takes.

    Returns:
        What to make the layer of; or, where that is not to be had, a layer that runs the program.

    Raises:
        TrustError: the config names what nobody trusts, and has no program.
        MissingDependencyError: a package is not installed, and there is no program.
        ConfigError: the config is broken.
    """
    if model not in inspect.signature(cls.__init__).parameters or "source" not in config:
        for entry in ("source", "program"):
            config.pop(entry, None)
        return {}
    parts = source.restore(config)
    return ProgramLayer.from_config(parts["program"]) if "program" in parts else parts
