"""What a config may name: the parts of JAX and of frameworks that models are made of.

A file says by name which classes and functions it needs, and a loaded model calls them. So a name
counts only if it belongs to a namespace that is listed, here or by an adapter, or that the user has
added, and what it stands for has to be defined there: `jax.numpy.save`, though it can be reached
through a listed module, is NumPy's and writes files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar

from jaxlayer_core.errors import JaxLayerError

_namespaces = {
    "jax.dtypes",
    "jax.image",
    "jax.lax",
    "jax.nn",
    "jax.numpy",
    "jax.random",
    "jax.scipy",
    "jax.sharding",
}
"""Modules, with those inside them, that hold what models are made of."""

_outside = {
    "jax.numpy.fromfile",
    "jax.numpy.frompyfunc",
    "jax.numpy.load",
    "jax.numpy.save",
    "jax.numpy.savez",
    "jax.numpy.set_printoptions",
    "jax.sharding.set_mesh",
}
"""What reads or writes files, changes a class, or the settings of a whole process. Names count that
a config may use, and those under which an object is defined."""

_makers = {"jax.checkpoint", "jax.nn.initializers", "jax.remat"}
"""Where functions are that only make functions. Others compute, and may take all memory, or never
end, when a config has them called."""

_names = {
    *(f"jax.{name}" for name in ("Array", "P", "ShapeDtypeStruct", "checkpoint", "remat")),
    *(f"builtins.{name}" for name in ("bool", "bytes", "complex", "dict", "float", "frozenset")),
    *(f"builtins.{name}" for name in ("int", "list", "object", "set", "str", "tuple")),
    *(f"builtins.{name}" for name in ("abs", "len", "max", "min", "sum")),
    *(f"operator.{name}" for name in ("add", "matmul", "mul", "neg", "sub", "truediv")),
    "collections.OrderedDict",
    "jaxlayer_core.specs.ArraySpec",
    "types.MappingProxyType",
    "types.SimpleNamespace",
}
"""Single objects."""

_added: set[str] = set()
_scoped: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


def list_names(
    namespaces: Iterable[str],
    *,
    names: Iterable[str] = (),
    outside: Iterable[str] = (),
    makers: Iterable[str] = (),
) -> None:
    """Says what configs may name of a framework; for its adapter, when it is imported.

    Args:
        namespaces: modules, with those inside them, that hold what models are made of.
        names: single objects, also private ones, which the framework's own models hold.
        outside: what in them reads or writes files, changes a class or the settings of a process.
        makers: functions, or modules of these, that only make functions, such as initialisers:
            a config may have them called.
    """
    _namespaces.update(namespaces)
    _names.update(names)
    _outside.update(outside)
    _makers.update(makers)


def trust(*packages: str) -> None:
    """Lets configs name what is defined in some packages, in this process.

    Loading a model then imports these packages, and makes and calls what is in them, as far
    as a file says. What models of JAX and the installed frameworks are made of needs no mention.

    Args:
        *packages: import names; what is inside of them counts, too.

    Raises:
        JaxLayerError: something is no import name.

    Example:
        >>> trust("my_models", "their_models.layers")
        >>> distrust("my_models", "their_models.layers")
    """
    _added.update(map(_checked, packages))


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
    token = _scoped.set(_scoped.get() | frozenset(map(_checked, packages)))
    try:
        yield
    finally:
        _scoped.reset(token)


def _checked(package: str) -> str:
    if isinstance(package, str) and all(map(str.isidentifier, package.split("."))):
        return package
    raise JaxLayerError(
        f"trust takes import names of packages, such as 'my_models', got {package!r}."
    )


def is_listed(name: str) -> bool:
    """Whether a full name belongs to what is trusted without the user's word."""
    if name in _names:
        return True
    if any(part.startswith("_") for part in name.split(".")):
        return False
    return _is_inside(name, _namespaces) and not _is_inside(name, _outside)


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
    return _is_inside(name, _makers | _added | _scoped.get())


def is_at_home(name: str, own: str) -> bool:
    """Whether what a trusted name stands for is defined where it may be.

    Args:
        name: the full name.
        own: the full name that the object says to have.
    """
    if name in _names:
        return True
    is_listed = is_of_framework(own) and not _is_inside(own, _outside)
    return is_listed or _is_inside(own, _added | _scoped.get())


def is_of_framework(name: str) -> bool:
    """Whether a full name is one of JAX or of a framework, whatever part of it."""
    return name.partition(".")[0] in {namespace.partition(".")[0] for namespace in _namespaces}


def _is_inside(name: str, namespaces: Set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in namespaces for length in range(1, len(parts) + 1))
