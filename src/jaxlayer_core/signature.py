"""How a model wants to be called: its data arguments and its train flags.

The flag is what a model's author uses to tell training from inference. Authors agree on
neither name nor polarity, so both are in a table, `FLAGS`; nothing else is guessed.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxlayer_core.errors import SignatureError

FLAGS: Mapping[str, bool] = {
    # True in training.
    "train": True,
    "training": True,
    "is_training": True,
    "is_train": True,
    "in_training": True,
    "train_mode": True,
    "training_mode": True,
    "enable_dropout": True,
    "apply_dropout": True,
    "use_dropout": True,
    "update_stats": True,
    "update_batch_stats": True,
    # True in inference.
    "deterministic": False,
    "is_deterministic": False,
    "use_running_average": False,
    "use_running_avg": False,
    "use_running_stats": False,
    "disable_dropout": False,
    "eval": False,
    "is_eval": False,
    "eval_mode": False,
    "evaluation": False,
    "inference": False,
    "is_inference": False,
    "inference_mode": False,
    "test": False,
    "is_test": False,
    "testing": False,
    "is_testing": False,
    "test_mode": False,
}
"""Train flags: name to the value it has in training."""

ATTRIBUTE_FLAGS: Mapping[str, bool] = {
    name: in_training
    for name, in_training in FLAGS.items()
    if name not in ("use_dropout", "apply_dropout", "disable_dropout")
}
"""Those that are flags as an attribute, too: the others say what a model has, not what it does."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def parse_training_arg(training_arg: str | Iterable[str] | None) -> dict[str, bool] | None:
    """Flags that the user names.

    Args:
        training_arg: `"mode"` for an argument that is True in training, `"not frozen"`
            for one that is False in training, several of them, `()` for a model that must
            not be told, or None to look the names up in `FLAGS`.

    Returns:
        Name to the value in training, or None for None.

    Example:
        >>> parse_training_arg("not frozen")
        {'frozen': False}
    """
    if training_arg is None:
        return None
    names = [training_arg] if isinstance(training_arg, str) else list(training_arg)
    return {name.removeprefix("not ").strip(): not name.startswith("not ") for name in names}


