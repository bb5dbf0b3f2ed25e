"""Models as data: names and plain values in JSON, and back, running nothing that is not trusted."""

from jaxlayer_core.serialization import names, objects, plain
from jaxlayer_core.serialization.decoder import Decoder, decode
from jaxlayer_core.serialization.encoder import Encoded, Encoder, encode
from jaxlayer_core.serialization.rules import TABLE, Node, Rule, add_rule
from jaxlayer_core.serialization.trust import distrust, is_trusted, trust, trusting

# The first that matches counts.
TABLE[:] = [
    names.EnumRule(),
    plain.NumberRule(),
    plain.BytesRule(),
    plain.ItemsRule(),
    plain.RangeRule(),
    plain.EllipsisRule(),
    plain.DtypeRule(),
    plain.ArrayRule(),
    names.PartialRule(),
    names.MethodRule(),
    names.ClosureRule(),
    objects.KerasRule(),
    names.NameRule(),
    objects.NamedTupleRule(),
    objects.DataclassRule(),
    objects.MappingRule(),
    objects.ConstructedRule(),
    objects.AttributesRule(),
]

__all__ = [
    "Decoder",
    "Encoded",
    "Encoder",
    "Node",
    "Rule",
    "add_rule",
    "decode",
    "distrust",
    "encode",
    "is_trusted",
    "trust",
    "trusting",
]
