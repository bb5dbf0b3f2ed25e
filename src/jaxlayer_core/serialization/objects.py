"""Rules for objects that are made of named parts."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras

from jaxlayer_core.errors import ConfigError, MissingDependencyError
from jaxlayer_core.serialization import stand_ins
from jaxlayer_core.serialization.decoder import Decoder
from jaxlayer_core.serialization.encoder import Encoder
from jaxlayer_core.serialization.rules import Node, Rule

_PLAIN = (bool, int, float, complex, str, bytes, tuple, type(None))


class KerasRule(Rule):
    """What Keras itself serialises: its own objects, and those of classes registered with it."""

    tag = "keras"
    has_identity = True

    def matches(self, value: Any) -> bool:
        """Whether Keras has a config for it."""
        if not _is_saved_by_keras(value):
            return False
        home = getattr(value if _is_function(value) else type(value), "__module__", None) or ""
        return home.partition(".")[0] == "keras" or (
            ">" in keras.saving.get_registered_name(type(value))
        )

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Keras' config."""
        if hasattr(type(value), "get_config"):
            encoder.name(type(value))  # whether the class can be imported counts
        return {"keras": keras.saving.serialize_keras_object(value)}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """What Keras makes of it, by its own rules of what is safe."""
        data = decoder.get(node, "keras", dict)
        value = keras.saving.deserialize_keras_object(data, safe_mode=decoder.is_safe)
        if not _is_saved_by_keras(value):
            raise decoder.failure(f"is {value!r:.80}, which no model is made of")
        return value


def _is_saved_by_keras(value: Any) -> bool:
    """Whether a value is an object with a config, or a function that computes.

    Keras would give any function of its own, as none gets arguments of a file's choice there. A
    `functools.partial` of `keras.utils.plot_model` writes files.
    """
    if _is_function(value):
        return value.__module__.startswith(("keras.src.activations.", "keras.src.ops."))
    is_object = not isinstance(value, type)
    return is_object and hasattr(value, "get_config") and hasattr(type(value), "from_config")


def _is_function(value: Any) -> bool:
    return isinstance(value, types.FunctionType)


class NamedTupleRule(Rule):
    """Named tuples."""

    tag = "namedtuple"

    def matches(self, value: Any) -> bool:
        """Whether it is one."""
        return isinstance(value, tuple) and hasattr(value, "_fields")

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Class and items."""
        pairs = zip(value._fields, value, strict=True)
        items = [encoder.encode(item, f".{field}") for field, item in pairs]
        return {
            "class": encoder.name(type(value)),
            "fields": list(value._fields),
            "items": items,
        }

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A new one, of its class or of one that looks like it."""
        try:
            cls = decoder.named_class(
                node, lambda c: issubclass(c, tuple) and hasattr(c, "_fields"), "a named tuple"
            )
        except (ConfigError, MissingDependencyError):
            if not decoder.has_stand_ins:
                raise
            name = decoder.get(decoder.get(node, "class", dict), "name", str)
            fields = tuple(map(str, decoder.get(node, "fields", list)))
            cls = stand_ins.named_tuple(name.rpartition(".")[2], fields)
        return cls(*decoder.decode(decoder.get(node, "items", list), ".items"))


class DataclassRule(Rule):
    """Dataclasses, such as linen modules and config objects: the fields that are not defaults."""

    tag = "dataclass"
    has_identity = True

    def matches(self, value: Any) -> bool:
        """Whether it is an instance of one."""
        return dataclasses.is_dataclass(value) and not isinstance(value, type)

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Class and fields; and attributes that the class itself must make again."""
        made = {field.name for field in dataclasses.fields(value) if field.init}
        fields = {
            field.name: encoder.encode(getattr(value, field.name), f".{field.name}")
            for field in dataclasses.fields(value)
            if field.init and not _is_default(getattr(value, field.name), field.default)
        }
        rest = {
            name: encoder.encode(item, f".{name}")
            for name, item in getattr(value, "__dict__", {}).items()
            if name not in made and not name.startswith("_")
        }
        return {"class": encoder.name(type(value)), "fields": fields, "rest": rest}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A new one, made by its class."""
        cls = decoder.named_class(node, dataclasses.is_dataclass, "a dataclass")
        return cls(**decoder.decode(decoder.get(node, "fields", dict), ".fields"))