def supply(
    parameters: Iterable[inspect.Parameter],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    supplied: Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Puts what a framework supplies, such as a key, among the arguments of a caller.

    Args:
        parameters: all that a function takes, in order.
        args: positional arguments for those of them that are not supplied.
        kwargs: keyword arguments, likewise.
        supplied: values by name.

    Returns:
        The arguments to call the function with.

    Example:
        >>> parameters = inspect.signature(lambda x, key, y: None).parameters.values()
        >>> supply(parameters, (1, 2), {}, {"key": 0})
        ((1, 0, 2), {})
    """
    merged, rest = list(args), dict(supplied)
    for place, parameter in enumerate(parameters):
        is_next = parameter.kind in _POSITIONAL and len(merged) >= place
        if parameter.name in rest and is_next:
            merged.insert(place, rest.pop(parameter.name))
    return tuple(merged), {**kwargs, **rest}


def is_flag_value(value: Any) -> bool:
    """Whether a default could belong to a train flag."""
    return value is None or value is inspect.Parameter.empty or isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class CallSignature:
    """The parameters of a model's call, and which of them are train flags.

    Attributes:
        owner: the model's name, for errors.
        parameters: the parameters, without `self` and without what the framework supplies.
        flags: flag name to the value it has in training.
        settled: whether hidden flags have been looked for, or are not wanted.
    """

    owner: str
    parameters: tuple[inspect.Parameter, ...]
    flags: Mapping[str, bool]
    settled: bool = False

    @classmethod
    def read(
        cls,
        owner: str,
        parameters: Iterable[inspect.Parameter],
        training_arg: str | Iterable[str] | None = None,
    ) -> CallSignature:
        """Finds the flags among `parameters`, by the table or as the user says.

        Raises:
            SignatureError: the user names an argument that does not exist.
        """
        parameters = tuple(parameters)
        named = parse_training_arg(training_arg)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if named is not None:
            missing = set(named) - {p.name for p in parameters}
            if missing and not takes_any:
                raise SignatureError(
                    f"training_arg names {sorted(missing)}, which {owner} does not take. "
                    f"Its arguments are: {', '.join(p.name for p in parameters) or 'none'}."
                )
            return cls(owner, parameters, named, settled=True)
        flags = {
            p.name: FLAGS[p.name]
            for p in parameters
            if p.name in FLAGS
            and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            and is_flag_value(p.default)
        }
        return cls(owner, parameters, flags)

    @property
    def hides_flags(self) -> bool:
        """Whether a flag could be hidden in `**kwargs`."""
        return (
            not self.flags
            and not self.settled
            and any(p.kind is p.VAR_KEYWORD for p in self.parameters)
        )

    def takes(self, name: str) -> bool:
        """Whether there is a parameter of this name."""
        return any(p.name == name for p in self.parameters)

    def discover(self, program: Callable[[dict[str, bool]], str | None]) -> CallSignature:
        """Looks for flags hidden in `**kwargs`.

        Args:
            program: traces the model with some extra keywords and returns the program's
                text, or None if the model does not take them.

        Returns:
            A signature with every flag of the table whose value changes the program; this one
            if the model cannot be traced at all, for then nothing is known.
        """
        found = {}
        traced = program({}) is not None
        for name, in_training in FLAGS.items():
            on = program({name: True})
            traced = traced or on is not None
            if on is not None and on != program({name: False}):
                found[name] = in_training
        if not traced:
            return self
        return dataclasses.replace(self, flags=found, settled=True)

    def without(self, names: Iterable[str]) -> CallSignature:
        """The same signature with some flags left alone."""
        left_alone = set(names)
        kept = {k: v for k, v in self.flags.items() if k not in left_alone}
        return dataclasses.replace(self, flags=kept)

    def stated_mode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool | None:
        """The mode that a caller states by giving a flag itself, as in `layer(x, train=True)`."""
        given, _, extra = self._assign(args, kwargs)
        for name, in_training in self.flags.items():
            value = given.get(name, extra.get(name))
            if isinstance(value, bool):
                return value is in_training
        return None

    def complete(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Adds the flags that the caller left out, and checks that nothing is missing.

        Positional values go to the data parameters in order and skip flags unless they are
        booleans, so `f(x, is_training, y)` takes `layer(x, y)`. What can be passed by
        position is, because `jax.checkpoint` and its kin treat keywords differently.

        Args:
            args: positional arguments, as the user gave them.
            kwargs: keyword arguments, as the user gave them.
            training: the mode.

        Returns:
            The arguments to call the model with.

        Raises:
            SignatureError: too many arguments, an unknown one, or a required one missing.
        """
        given, rest, extra = self._assign(args, kwargs)
        for name, in_training in self.flags.items():
            if name not in given and name not in extra:
                (given if self.takes(name) else extra)[name] = training is in_training
        return self._arrange(given, rest, extra)

    def _assign(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], tuple[Any, ...], dict[str, Any]]:
        """Sorts values into named parameters, `*args` and `**kwargs`."""
        given: dict[str, Any] = {}
        slots = [p for p in self.parameters if p.kind in _POSITIONAL]
        values = list(args)
        for parameter in slots:
            if not values:
                break
            if parameter.name in self.flags and not isinstance(values[0], bool):
                continue
            if parameter.name in kwargs:
                raise SignatureError(
                    f"{self.owner} got two values for its argument `{parameter.name}`, one by "
                    "position and one by keyword."
                )
            given[parameter.name] = values.pop(0)
        if values and not any(p.kind is p.VAR_POSITIONAL for p in self.parameters):
            data = [p.name for p in slots if p.name not in self.flags]
            raise SignatureError(
                f"{self.owner} takes {len(data)} positional argument(s) ({', '.join(data)}) "
                f"but the layer was called with {len(args)}. Pass several arrays as several "
                "arguments, `layer(a, b)`; a tuple is one argument unless the layer was made "
                "with `unpack_inputs=True`."
            )
        by_name = {
            p.name: p
            for p in self.parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        extra = {}
        for name, value in kwargs.items():
            if name in by_name:
                given[name] = value
            else:
                extra[name] = value
        if extra and not any(p.kind is p.VAR_KEYWORD for p in self.parameters):
            raise SignatureError(
                f"{self.owner} does not take {', '.join(map(repr, extra))}. Its arguments are: "
                f"{', '.join(p.name for p in self.parameters) or 'none'}."
            )
        return given, tuple(values), extra

    def _arrange(
        self, given: dict[str, Any], rest: tuple[Any, ...], extra: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Turns named values back into positional and keyword arguments."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        contiguous = True
        for p in self.parameters:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                continue
            if p.name in given:
                if contiguous and p.kind in _POSITIONAL:
                    args.append(given[p.name])
                else:
                    kwargs[p.name] = given[p.name]
            elif p.default is p.empty:
                raise SignatureError(
                    f"{self.owner} requires the argument `{p.name}`, which the call did not "
                    f"give. If it is data, pass it: `layer(..., {p.name}=...)`. If it tells "
                    f"training from inference, make the layer with training_arg='{p.name}' "
                    f"(or training_arg='not {p.name}' if it is True in inference)."
                )
            elif p.kind in _POSITIONAL:
                if rest or p.kind is p.POSITIONAL_ONLY:
                    args.append(p.default)
                else:
                    contiguous = False
        return (*args, *rest), {**kwargs, **extra}
