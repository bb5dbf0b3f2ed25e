"""The extension point: what a framework has to say so that its models become layers."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any, ClassVar

from jaxlayer_core.pure import PureModule


class Adapter(abc.ABC):
    """Turns one framework's models into `PureModule`s.

    Subclass it, and make it known through the entry-point group `jaxlayer.adapters` (name:
    the framework's package, value: the class) or `register_adapter`. One instance serves
    the whole process; it keeps no state.

    Attributes:
        framework: import name of the framework's package, such as `"haiku"` or
            `"flax.linen"`; objects are matched with it by the modules of their classes.
    """

    framework: ClassVar[str]

    @abc.abstractmethod
    def accepts(self, obj: Any) -> bool:
        """Whether `obj` is a model of this framework."""

    @abc.abstractmethod
    def purify(
        self,
        obj: Any,
        *,
        method: Any = None,
        training_arg: str | Iterable[str] | None = None,
    ) -> PureModule:
        """Makes the canonical form.

        Args:
            obj: a model that `accepts` said yes to.
            method: which of its methods to call; None for the usual one.
            training_arg: the train flag, where the user names it; see
                `jaxlayer_core.signature.parse_training_arg`.

        An adapter may take two more keywords, which it gets if it has them:

        - `capture`: what the user wants of intermediate results, for
          `jaxlayer_core.capturing.Capture`; without it a layer with `capture=` is refused.
        - `state_policy`: the user's roles by path, where they decide what is params and what
          is state. The layer puts them before the `policy` of the result in any case.

        Raises:
            SignatureError: there is no such method or flag.
        """