def _is_default(value: Any, default: Any) -> bool:
    if value is default:
        return True
    if type(value) is not type(default) or type(value) not in _PLAIN:
        return False
    if isinstance(value, tuple):
        return len(value) == len(default) and all(map(_is_default, value, default))
    return bool(value == default)


class MappingRule(Rule):
    """Mappings of other classes than `dict`, such as `FrozenDict`."""

    tag = "mapping"

    def matches(self, value: Any) -> bool:
        """Whether it is one."""
        return isinstance(value, Mapping) and type(value) is not dict

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Class and items."""
        return {"class": encoder.name(type(value)), "items": encoder.encode(dict(value), "")}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A new one, made of a dict."""
        cls = decoder.named_class(node, lambda c: issubclass(c, Mapping), "a mapping")
        return cls(decoder.decode(decoder.get(node, "items", dict), ".items"))


class ConstructedRule(Rule):
    """Objects that say what their class has to be called with, such as `PartitionSpec`."""

    tag = "constructed"

    def matches(self, value: Any) -> bool:
        """Whether copying it would just call its class."""
        return _says_how(type(value)) and _made_by(value) is not None

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Class, arguments, and attributes that are set afterwards."""
        made = _made_by(value) or _MadeBy()
        return {
            "class": encoder.name(type(value)),
            "args": encoder.encode(list(made.args), "(...)"),
            "kwargs": encoder.encode(made.kwargs, "(...)"),
            "attributes": encoder.encode(made.attributes),
        }

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A new one."""
        cls = decoder.named_class(node, _says_how, "a class that says how its objects are made")
        args = decoder.decode(decoder.get(node, "args", list), ".args")
        kwargs = decoder.decode(decoder.get(node, "kwargs", dict), ".kwargs")
        value = cls(*args, **kwargs)
        if attributes := decoder.decode(decoder.get(node, "attributes", dict), ".attributes"):
            vars(value).update(attributes)
        return value


class _MadeBy(NamedTuple):
    """How Python's protocol for copies makes an object again."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012  # never changed
    attributes: dict[str, Any] = {}  # noqa: RUF012


def _says_how(cls: type) -> bool:
    """Whether a class says what it has to be called with; calling another might do anything."""
    if cls.__module__ == "builtins" or issubclass(cls, type):
        return False
    own = getattr(cls, "__reduce__", None) is not object.__reduce__
    return own or hasattr(cls, "__getnewargs_ex__")


def _made_by(value: Any) -> _MadeBy | None:
    """What an object's class has to be called with, if the class says so itself."""
    cls = type(value)
    if hasattr(cls, "__getnewargs_ex__"):
        return _MadeBy(*value.__getnewargs_ex__())
    maker, args, *state = value.__reduce__()
    attributes = (state or [None])[0] or {}
    is_plain = maker is cls and len(state) < 2 and isinstance(attributes, dict)
    return _MadeBy(args, {}, attributes) if is_plain else None


class AttributesRule(Rule):
    """Other objects of Python classes, such as Haiku's initialisers: their attributes."""

    tag = "attributes"
    has_identity = True

    def matches(self, value: Any) -> bool:
        """Whether its attributes are all there is to it."""
        cls = type(value)
        if isinstance(value, type) or not hasattr(value, "__dict__"):
            return False
        customs = (
            "__reduce__",
            "__reduce_ex__",
            "__setstate__",
            "__getnewargs__",
            "__getnewargs_ex__",
        )
        own = any(name in vars(base) for base in cls.__mro__[:-1] for name in customs)
        slots = any(vars(base).get("__slots__") for base in cls.__mro__)
        return _is_a_class(cls) and not own and not slots and not hasattr(value, "__name__")

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Class and attributes."""
        attributes = {key: encoder.encode(item, f".{key}") for key, item in vars(value).items()}
        return {"class": encoder.name(type(value)), "attributes": attributes}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """An object with these attributes; its class runs nothing."""
        cls = decoder.named_class(node, _is_a_class, "a class of plain objects")
        attributes = decoder.decode(decoder.get(node, "attributes", dict), ".attributes")
        value = object.__new__(cls)
        vars(value).update(attributes)
        return value


def _is_a_class(cls: type) -> bool:
    """Whether `object` can make its instances: their class is written in Python."""
    return bool(cls.__flags__ & (1 << 9)) and not issubclass(cls, BaseException | type)
