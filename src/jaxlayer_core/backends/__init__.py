"""How a pure JAX function runs on the active Keras backend."""

from __future__ import annotations

from types import ModuleType

import keras

from jaxlayer_core.errors import BackendError


def current() -> ModuleType:
    """The module that runs JAX functions on the active Keras backend.

    Raises:
        BackendError: there is none for it.
    """
    name = keras.backend.backend()
    if name == "jax":
        from jaxlayer_core.backends import jax as backend

        return backend
    raise BackendError(
        f"jaxlayer runs on the JAX backend of Keras, but the active backend is {name!r}. Set the "
        "environment variable KERAS_BACKEND=jax before Keras is first imported, or write "
        '"backend": "jax" into ~/.keras/keras.json.'
    )
