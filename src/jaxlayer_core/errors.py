"""The errors users meet: what happened, where, expected and got, what to type next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class JaxLayerError(ValueError):
    """Base of every error raised by jaxlayer.

    It is a `ValueError` because Keras lets those through `fit` unchanged, while it
    replaces most other classes by a `RuntimeError` without their cause.

    Args:
        message: what happened, and what to do about it.
        cause: the framework's own exception, kept as `__cause__`.
    """

    # Keras rebuilds exceptions by class to add argument values to their text, and drops
    # the cause on the way. An exception that carries this mark is passed on as it is.
    _keras_call_info_injected = True

    def __init__(self, message: str, cause: BaseException | None = None) -> None:
        super().__init__(message)
        self._cause = cause

    # Keras' traceback filter ends in `raise error from None`, which clears the slot that
    # `raise ... from cause` fills. Reading through a property survives that.
    @property
    def __cause__(self) -> BaseException | None:
        return self._cause

    @__cause__.setter
    def __cause__(self, value: BaseException | None) -> None:
        if value is not None:
            self._cause = value


class SignatureError(JaxLayerError):
    """The arguments of a call, or of a function handed to us, do not fit."""


class StructureError(JaxLayerError):
    """A tree of params or state has another structure, shape or dtype than expected."""


class LayoutError(JaxLayerError):
    """A variable cannot be split over the devices of a mesh in the way that was asked for."""


class LayoutWarning(UserWarning):
    """A rule for layouts is for no variable."""


class ProcessWarning(UserWarning):
    """Something will not work in several processes in the way that was asked for."""


class BuildError(JaxLayerError, NotImplementedError):
    """The layer cannot be built, or its output cannot be inferred, from what is known so far.

    Also a `NotImplementedError`: on that, `keras.Sequential` gives up guessing the input
    (it assumes one float tensor) and builds from the real data instead.
    """


class ModuleError(JaxLayerError):
    """The wrapped model itself raised; its own exception is the `__cause__`."""


class AdapterError(JaxLayerError):
    """No adapter, several adapters, or a broken one."""


class BackendError(JaxLayerError):
    """The active Keras backend cannot run this."""


class MissingDependencyError(JaxLayerError, ImportError):
    """A framework that is needed is not installed; the message has the `pip install` line."""


class PatternError(JaxLayerError):
    """A pattern for paths is malformed or matches nothing."""


class CheckpointError(JaxLayerError):
    """A file of variables cannot be read or written."""


class ConfigError(JaxLayerError):
    """A config is broken, or names what cannot be had."""


class TrustError(ConfigError):
    """A config names something that nobody has said may be loaded."""


class NotExpressibleError(JaxLayerError):
    """No config can express an object: it has no name that another process could import."""


class ProgramError(JaxLayerError):
    """A model cannot be stored as a program, or a stored program is broken or cannot do this."""


@contextmanager
def in_config_of(name: str) -> Iterator[None]:
    """Turns what goes wrong while an object is made of its config into an error of ours.

    Args:
        name: the object's class.

    Raises:
        ConfigError: anything but an error of ours was raised.
    """
    try:
        yield
    except JaxLayerError:
        raise
    except Exception as error:
        raise ConfigError(
            f"The config of a {name} is broken: {type(error).__name__}: {error}", cause=error
        ) from error
