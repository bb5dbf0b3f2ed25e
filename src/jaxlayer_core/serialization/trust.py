"""What a config may name: the parts of JAX, Flax and Haiku that models are made of.

A file says by name which classes and functions it needs, and a loaded model calls them. So a
name counts only if it belongs to a namespace that is listed here or that the user has added,
and what it stands for has to be defined there: `jax.numpy.save`, though it can be reached
through a listed module, is NumPy's and writes files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from jaxlayer_core.errors import JaxLayerError

_NAMESPACES = frozenset(
    {
        "flax.core",
        "flax.linen",
        "flax.struct",
        "haiku",
        "jax.dtypes",
        "jax.image",
        "jax.lax",
        "jax.nn",
        "jax.numpy",
        "jax.random",
        "jax.scipy",
        "jax.sharding",
    }
)
"""Modules, with those inside them, that hold what models are made of."""

_OUTSIDE = frozenset(
    {
        "flax.core.spmd.set_logical_axis_rules",
        "flax.linen.kw_only_dataclasses",
        "flax.linen.module.disable_named_call",
        "flax.linen.module.enable_named_call",
        "flax.linen.module.override_named_call",
        "flax.linen.spmd.set_logical_axis_rules",
        "flax.struct.dataclass",
        "haiku.config",
        "haiku.experimental",
        "haiku.mixed_precision",
        "haiku.testing",
        "jax.numpy.fromfile",
        "jax.numpy.frompyfunc",
        "jax.numpy.load",
        "jax.numpy.save",
        "jax.numpy.savez",
        "jax.sharding.set_mesh",
    }
)
"""What reads or writes files, changes a class, or the settings of a whole process. Names count that
a config may use, and those under which an object is defined."""

_MAKERS = frozenset(
    {
        "flax.linen.initializers",
        "flax.linen.with_logical_partitioning",
        "flax.linen.with_partitioning",
        "haiku.transform",
        "haiku.transform_with_state",
        "haiku.with_empty_state",
        "haiku.without_apply_rng",
        "haiku.without_state",
        "jax.checkpoint",
        "jax.nn.initializers",
        "jax.remat",
    }
)
"""Where functions are that only make functions. Others compute, and may take all memory, or never
end, when a config has them called."""

_NAMES = frozenset(
    {
        *(f"jax.{name}" for name in ("Array", "P", "ShapeDtypeStruct", "checkpoint", "remat")),
        *(
            f"builtins.{name}"
            for name in ("bool", "bytes", "complex", "dict", "float", "frozenset")
        ),
        *(f"builtins.{name}" for name in ("int", "list", "object", "set", "str", "tuple")),
        *(f"builtins.{name}" for name in ("abs", "len", "max", "min", "sum")),
        *(f"operator.{name}" for name in ("add", "matmul", "mul", "neg", "sub", "truediv")),
        "collections.OrderedDict",
        "jaxlayer_core.specs.ArraySpec",
        "types.MappingProxyType",
        "types.SimpleNamespace",
    }
)
"""Single objects."""

_added: set[str] = set()
_scoped: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


def trust(*packages: str) -> None:
    """Lets configs name what is defined in some packages, in this process.

    Loading a model then imports these packages, and makes and calls what is in them, as far
    as a file says. Packages of JAX, Flax and Haiku that models are made of need no mention.

    Args:
        *packages: import names; what is inside of them counts, too.

    Raises:
        JaxLayerError: something is no import name.

    Example:
        >>> trust("my_models", "their_models.layers")
        >>> distrust("my_models", "their_models.layers")
    """
    for package in packages:
        if not (isinstance(package, str) and all(map(str.isidentifier, package.split(".")))):
            raise JaxLayerError(
                f"trust takes import names of packages, such as 'my_models', got {package!r}."
            )
    _added.update(packages)


def distrust(*packages: str) -> None:
    """Takes back `trust`."""
    _added.difference_update(packages)


@contextmanager
def trusting(*packages: str) -> Iterator[None]:
    """As `trust`, for what is loaded inside a `with` block, in this thread.

    Example:
        >>> with trusting("my_models"):
        ...     is_trusted("my_models.nets.Encoder")
        True
        >>> is_trusted("my_models.nets.Encoder")
        False
    """
    token = _scoped.set(_scoped.get() | frozenset(packages))
    try:
        yield
    finally:
        _scoped.reset(token)


def is_listed(name: str) -> bool:
    """Whether a full name belongs to what is trusted without the user's word."""
    if any(part.startswith("_") for part in name.split(".")):
        return False
    return name in _NAMES or (_is_inside(name, _NAMESPACES) and not _is_inside(name, _OUTSIDE))


def is_trusted(name: str) -> bool:
    """Whether a config may name something.

    Args:
        name: full name, such as `flax.linen.Dense`.
    """
    return is_listed(name) or _is_inside(name, _added | _scoped.get())


def is_maker(name: str) -> bool:
    """Whether a config may have a function called, for the function that it makes.

    Args:
        name: full name, such as `jax.nn.initializers.normal`.
    """
    return _is_inside(name, _MAKERS | _added | _scoped.get())


def is_at_home(name: str, own: str) -> bool:
    """Whether what a trusted name stands for is defined where it may be.

    Args:
        name: the full name.
        own: the full name that the object says to have.
    """
    if name in _NAMES:
        return True
    listed = {namespace.partition(".")[0] for namespace in _NAMESPACES}
    is_listed = own.partition(".")[0] in listed and not _is_inside(own, _OUTSIDE)
    return is_listed or _is_inside(own, _added | _scoped.get())


def _is_inside(name: str, namespaces: frozenset[str] | set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in namespaces for length in range(1, len(parts) + 1))
