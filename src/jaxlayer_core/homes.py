"""Layer classes of other packages, known to Keras by name before anything imports them.

A file says `jaxlayer>FlaxLayer`; the process that loads it may not have imported the package
that registers this, or may have no Flax at all. So each installed package says in the
entry-point group `jaxlayer.layers` what it registers, and an object that looks like the class
is registered until the class is.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import keras

from jaxlayer_core import dependencies, program_layer, source
from jaxlayer_core.errors import AdapterError, MissingDependencyError

GROUP = "jaxlayer.layers"


class Elsewhere:
    """Stands for a layer class that is not imported yet.

    Args:
        entry_point: named like the class is registered with Keras, `package>name`.
    """

    def __init__(self, entry_point: importlib.metadata.EntryPoint) -> None:
        self._entry_point = entry_point
        self.__name__ = entry_point.name.rpartition(">")[2]

    def from_config(self, config: dict[str, Any]) -> Any:
        """What the class makes of a config, or the program in it, where the class is missing.

        Raises:
            MissingDependencyError: its framework is not installed, and there is no program.
            AdapterError: it is broken.
        """
        try:
            cls = self._load()
        except MissingDependencyError:
            program = source.program_config(config.get("program"))
            if program is None:
                raise
            return program_layer.ProgramLayer.from_config(program)
        return cls.from_config(config)

    def _load(self) -> Any:
        try:
            return self._entry_point.load()
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package == self._entry_point.module.partition(".")[0]:
                raise AdapterError(f"{self._entry_point.value} is gone.", cause=error) from error
            raise dependencies.missing(package, error) from error


def announce() -> None:
    """Registers what stands for each class that is not imported yet."""
    known = keras.saving.get_custom_objects()
    for entry_point in importlib.metadata.entry_points(group=GROUP):
        if entry_point.name not in known:
            package, _, name = entry_point.name.rpartition(">")
            register = keras.saving.register_keras_serializable(package=package, name=name)
            register(Elsewhere(entry_point))
