"""Signatures, roles and arguments without the functions that they belong to."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from jaxlayer_core import effort
from jaxlayer_core.errors import PatternError, SignatureError
from jaxlayer_core.program.reading import Reader, broken
from jaxlayer_core.pure import Arguments
from jaxlayer_core.roles import Policy, Role
from jaxlayer_core.signature import CallSignature

_KINDS = {
    kind.name: kind
    for kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
}


class Opaque:
    """A default value that no data can express, in the place where it was."""

    def __repr__(self) -> str:
        return "..."


OPAQUE = Opaque()


def named(signature: CallSignature, arguments: Arguments) -> dict[str, Any]:
    """Arguments by name, without those that are their parameter's default.

    So all spellings of a call, `f(x)`, `f(x, None)` and `f(x=x, mask=None)`, are one.

    Args:
        signature: of the model.
        arguments: complete, as `CallSignature.complete` gives them.
    """
    slots = [p for p in signature.parameters if p.kind in (p.POSITIONAL_ONLY, _EITHER)]
    found = {p.name: value for p, value in zip(slots, arguments.args, strict=False)}
    rest = next((p.name for p in signature.parameters if p.kind is p.VAR_POSITIONAL), "args")
    found |= {f"*{rest}[{i}]": value for i, value in enumerate(arguments.args[len(slots) :])}
    found |= arguments.kwargs
    defaults = {p.name: p.default for p in signature.parameters}
    return {name: v for name, v in found.items() if not _is_default(v, defaults.get(name, _NO))}


_NO = inspect.Parameter.empty
_EITHER = inspect.Parameter.POSITIONAL_OR_KEYWORD
_PLAIN = (bool, int, float, str, type(None))


def _is_default(value: Any, default: Any) -> bool:
    if default is value:
        return True
    return type(value) is type(default) and type(value) in _PLAIN and bool(value == default)


def signature_config(signature: CallSignature) -> dict[str, Any]:
    """A signature as JSON data."""
    parameters = []
    for parameter in signature.parameters:
        config: dict[str, Any] = {"name": parameter.name, "kind": parameter.kind.name}
        if parameter.default is not parameter.empty:
            is_plain = type(parameter.default) in _PLAIN
            config["default"] = {"value": parameter.default} if is_plain else {}
        parameters.append(config)
    flags = dict(signature.flags)
    return {"owner": signature.owner, "parameters": parameters, "flags": flags}


def read_signature(reader: Reader) -> CallSignature:
    """The signature of `signature_config`, with nothing left to be found out."""
    parameters = tuple(map(_read_parameter, reader.readers("parameters")))
    flags: Mapping[str, Any] = reader.table("flags")
    if not all(isinstance(value, bool) for value in flags.values()):
        raise broken(f"{reader.where}.flags", "has a value that is neither True nor False")
    try:
        inspect.Signature(parameters)
    except ValueError as error:
        raise broken(f"{reader.where}.parameters", f"is impossible: {error}", error) from error
    return CallSignature(reader.text("owner"), parameters, flags, settled=True)


def _read_parameter(reader: Reader) -> inspect.Parameter:
    name, kind = reader.text("name"), reader.text("kind")
    if kind not in _KINDS:
        raise broken(f"{reader.where}.kind", f"is {kind!r:.40}")
    if not name.isidentifier():
        raise broken(f"{reader.where}.name", f"is {name!r:.40}, no name of a parameter")
    default: Any = inspect.Parameter.empty
    if reader.has("default"):
        table = reader.table("default")
        default = table.get("value", OPAQUE)
        if default is not OPAQUE and type(default) not in _PLAIN:
            raise broken(f"{reader.where}.default", "is no plain value")
    try:
        return inspect.Parameter(name, _KINDS[kind], default=default)
    except ValueError as error:
        raise broken(reader.where, f"is no parameter: {error}", error) from error


def read_policy(reader: Reader) -> Policy:
    """The policy of `Policy.get_config()`."""
    try:
        return Policy(effort.stored(reader.table("table")), Role(reader.text("default")))
    except (PatternError, ValueError) as error:
        raise broken(reader.where, f"is no table of roles: {error}", error) from error


def not_held(owner: str, wanted: str, held: list[str]) -> SignatureError:
    """The error for a call that the program does not hold."""
    calls = "".join(f"\n  {call}" for call in held[:20]) or " none"
    more = f"\n  ... and {len(held) - 20} more" if len(held) > 20 else ""
    return SignatureError(
        f"{owner} was loaded from a saved program, which holds only the calls that were made "
        f"before it was saved, and {wanted} is none of them. It holds:{calls}{more}\n"
        "Call the original layer so before saving it, or build it from the model itself."
    )
