"""Optax in configs: what of it may be named, and transformations by what made them.

A transformation is two functions that close over the arguments of the function that made them.
So it is stored as that function's name and the arguments; what comes back has to be stored alike.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

import optax
import optax.contrib
import optax.schedules
import optax.transforms

from jaxlayer_core.errors import TrustError
from jaxlayer_core.serialization import Decoder, Encoder, Node, Rule, add_rule, references
from jaxlayer_core.serialization.trust import is_maker, list_names

_HOMES = (
    *("optax.contrib.", "optax.schedules.", "optax.transforms.", "optax._src.alias"),
    *("optax._src.base", "optax._src.factorized", "optax._src.linesearch"),
    *("optax._src.lookahead", "optax._src.transform", "optax._src.wrappers"),
)
"""Where the functions are that make transformations and schedules, and do nothing else."""


class TransformationRule(Rule):
    """Transformations, by the function that made them and its arguments."""

    tag = "optax.transformation"

    def matches(self, value: Any) -> bool:
        """Whether it is one whose maker is known."""
        is_one = isinstance(value, optax.GradientTransformation)
        return is_one and _recipe(value) is not None

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """The maker and its arguments."""
        recipe = _recipe(value)
        if recipe is None:
            raise encoder.failure(value, "nothing shows what made it")
        maker, args, kwargs = recipe
        return {
            "by": encoder.name(maker),
            "args": encoder.encode(list(args), "(...)"),
            "kwargs": encoder.encode(kwargs, "(...)"),
        }

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """What the maker makes."""
        maker = decoder.named(node, "by")
        check_factory(maker, decoder.is_safe, decoder.where)
        args = decoder.decode(decoder.get(node, "args", list), ".args")
        kwargs = decoder.decode(decoder.get(node, "kwargs", dict), ".kwargs")
        made = maker(*args, **kwargs)
        if not isinstance(made, optax.GradientTransformation):
            raise decoder.failure(f"is {made!r:.80}, which is no transformation")
        return made


class InjectedRule(Rule):
    """What `optax.inject_hyperparams` made."""

    tag = "optax.inject_hyperparams"

    def matches(self, value: Any) -> bool:
        """Whether it is one."""
        return isinstance(value, optax.GradientTransformation) and (
            "inner_factory" in (closed := _closed_over(value.init)) and "numeric_hps" in closed
        )

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """The function that makes the transformation inside, and its arguments."""
        closed = _closed_over(value.init)
        schedules = {
            name: schedule.schedule_fn if isinstance(schedule, optax.WrappedSchedule) else schedule
            for name, schedule in closed["sched_hps"].items()
        }
        fixed = closed["other_hps"]
        return {
            "factory": encoder.encode(closed["inner_factory"], ".inner_factory"),
            "static": sorted(fixed),
            "dtype": encoder.encode(closed.get("hyperparam_dtype"), ".hyperparam_dtype"),
            "kwargs": encoder.encode({**closed["numeric_hps"], **schedules, **fixed}, "(...)"),
        }

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """The transformation, its hyperparameters in the state again."""
        factory = decoder.decode(decoder.get(node, "factory", dict), ".factory")
        check_factory(factory, decoder.is_safe, decoder.where)
        static = decoder.decode(decoder.get(node, "static", list), ".static")
        dtype = decoder.decode(node.get("dtype"), ".dtype")
        kwargs = decoder.decode(decoder.get(node, "kwargs", dict), ".kwargs")
        return optax.inject_hyperparams(factory, static, dtype)(**kwargs)


class MultiStepsRule(Rule):
    """`optax.MultiSteps`."""

    tag = "optax.multi_steps"

    def matches(self, value: Any) -> bool:
        """Whether it is one."""
        return isinstance(value, optax.MultiSteps)

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """The transformation inside, and how often it is used."""
        every = value._every_k_schedule
        every = _closed_over(every).get("every_k_schedule", every)
        arguments = {
            "opt": value._opt,
            "every_k_schedule": every,
            "use_grad_mean": value._use_grad_mean,
        }
        skip = value._should_skip_update_fn
        if not getattr(skip, "__qualname__", "").startswith("MultiSteps."):
            arguments["should_skip_update_fn"] = skip
        return {"kwargs": encoder.encode(arguments, "(...)")}

    def decode(self, node: Node, decoder: Decoder) -> Any:
        """A new one."""
        return optax.MultiSteps(**decoder.decode(decoder.get(node, "kwargs", dict), ".kwargs"))


def check_factory(factory: Any, safe: bool, where: str) -> None:
    """Refuses to call what a config names for the transformation that it makes.

    Args:
        factory: a function, or a `functools.partial` of one.
        safe: whether it has to be of Optax or of a trusted package, or given by the user.
        where: what of the config it is, for the error.

    Raises:
        TrustError: it is none of these.
    """
    function = factory.func if isinstance(factory, functools.partial) else factory
    reference = references.find(function) if isinstance(function, types.FunctionType) else None
    if reference is not None and (
        not safe or is_maker(reference.full) or references.given(reference) is function
    ):
        return
    name = reference.full if reference is not None else f"{function!r:.80}"
    raise TrustError(
        f"{where} is to be made by {name}, which is neither of Optax, nor given, nor of a trusted "
        f"package. If you trust it, load with custom_objects=, call jaxlayer.trust(...) with the "
        "name of its package first, or load with safe_mode=False."
    )


Recipe = tuple[Any, tuple[Any, ...], dict[str, Any]]


def _recipe(tx: optax.GradientTransformation) -> Recipe | None:
    """A call that makes a transformation of the same two functions, or None."""
    for maker, closed in _candidates(tx):
        found = _arguments(maker, closed)
        if found is not None and _makes(maker, found, tx):
            return maker, *found
    return None


def _candidates(tx: optax.GradientTransformation) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Functions that may have made it, with the variables that are left of their calls.

    One may also have made only a function that was given to the maker, as
    `optax.scale_by_learning_rate` makes one of a schedule.
    """
    closed = {**_closed_over(tx.init), **_closed_over(tx.update)}
    inner = [value for value in closed.values() if isinstance(value, types.FunctionType)]
    for function in inner:
        if function.__name__ == "<lambda>" and (maker := _maker(function)) is not None:
            yield maker, _closed_over(function)
    for function in (tx.update, tx.init):
        if (maker := _maker(function)) is not None:
            yield maker, closed


