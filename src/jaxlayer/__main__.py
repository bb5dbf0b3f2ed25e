"""`python -m jaxlayer`: what is installed, what adapts it, and what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterable

from jaxlayer_core import registry

_DISTRIBUTIONS = (
    ("jaxlayer", None),
    ("keras", None),
    ("jax", None),
    ("jaxlib", None),
    ("numpy", None),
    ("dm-haiku", "haiku"),
    ("flax", "flax"),
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
    import keras  # here, so that the table's first lines do not wait for it

    backend = keras.backend.backend()
    note = "" if backend == "jax" else "jaxlayer needs KERAS_BACKEND=jax"
    yield "Keras backend", backend, note
    for entry_point in sorted(registry.installed(), key=lambda e: e.name):
        try:
            registry.load(entry_point)
            status = "ok"
        except registry.MissingDependencyError as error:
            status = str(error).rpartition("Install it with: ")[2]
        except registry.AdapterError as error:
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
