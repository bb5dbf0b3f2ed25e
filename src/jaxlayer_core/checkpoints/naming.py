"""Which variable a name in a source means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from jaxlayer_core import patterns
from jaxlayer_core.errors import PatternError, StructureError


def translate(
    names: Iterable[str], own: Sequence[Sequence[str]], prefix: str, rename: Mapping[str, str]
) -> dict[str, str]:
    """Finds the layer's path for each name of a source.

    Args:
        names: what the source calls its arrays; parts are joined by `/`, or by `.` if no name
            has a `/`. Empty parts do not count: `linear_0//w` is `linear_0/w`.
        own: paths of the layer's params and of its state.
        prefix: where in the source the variables stand, in whole parts; what is beside it is
            left out.
        rename: expression to replacement, as `re.sub` takes them; done one after the other to
            what is behind the prefix.

    Returns:
        Name in the source to path in the layer, or to the renamed path where the layer has none
        like it.

    Raises:
        StructureError: two names mean the same path, or nothing stands behind the prefix.
        PatternError: an expression or a replacement is malformed.

    Example:
        >>> own = [["params/mlp/w", "params/mlp/b"], ["state/mlp/mean"]]
        >>> translate(["net.mlp.weight", "step"], own, "net", {"weight$": "w"})
        {'net.mlp.weight': 'params/mlp/w'}
    """
    names = list(names)
    separator = "/" if any("/" in name for name in names) else "."
    split = {name: tuple(part for part in name.split(separator) if part) for name in names}
    behind = _behind(split, tuple(part for part in prefix.split("/") if part), prefix)
    meanings = _meanings(own)
    found: dict[str, str] = {}
    sources: dict[str, str] = {}
    for name, parts in behind.items():
        path = _normal(_renamed("/".join(parts), rename))
        path = meanings.get(path, path)
        if path in sources:
            raise StructureError(
                f"Two arrays of the source mean the same path `{path}`: `{sources[path]}` and "
                f"`{name}`. Tell them apart with prefix= or rename=."
            )
        sources[path] = name
        found[name] = path
    return found


def check(rename: Mapping[str, str]) -> None:
    """Refuses what is no table of expressions and replacements.

    Raises:
        PatternError: it is not.
    """
    if not isinstance(rename, Mapping):
        raise PatternError(
            f"rename takes a dict of regular expression to replacement, got {rename!r}."
        )
    for pattern, replacement in rename.items():
        patterns.check(pattern, "rename", functions=False)
        if not isinstance(replacement, str):
            raise PatternError(
                f"rename: the replacement for {pattern!r} must be a string, got {replacement!r}."
            )


def _behind(
    split: Mapping[str, tuple[str, ...]], prefix: tuple[str, ...], shown: str
) -> dict[str, tuple[str, ...]]:
    """The names that begin with the prefix, without it."""
    count = len(prefix)
    behind = {name: parts[count:] for name, parts in split.items() if parts[:count] == prefix}
    if split and not behind:
        inner = {"/".join(parts[:end]) for parts in split.values() for end in range(1, len(parts))}
        raise StructureError(
            f"Nothing in the source stands behind prefix={shown!r}. "
            f"{patterns.near(shown, sorted(inner))}"
        )
    return behind


def _renamed(path: str, rename: Mapping[str, str]) -> str:
    for pattern, replacement in rename.items():
        try:
            path = re.sub(pattern, replacement, path)
        except (re.error, IndexError) as error:
            raise PatternError(
                f"rename: {replacement!r} cannot replace {pattern!r}: {error}.", cause=error
            ) from error
    return path


def _normal(path: str) -> str:
    return "/".join(part for part in path.split("/") if part)


def _meanings(own: Sequence[Sequence[str]]) -> dict[str, str]:
    """All that a source may call the layer's variables; what comes first counts.

    By their whole path; without its first part, as in a tree of params alone; by their place in
    the tuple `(params, state)`; and with a last part `value`, the only field of the boxes that
    frameworks put around leaves.
    """
    flat = [path for paths in own for path in paths]
    meanings: dict[str, str] = {}
    for shorten in (str, _without_first):
        for path in flat:
            meanings.setdefault(shorten(path), path)
        for number, paths in enumerate(own):
            for path in paths:
                meanings.setdefault(_normal(f"{number}/{shorten(path)}"), path)
    for name, path in list(meanings.items()):
        meanings.setdefault(_normal(f"{name}/value"), path)
    return meanings


def _without_first(path: str) -> str:
    return path.partition("/")[2]
