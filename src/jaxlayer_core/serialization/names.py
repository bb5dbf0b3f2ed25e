"""Rules for what has a name: functions and classes, and what is made of them."""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import types
from typing import Any

from jaxlayer_core.errors import TrustError
from jaxlayer_core.serialization import references, trust
from jaxlayer_core.serialization.decoder import Decoder
from jaxlayer_core.serialization.encoder import Encoder
from jaxlayer_core.serialization.rules import TAG, Node, Rule


class NameRule(Rule):
    """Functions and classes, by name."""

    tag = "name"

    def matches(self, value: Any) -> bool:
        """Whether it can be called and has a name."""
        return callable(value) and references.find(value) is not None

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """The name."""
        return {"of": encoder.name(value)}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """The object itself."""
        value = decoder.named(node, "of")
        if not callable(value):
            raise decoder.failure(f"names {value!r:.80}, which is neither a function nor a class")
        return value


class EnumRule(Rule):
    """Members of enumerations."""

    tag = "enum"

    def matches(self, value: Any) -> bool:
        """Whether it is one."""
        return isinstance(value, enum.Enum)

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Class and name."""
        return {"class": encoder.name(type(value)), "member": value.name}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """The member."""
        cls = decoder.named_class(node, lambda c: issubclass(c, enum.Enum), "an enumeration")
        return cls[decoder.get(node, "member", str)]


class PartialRule(Rule):
    """`functools.partial`."""

    tag = "partial"

    def matches(self, value: Any) -> bool:
        """Whether it is one, and no subclass."""
        return type(value) is functools.partial

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Function and arguments."""
        return {
            "function": encoder.encode(value.func, ".func"),
            "args": encoder.encode(list(value.args), ".args"),
            "kwargs": encoder.encode(value.keywords, ".keywords"),
        }

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A new partial; nothing is called."""
        function = decoder.decode(decoder.get(node, "function", dict), ".function")
        args = decoder.decode(decoder.get(node, "args", list), ".args")
        kwargs = decoder.decode(decoder.get(node, "kwargs", dict), ".kwargs")
        return functools.partial(function, *args, **kwargs)


class MethodRule(Rule):
    """Methods that belong to an object or a class."""

    tag = "method"

    def matches(self, value: Any) -> bool:
        """Whether it is one, written in Python."""
        return isinstance(value, types.MethodType)

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Owner and name."""
        if getattr(value.__self__, value.__name__, None) != value:
            raise encoder.failure(value, "its owner has another method of its name")
        return {"of": encoder.encode(value.__self__, ".__self__"), "method": value.__name__}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """The method of the decoded owner; only Python's, which no array and no text has.

        That a class is registered with Keras, or given, vouches for making its objects, and not
        for all their methods: those of a Keras model write files.
        """
        data = decoder.get(node, "of", dict)
        owner = decoder.decode(data, ".of")
        cls = owner if isinstance(owner, type) else type(owner)
        if decoder.is_safe and not trust.is_trusted(f"{cls.__module__}.{cls.__qualname__}"):
            raise TrustError(
                f"{decoder.where} needs a method of {cls.__module__}.{cls.__qualname__}, which is "
                f"of no trusted package. If you trust it, call jaxlayer.trust({cls.__module__!r}) "
                "first, or load with safe_mode=False."
            )
        name = decoder.get(node, "method", str)
        is_public = name == "__call__" or not name.startswith("_")
        # Looked up without running descriptors, which could be anything.
        found = inspect.getattr_static(owner, name, None) if is_public else None
        if isinstance(owner, type):
            has_method = isinstance(found, classmethod)
        else:
            # What has a name is the same for the whole process, which its methods could change,
            # as `jax.nn.relu.defjvp` does.
            is_named = data.get(TAG) == NameRule.tag
            has_method = isinstance(found, types.FunctionType | classmethod) and not is_named
        if not has_method:
            raise decoder.failure(f"has no method {name!r}")
        return getattr(owner, name)


