"""Random signatures, as source text, and calls that fit them."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st

from jaxlayer_core.signature import FLAGS

NAMES = ["x", "y", "mask", "state", "rng", "params", "inputs", "key", "size", "name", "kind"]
NAMES += ["structure", "memory", "größe", "_h", "args", "module", "callable_"]
# Words that the frameworks' own `apply` takes: a native user cannot pass them by keyword either.
TAKEN = {"params", "state", "rng"}
KINDS = ["/", "", "*"]
DEFAULTS = ["None", "7", "'d'"]
STATICS = [0, 1, 2.5, -0.0, "text", None, (1, "two"), 3j, np.float32, float("nan")]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a random function.

    Attributes:
        name: its name.
        kind: `"/"` positional only, `""` either, `"*"` keyword only.
        default: source text of the default, or None if it is required.
        flag: whether it is a train flag.
    """

    name: str
    kind: str
    default: str | None
    flag: bool

    @property
    def source(self) -> str:
        return self.name if self.default is None else f"{self.name}={self.default}"


@dataclasses.dataclass(frozen=True)
class Signature:
    """A random signature.

    Attributes:
        parameters: named ones, in order.
        rest: whether there is `*rest`.
        extra: names that the function looks for in its `**extra`; None if it has none.
        hidden: a train flag among them, or None.
    """

    parameters: tuple[Parameter, ...]
    rest: bool
    extra: tuple[str, ...] | None
    hidden: str | None

    @property
    def source(self) -> str:
        """The text between the brackets."""
        parts = []
        kinds = [p.kind for p in self.parameters]
        for number, p in enumerate(self.parameters):
            if p.kind == "*" and "*" not in kinds[:number]:
                parts.append("*rest" if self.rest else "*")
            parts.append(p.source)
            if p.kind == "/" and "/" not in kinds[number + 1 :]:
                parts.append("/")
        if self.rest and "*" not in kinds:
            parts.append("*rest")
        return ", ".join([*parts, *(["**extra"] if self.extra is not None else [])])

    @property
    def observed(self) -> str:
        """Source of a dict of all that a function with this signature gets."""
        items = [f"{p.name!r}: {p.name}" for p in self.parameters]
        items += ["'rest': rest"] * self.rest
        known = [*(self.extra or ()), *([self.hidden] if self.hidden else [])]
        items += [f"'extra {name}': extra.get({name!r}, 'absent')" for name in known]
        return "{" + ", ".join(items) + "}"

    @property
    def flags(self) -> list[str]:
        """Names of the train flags, visible and hidden."""
        return [p.name for p in self.parameters if p.flag] + ([self.hidden] if self.hidden else [])


