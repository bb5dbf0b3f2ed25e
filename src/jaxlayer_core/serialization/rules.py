"""How one kind of value becomes JSON data and comes back: a rule, in one table for all."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from jaxlayer_core.serialization.decoder import Decoder
    from jaxlayer_core.serialization.encoder import Encoder

Data = Any
"""What JSON can hold."""
Node = dict[str, Data]
"""Data of a value that is no plain JSON: `{"$": tag, ...}`."""

TAG = "$"


class Rule(abc.ABC):
    """Encodes and decodes the values of one kind.

    The first rule in `TABLE` that matches a value encodes it. Adapters put rules for what
    only their framework knows in front, with `add_rule`.

    Attributes:
        tag: names the rule in the data.
        has_identity: whether one object in two places must stay one, as a module that is
            shared by two others.
    """

    tag: ClassVar[str]
    has_identity: ClassVar[bool] = False

    @abc.abstractmethod
    def matches(self, value: Any) -> bool:
        """Whether this rule encodes `value`."""

    @abc.abstractmethod
    def encode(self, value: Any, encoder: Encoder) -> Node:
        """The data, without the tag.

        Raises:
            NotExpressibleError: this value has none.
        """

    @abc.abstractmethod
    def decode(self, node: Node, decoder: Decoder) -> Any:
        """The value of the data, which may come from anywhere and have anything in it.

        Raises:
            ConfigError: the data are broken, or name what may not be had.
        """


TABLE: list[Rule] = []


def add_rule(rule: Rule) -> None:
    """Puts a rule in front of the table, in place of an older one with its tag."""
    TABLE[:] = [rule, *(known for known in TABLE if known.tag != rule.tag)]


def find(tag: str) -> Rule | None:
    """The rule with a tag."""
    return next((rule for rule in TABLE if rule.tag == tag), None)
