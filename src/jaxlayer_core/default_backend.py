"""Choosing JAX where Keras would otherwise fail to import."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import sys


def choose() -> None:
    """Sets `KERAS_BACKEND=jax` if nobody chose a backend and Keras' own default is missing.

    Without a choice Keras takes TensorFlow, and fails to import where that is not
    installed. A choice, by the environment or in Keras' config file, is left alone.
    """
    if "keras" in sys.modules or "KERAS_BACKEND" in os.environ:
        return
    if importlib.util.find_spec("tensorflow") is None and _configured() == "tensorflow":
        os.environ["KERAS_BACKEND"] = "jax"


def _configured() -> str:
    """The backend in Keras' config file; Keras writes its default there on first import."""
    home = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
    try:
        config = json.loads((pathlib.Path(home) / "keras.json").read_text())
        return str(config.get("backend", "tensorflow"))
    except (OSError, ValueError, AttributeError):  # no file, or none that Keras would accept
        return "tensorflow"
