"""How one method of a stored model wants to be called, and what becomes of what it makes."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxlayer_core.paths import Path
from jaxlayer_core.program.reading import Reader, broken
from jaxlayer_core.program.signatures import read_policy, read_signature, signature_config
from jaxlayer_core.pure import CallFn, InitFn, PureModule
from jaxlayer_core.roles import Policy
from jaxlayer_core.signature import CallSignature


@dataclasses.dataclass(frozen=True)
class Method:
    """A `PureModule` without its two functions; attributes are those of that."""

    signature: CallSignature
    init_signature: CallSignature | None
    has_modes: bool
    policy: Policy
    scopes: tuple[Path, Path]
    optional_groups: bool
    captures: bool

    @classmethod
    def of(cls, module: PureModule) -> Method:
        """The method of a module, whose flags are settled."""
        return cls(**{field.name: getattr(module, field.name) for field in dataclasses.fields(cls)})

    def module(self, init: InitFn | None, call: CallFn) -> PureModule:
        """The module with these functions."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return PureModule(init=init, call=call, **own)

    def get_config(self) -> dict[str, Any]:
        """The method as JSON data."""
        init = self.init_signature
        return {
            "signature": signature_config(self.signature),
            "init_signature": None if init is None else signature_config(init),
            "has_modes": self.has_modes,
            "policy": self.policy.get_config(),
            "scopes": [list(scope) for scope in self.scopes],
            "optional_groups": self.optional_groups,
            "captures": self.captures,
        }

    @classmethod
    def read(cls, reader: Reader) -> Method:
        """The method of `get_config()`."""
        has_own = reader.has("init_signature")
        return cls(
            signature=read_signature(reader.reader("signature")),
            init_signature=read_signature(reader.reader("init_signature")) if has_own else None,
            has_modes=reader.flag("has_modes"),
            policy=read_policy(reader.reader("policy")),
            scopes=_read_scopes(reader),
            optional_groups=reader.flag("optional_groups"),
            captures=reader.flag("captures"),
        )


def _read_scopes(reader: Reader) -> tuple[Path, Path]:
    scopes = reader.items("scopes")
    for scope in scopes:
        segments = scope if isinstance(scope, list) else [None]
        if not all(isinstance(s, str) and s and "/" not in s for s in segments):
            raise broken(f"{reader.where}.scopes", "has a scope that is no list of names")
    if len(scopes) != 2:
        raise broken(f"{reader.where}.scopes", "are not two")
    return tuple(scopes[0]), tuple(scopes[1])


def method_name(method: Any) -> str | None:
    """The name of a method that is given by name or as a function."""
    return None if method is None else str(getattr(method, "__name__", method))