@dataclasses.dataclass(frozen=True)
class Call:
    """How a layer is called, and what a native caller would write out.

    Attributes:
        args: positional arguments; flags may be left out.
        kwargs: keyword arguments.
        given: value by name, of the named parameters that the caller gives.
        rest: what goes into `*rest`.
        extra: what goes into `**extra`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: dict[str, Any]
    rest: tuple[Any, ...]
    extra: dict[str, Any]

    def native(self, signature: Signature, training: bool | None) -> tuple[tuple, dict]:
        """The call with all flags written out, by position wherever that is possible.

        Args:
            signature: of the model.
            training: what the layer is called with. If it is None, the first flag that the
                caller states tells the mode, and without one it is inference.
        """
        stated = {**self.given, **self.extra}
        if training is None:
            told = [stated[name] is FLAGS[name] for name in signature.flags if name in stated]
            training = told[0] if told else False
        given = {**{p.name: training is FLAGS[p.name] for p in signature.parameters if p.flag}}
        given |= self.given
        extra = dict(self.extra)
        if signature.hidden:
            extra.setdefault(signature.hidden, training is FLAGS[signature.hidden])
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for p in signature.parameters:
            value = given[p.name] if p.name in given else ast.literal_eval(p.default)
            if p.kind == "*":
                kwargs[p.name] = value
            else:
                args.append(value)
        return (*args, *self.rest), {**kwargs, **extra}


def values() -> st.SearchStrategy[Any]:
    """What may be passed for data: mostly arrays, and nests of anything."""
    shapes = st.sampled_from([(2,), (2, 3)])
    arrays = st.builds(
        lambda shape, dtype: np.arange(np.prod(shape)).reshape(shape).astype(dtype),
        shapes,
        st.sampled_from(["float32", "int32", "bool", "float16"]),
    )
    statics = st.sampled_from(STATICS)
    nests = st.one_of(
        st.lists(arrays | statics, max_size=2),
        st.tuples(arrays, statics),
        st.dictionaries(st.sampled_from(["a", "b"]), arrays | statics, max_size=2),
    )
    return st.one_of(arrays, arrays, arrays, statics, nests)


@st.composite
def signatures(draw: Any) -> Signature:
    """Signatures of a few parameters of all kinds, some of which are train flags."""
    data = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    flags = draw(st.lists(st.sampled_from(sorted(FLAGS)), max_size=2, unique=True))
    order = draw(st.permutations([(n, False) for n in data] + [(n, True) for n in flags]))
    kinds = sorted((draw(st.sampled_from(["/", "", "", "*"])) for _ in order), key=KINDS.index)
    parameters = []
    optional = False  # Python wants a default from the first positional one that has it
    for (name, flag), kind in zip(order, kinds, strict=True):
        optional = kind != "*" and (optional or draw(st.integers(0, 3)) == 0)
        has_default = optional or (kind == "*" and draw(st.booleans()))
        default = draw(st.sampled_from(["True", "False", "None"] if flag else DEFAULTS))
        if name in TAKEN and kind == "*":
            name += "_"
        parameters.append(Parameter(name, kind, default if has_default else None, flag))
    extra, hidden = None, None
    if draw(st.booleans()):
        unused = [n for n in NAMES if n not in data and n not in TAKEN]
        extra = tuple(draw(st.lists(st.sampled_from(unused), max_size=2, unique=True)))
        # A model with a flag in its signature is not searched for hidden ones.
        if not flags and draw(st.booleans()):
            hidden = draw(st.sampled_from(sorted(FLAGS)))
    return Signature(tuple(parameters), draw(st.booleans()), extra, hidden)


@st.composite
def calls(draw: Any, signature: Signature) -> Call:
    """Calls that the signature allows, with or without the flags stated."""
    data = [p for p in signature.parameters if p.kind != "*" and not p.flag]
    by_position_only = [p.kind == "/" or p.name in TAKEN for p in data]
    needed = [i for i, p in enumerate(data) if p.default is None and by_position_only[i]]
    count = draw(st.integers(max(needed, default=-1) + 1, len(data)))  # passed by position
    given: dict[str, Any] = {}
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    # A boolean by position goes to the next flag, so after one that is left out another flag
    # can only be stated by position if there is data between them.
    may_state = True
    for p in signature.parameters:
        if p.flag:
            position = p.kind != "*" and may_state
            ways = ["leave", "leave"] + ["position"] * position + ["keyword"] * (p.kind != "/")
            way = draw(st.sampled_from(ways))
            value: Any = draw(st.booleans())
            may_state = may_state and way == "position"
        elif p.kind != "*" and data.index(p) < count:
            way, value, may_state = "position", draw(values()), True
        else:
            by_keyword = p.kind != "/" and p.name not in TAKEN
            ways = ["keyword"] * by_keyword + ["leave"] * (p.default is not None)
            way, value = draw(st.sampled_from(ways)), draw(values())
            may_state = may_state and p.kind == "*"
        if way == "position":
            args.append(value)
        elif way == "keyword":
            kwargs[p.name] = value
        if way != "leave":
            given[p.name] = value
    rest: list[Any] = []
    if signature.rest and count == len(data):
        rest = draw(st.lists(values(), max_size=2))
    extra = {}
    for name in signature.extra or ():
        if draw(st.booleans()):
            extra[name] = draw(values())
    if signature.hidden and draw(st.integers(0, 3)) == 0:
        extra[signature.hidden] = draw(st.booleans())
    return Call((*args, *rest), {**kwargs, **extra}, given, tuple(rest), extra)


@st.composite
def signed_calls(draw: Any) -> tuple[Signature, Call]:
    """A signature and a call of it."""
    signature = draw(signatures())
    return signature, draw(calls(signature))