def _maker(function: Any) -> Any:
    """The function of Optax that a function is inside of, or None."""
    if not isinstance(function, types.FunctionType):
        return None
    name, inside, _ = function.__code__.co_qualname.partition(".<locals>.")
    module = sys.modules.get(function.__globals__.get("__name__", ""))
    maker = getattr(module, name, None) if inside else None
    is_function = isinstance(maker, types.FunctionType)
    return maker if is_function and _is_maker(maker) else None


def _arguments(maker: Any, closed: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments that a maker was called with, out of what its functions close over."""
    if {"init_fns", "update_fns"} <= closed.keys():  # optax.chain keeps its arguments so
        pairs = zip(closed["init_fns"], closed["update_fns"], strict=True)
        return tuple(optax.GradientTransformationExtraArgs(*pair) for pair in pairs), {}
    kwargs = {}
    for name, parameter in inspect.signature(maker).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:  # and optax.named_chain so
            return tuple(closed.get("transforms", ())), {}
        if name in closed:
            if closed[name] is not parameter.default:
                kwargs[name] = closed[name]
        elif parameter.default is parameter.empty:
            return None
    return (), kwargs


def _makes(maker: Any, arguments: tuple[Any, Any], tx: optax.GradientTransformation) -> bool:
    """Whether a call makes functions of the same code."""
    try:
        made = maker(*arguments[0], **arguments[1])
    except (TypeError, ValueError):  # what it closes over is not what it takes
        return False
    if not isinstance(made, optax.GradientTransformation):
        return False
    return all(
        getattr(one, "__code__", one) == getattr(other, "__code__", other)
        for one, other in zip(made, tx, strict=True)
    )


def _is_maker(function: Any) -> bool:
    """Whether a config may have a function called, for the transformation that it makes."""
    reference = references.find(function)
    return reference is not None and is_maker(reference.full)


def _closed_over(function: Any) -> dict[str, Any]:
    if not isinstance(function, types.FunctionType):
        return {}
    return dict(inspect.getclosurevars(function).nonlocals)


def _public_makers() -> set[str]:
    """The public functions of Optax that make transformations and schedules."""
    return {
        f"{package.__name__}.{name}"
        for package in (optax, optax.contrib, optax.schedules, optax.transforms)
        for name, function in vars(package).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and function.__module__.startswith(_HOMES)
    }


for _rule in (TransformationRule(), InjectedRule(), MultiStepsRule()):
    add_rule(_rule)
list_names({"optax", "jaxlayer_optax"}, makers=_public_makers())
