"""`python -m jaxlayer`: what is installed, what adapts it, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable

_DISTRIBUTIONS = (
    ("jaxlayer", None),
    ("keras", None),
    ("jax", None),
    ("jaxlib", None),
    ("numpy", None),
    ("dm-haiku", "haiku"),
    ("flax", "flax"),
    ("equinox", "equinox"),
    ("optax", "optax"),
)
"""Distribution, and the extra of jaxlayer that brings it (None: always installed)."""


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _rows() -> Iterable[tuple[str, str, str]]:
    yield "python", platform.python_version(), sys.platform
    for name, extra in _DISTRIBUTIONS:
        version = _version(name)
        missing = f"pip install 'jaxlayer[{extra}]'" if extra else f"pip install {name}"
        yield name, version or "missing", "" if version else missing
    try:
        from jaxlayer_core import errors, registry  # here, because it imports Keras
    except ImportError as error:
        backend = os.environ.get("KERAS_BACKEND", "as in keras.json")
        yield "Keras backend", backend, f"{error}; set KERAS_BACKEND=jax"
        return
    import keras

    backend = keras.backend.backend()
    note = "" if backend == "jax" else "jaxlayer needs KERAS_BACKEND=jax"
    yield "Keras backend", backend, note
    for entry_point in sorted(registry.installed(), key=lambda e: e.name):
        try:
            registry.load(entry_point)
            status = "ok"
        except errors.MissingDependencyError as error:
            status = str(error).rpartition("Install it with: ")[2]
        except errors.AdapterError as error:
            status = f"broken: {error}"
        yield f"adapter {entry_point.name}", registry.distribution(entry_point), status


def main() -> None:
    """Prints the table."""
    rows = [*_rows()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, value, note in rows:
        print(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {note}".rstrip())


if __name__ == "__main__":
    main()
