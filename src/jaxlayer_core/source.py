"""What a layer was made of, as its config says it: by name, in this process, or as a program.

A model that is made of named things is data (`serialization`). One that holds something
without a name that another process could import, such as a lambda, is stored as a program, too
(`program`). In the process that made it, a copy has the very same objects.
"""

from __future__ import annotations

import secrets
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import keras

from jaxlayer_core import keras_bridge, serialization
from jaxlayer_core.errors import (
    ConfigError,
    MissingDependencyError,
    NotExpressibleError,
    ProgramError,
)

Objects = dict[str, Any]
"""What a layer class is made with, by the names of its arguments."""


class _Kept:
    """Objects that copies made in this process find by a token that nobody can guess."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.token = secrets.token_hex(16)
        _LIVE[self.token] = self


_LIVE: weakref.WeakValueDictionary[str, _Kept] = weakref.WeakValueDictionary()


class SourceConfig(dict[str, Any]):
    """The data of a source; a copy made of the config itself, not of its JSON, has the objects."""

    objects: Objects


@keras.saving.register_keras_serializable(package="jaxlayer")
class PendingProgram:
    """The program in a config, made only if somebody stores the config.

    Args:
        make: gives the config of a layer that runs the program.
    """

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self._make = make

    def get_config(self) -> dict[str, Any]:
        """The config of a layer that runs the program."""
        return self._make()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The config itself; `program_config` is what reads it."""
        return config


class Source:
    """What one layer was made of.

    Args:
        layer: the layer's name, for errors.
        objects: what its class was made with, by the names of its arguments.
    """

    def __init__(self, layer: str, objects: Mapping[str, Any]) -> None:
        self._layer = layer
        self._kept = _Kept(dict(objects))

    @property
    def objects(self) -> Objects:
        """What its class was made with."""
        return self._kept.objects

    def get_config(
        self, make_program: Callable[[], dict[str, Any]] | None, always: bool
    ) -> dict[str, Any]:
        """Entries of the layer's config.

        Args:
            make_program: gives the config of a layer that runs the model as a program; None
                while it is not known for which calls.
            always: whether to store the program of any model, and not only of one that has to be.
        """
        config = SourceConfig()
        config.objects = self._kept.objects
        reason = None
        try:
            encoded = serialization.encode(self._kept.objects, "the model")
        except NotExpressibleError as error:
            reason = str(error)
        else:
            config["data"] = encoded.data
            if encoded.is_importable and not always:
                return {"source": config}
            reason = None if encoded.is_importable else self._unimportable(encoded.objects)
        if reason is not None:
            config |= {"reason": reason, "token": self._kept.token}

        def make() -> dict[str, Any]:
            return self._program(make_program, reason, required="data" not in config)

        return {"source": config, "program": PendingProgram(make)}

    def _unimportable(self, objects: Mapping[Any, Any]) -> str:
        names = [ref.name.rpartition(".")[2] for ref in objects if not ref.is_importable]
        return (
            f"{', '.join(names)} cannot be imported by another process: it is defined in a script, "
            "a notebook or inside a function."
        )

    def _program(
        self, make: Callable[[], dict[str, Any]] | None, reason: str | None, required: bool
    ) -> dict[str, Any]:
        way_out = (
            "Define the model where it can be imported from (a module-level function or class), or "
            "give it get_config and register it with keras.saving.register_keras_serializable."
        )
        if make is None:
            if required:
                raise ProgramError(
                    f"{self._layer} cannot be saved before it is built: no config can express its "
                    f"model, and a program of it is for known inputs. Call it on data first. "
                    f"{way_out}\n{reason}"
                )
            return {}
        try:
            return make()
        except ProgramError as error:
            if required:
                raise ProgramError(
                    f"{self._layer} cannot be saved. No config can express its model: {reason} "
                    f"And it cannot be a program: {error} {way_out}",
                    cause=error,
                ) from error
            if reason is not None:
                warnings.warn(
                    f"{self._layer} is saved without a program of its model ({error}). It can "
                    f"only be loaded with custom_objects, as {reason}",
                    stacklevel=2,
                )
            return {}


def restore(config: dict[str, Any]) -> Objects | dict[str, Any]:
    """Takes the entries of `Source.get_config()` out of a config.

    Args:
        config: the config of a layer; the entries are removed from it.

    Returns:
        The objects to make the layer of; or, where they are not to be had, a dict with
        the one entry `"program"`: the config of a layer that runs the program.

    Raises:
        TrustError: the config names what nobody trusts, and has no program.
        MissingDependencyError: a package is not installed, and there is no program.
        ConfigError: the config is broken.
    """
    source, pending = config.pop("source", None), config.pop("program", None)
    if isinstance(source, SourceConfig):
        return source.objects
    if not isinstance(source, dict):
        raise ConfigError(f"The config of a layer has no source of its model: {source!r:.80}.")
    try:
        return _decoded(source)
    except (ConfigError, MissingDependencyError) as error:
        kept = _LIVE.get(str(source.get("token")))
        if kept is not None:
            return kept.objects
        program = program_config(pending)
        if program is None:
            raise
        if "reason" not in source:  # the model could have been had
            warnings.warn(
                f"The model is loaded as the program that was saved with it. {error}", stacklevel=2
            )
        return {"program": program}


def _decoded(source: dict[str, Any]) -> Objects:
    if "data" not in source:
        raise ConfigError(
            f"The file does not hold the model of a layer, but only its weights: "
            f"{source.get('reason', 'nobody says why')} Save it once more with this version."
        )
    safe = keras_bridge.is_safe_mode()
    objects = serialization.decode(source["data"], safe=safe, root="the model")
    if not isinstance(objects, dict):
        raise ConfigError(f"The config of a layer has {objects!r:.80} for the parts of its model.")
    return objects


def program_config(pending: Any) -> dict[str, Any] | None:
    """The config of a layer that runs the program, in what Keras made of a `PendingProgram`."""
    if not isinstance(pending, dict):
        return None
    # The reader of the old HDF5 format hands out what is inside.
    config = pending if "program" in pending else pending.get("config")
    return config if isinstance(config, dict) and config else None
