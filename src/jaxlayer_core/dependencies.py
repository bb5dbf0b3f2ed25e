"""What is optional, and how it is installed."""

from __future__ import annotations

from jaxlayer_core.errors import MissingDependencyError

EXTRAS = {name: name for name in ("haiku", "flax", "equinox", "optax", "safetensors", "orbax")}
"""Packages that an extra of jaxlayer installs, and that extra."""


def missing(package: str, cause: BaseException | None = None) -> MissingDependencyError:
    """The error for a package that is not installed."""
    extra = EXTRAS.get(package)
    line = f"pip install 'jaxlayer[{extra}]'" if extra else f"pip install {package}"
    return MissingDependencyError(
        f"This needs the package {package!r}, which is not installed. Install it with: {line}",
        cause=cause,
    )