class ClosureRule(Rule):
    """Functions made by a function of a trusted package: JAX's initialisers, Haiku's transforms.

    What the maker was called with is read from the variables that the function closes over, and
    from its defaults. The maker is called with these to see that it makes the same.
    """

    tag = "made"

    def matches(self, value: Any) -> bool:
        """Whether it is a function with a maker that may be called."""
        return isinstance(value, types.FunctionType) and _maker(value) is not None

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """The maker, its arguments, and which of the functions that it makes is meant."""
        maker = _maker(value)
        known = {**_defaults(value), **_closed_over(value)}
        arguments = {}
        for name, parameter in inspect.signature(maker).parameters.items():
            if name not in known:
                if parameter.default is parameter.empty:
                    raise encoder.failure(value, f"it does not show the {name!r} it was made with")
            elif known[name] is not parameter.default:
                arguments[name] = known[name]
        made = _functions(maker(**arguments))
        codes = [getattr(function, "__code__", None) for function in made]
        if value.__code__ not in codes:
            raise encoder.failure(value, f"{maker.__name__} makes another function")
        index = codes.index(value.__code__)
        if not _same_state(made[index], value):
            raise encoder.failure(value, f"{maker.__name__} makes one with other values in it")
        kwargs = encoder.encode(arguments, "(...)")
        return {"by": encoder.name(maker), "kwargs": kwargs, "index": index}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """What the maker makes."""
        maker = decoder.named(node, "by")
        if not (isinstance(maker, types.FunctionType) and _may_make(maker, safe=decoder.is_safe)):
            raise decoder.failure(f"names {maker!r:.80}, which is not known to make functions")
        kwargs = decoder.decode(decoder.get(node, "kwargs", dict), ".kwargs")
        made = _functions(maker(**kwargs))
        index = decoder.get(node, "index", int)
        if not (0 <= index < len(made) and isinstance(made[index], types.FunctionType)):
            raise decoder.failure(f"needs a function that {maker.__name__} makes no more")
        return made[index]


def _functions(made: Any) -> tuple[Any, ...]:
    """The functions that were made: one, or several as Haiku's transforms do."""
    return made if isinstance(made, tuple) else (made,)


def _maker(function: types.FunctionType) -> Any:
    """The trusted, importable function that made a closure, or None."""
    # What `functools.wraps` writes into a function is the name of another.
    name, inside, _ = function.__code__.co_qualname.rpartition(".<locals>.")
    module = sys.modules.get(function.__globals__.get("__name__", ""))
    maker = getattr(module, name, None) if inside else None
    if not isinstance(maker, types.FunctionType) or _is_running(maker):
        return None
    own = references.find(function)
    is_importable = own is not None and own.is_importable
    return maker if _may_make(maker) and not is_importable else None


def _may_make(function: types.FunctionType, safe: bool = True) -> bool:
    """Whether a function may be called for the function that it makes: it has one inside."""
    inside = inspect.unwrap(function).__code__.co_consts
    if not any(isinstance(constant, types.CodeType) for constant in inside):
        return False
    reference = references.find(function)
    return not safe or (reference is not None and trust.is_maker(reference.full))


def _is_running(function: types.FunctionType) -> bool:
    """Whether a function waits for what is done here: calling it again would not end."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def _closed_over(function: types.FunctionType) -> dict[str, Any]:
    cells = function.__closure__ or ()
    values = (_content(cell) for cell in cells)
    return dict(zip(function.__code__.co_freevars, values, strict=True))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was assigned
        return cell


def _defaults(function: types.FunctionType) -> dict[str, Any]:
    parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether values are the same objects, functions of the same code, or are encoded alike."""
    differ = [name for name, value in one.items() if not _same_function(value, other[name])]
    encoded = [Encoder("value").encode([kept[name] for name in differ]) for kept in (one, other)]
    return bool(encoded[0] == encoded[1])


def _same_function(one: Any, other: Any) -> bool:
    if one is other:
        return True
    both = isinstance(one, types.FunctionType) and isinstance(other, types.FunctionType)
    return both and one.__code__ is other.__code__ and _same_state(one, other)


def _same_state(one: types.FunctionType, other: types.FunctionType) -> bool:
    """Whether two functions of the same code also have the same values to work with."""
    return _same(_closed_over(one), _closed_over(other)) and _same(_defaults(one), _defaults(other))
