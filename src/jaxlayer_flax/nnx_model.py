"""One method of an NNX module in canonical form."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from flax import nnx

from jaxlayer_core import (
    Arguments,
    CallSignature,
    Outcome,
    PureModule,
    Variables,
)
from jaxlayer_core.capturing import Capture
from jaxlayer_core.signature import parse_training_arg
from jaxlayer_flax import nnx_bridge, nnx_capturing, nnx_modes
from jaxlayer_flax.adapting import no_method
from jaxlayer_flax.nnx_leaves import raw
from jaxlayer_flax.nnx_rngs import rngs_of
from jaxlayer_flax.nnx_sources import Source
from jaxlayer_flax.nnx_trees import Parts, Traced, updated
from jaxlayer_flax.nnx_writes import Writes
from jaxlayer_flax.roles import Collections


class NnxModel:
    """One method of one module.

    Args:
        source: where modules come from.
        method: name, bound method or function of the module; None for `__call__`.
        training_arg: names of train flags, or None.
        rngs: names of streams that calls are given besides the default.
        collections: roles of the collections.
        capture: what to return beside the output.
    """

    def __init__(
        self,
        source: Source,
        method: Any,
        training_arg: str | Iterable[str] | None,
        rngs: Iterable[str],
        collections: Collections,
        capture: Capture,
    ) -> None:
        self._source = source
        self._rngs = tuple(rngs)
        self._capture = capture
        self._collections = collections
        self._of_linen = nnx_bridge.linen_method(self._module(), method)
        self._method = self._find_method(method)
        self._named = parse_training_arg(training_arg)
        parameters = self._parameters()
        names = [p.name for p in parameters]
        self._rngs_place = names.index("rngs") if "rngs" in names else None
        self._signature = self._read(p for p in parameters if p.name != "rngs")
        self._made: Parts | None = None
        self._writes = Writes(source.name, collections)

    def pure(self) -> PureModule:
        """The canonical form."""
        differ = nnx_modes.differ(self._source.parts, self._named)
        # A module is made without its inputs, so no flag hidden in `**kwargs` can change it.
        is_made = not nnx_bridge.is_unmade(self._module())
        settled = dataclasses.replace(self._signature, settled=True) if is_made else None
        return PureModule(
            init=self._init,
            call=self._call,
            signature=self._signature,
            has_modes=bool(self._signature.flags) or differ,
            policy=self._collections.policy,
            init_signature=settled,
            scopes=((), ()),
            optional_groups=True,
            captures=bool(self._capture),
        )

    def _find_method(self, method: Any) -> Callable[..., Any]:
        """The method as a function whose first argument is the module."""
        cls: Any = self._source.module_class
        if (called := self._of_linen) is not None:
            if called.__name__ == "__call__":
                return cls.__call__
            return lambda module, *args, **kwargs: module(*args, method=called, **kwargs)
        if callable(method):
            return getattr(method, "__func__", method)
        found = getattr(cls, method or "__call__", None)
        if callable(found):
            return found
        raise no_method(self._source.name, cls, nnx.Module, method or "__call__")

    def _bound(self, module: Any) -> Callable[..., Any]:
        """The method of a module, whose class may be one that records it."""
        name = getattr(self._method, "__name__", "")
        is_own = getattr(self._source.module_class, name, None) is self._method
        return getattr(module, name) if is_own else functools.partial(self._method, module)

    def _module(self) -> Any:
        """A module whose arrays mean nothing."""
        return self._source.parts.as_it_is()

    def _parameters(self) -> list[inspect.Parameter]:
        """What the method takes; for a bridge to linen what the linen module does."""
        taken = inspect.signature(self._of_linen or self._method).parameters.values()
        rngs = inspect.Parameter("rngs", inspect.Parameter.KEYWORD_ONLY)
        return [*list(taken)[1:], *([rngs] if self._of_linen else [])]

    def _read(self, parameters: Iterable[inspect.Parameter]) -> CallSignature:
        """The signature; flags that the user names may be attributes instead."""
        parameters = tuple(parameters)
        if self._named is None:
            return CallSignature.read(self._source.name, parameters)
        there = nnx_modes.attributes(self._module(), self._named) - {p.name for p in parameters}
        rest = [("" if v else "not ") + k for k, v in self._named.items() if k not in there]
        return CallSignature.read(self._source.name, parameters, rest)

    def _init(self, rng: jax.Array, arguments: Arguments) -> Variables:
        parts = Parts.of(self._new(rng, arguments))
        return Variables(*self._collections.split(parts.annotated()))

    def _new(self, rng: jax.Array, arguments: Arguments) -> Any:
        """A module with its first values, those of linen modules inside it, too."""
        module = self._source.make(rng)
        if nnx_bridge.is_unmade(module):
            nnx_modes.set_mode(module, True, self._named)
            args, kwargs = self._with_rngs(arguments, rng)
            nnx_bridge.make_variables(module, self._method, args, kwargs)
        return module

    def _parts(self, rng: jax.Array, arguments: Arguments) -> Parts:
        """A module taken apart, with all its variables."""
        if self._made is None:
            if not nnx_bridge.is_unmade(self._module()):
                self._made = self._without_sown(rng, arguments)
            else:
                self._made = Traced(lambda key: self._new(key, arguments)).parts
        return self._made

    def _without_sown(self, rng: jax.Array, arguments: Arguments) -> Parts:
        """The source's module without what earlier calls have sown that the user wants to see.

        Nothing tells a variable that `sow` has made from one that `__init__` has, but that the
        module can do without it.
        """
        parts = self._source.parts
        chosen = self._collections.made_anew_by_choice(parts.variables())
        if not chosen:
            return parts
        rest = parts.without(chosen)
        variables = rest.variables()
        try:
            jax.eval_shape(lambda: self._run(rest, variables, rng, arguments, True, bool)[0])
        except Exception:  # it needs them; what else is wrong, the call will say
            return parts
        return rest

    def _call(
        self, params: Any, state: Any, rng: jax.Array, arguments: Arguments, training: bool
    ) -> Outcome:
        parts = self._parts(rng, arguments)
        variables = {**(params or {}), **(state or {})}
        if anew := self._collections.made_anew(parts.variables()):
            made = Parts.of(self._new(rng, arguments)).variables()
            variables |= {name: made[name] for name in anew}
        outputs, after = self._run(parts, variables, rng, arguments, training, self._capture.wants)
        new_state, sown = self._written(parts, after, state)
        captured = {}
        if self._capture:
            found, taken = nnx_capturing.results(sown, self._capture)
            there: Iterable[str] = found
            if self._capture.missing(found):
                _, every = self._run(parts, variables, rng, arguments, False, lambda path: True)
                made = self._written(parts, every, state)[1]
                there, _ = nnx_capturing.results(made, self._capture)
            captured = self._capture.take(found, self._source.name, there)
            sown = {name: value for name, value in sown.items() if name not in taken}
        return Outcome(outputs, new_state, sown, captured)

    def _run(
        self,
        parts: Parts,
        variables: Mapping[str, Any],
        rng: jax.Array,
        arguments: Arguments,
        training: bool,
        wants: Callable[[str], bool],
    ) -> tuple[Any, Parts]:
        """Calls a new module; returns its output, and what the call has made of it."""
        module = parts.merge(variables, rng)
        self._writes.watch(module)
        nnx_modes.set_mode(module, training, self._named)
        if self._capture:
            nnx_capturing.record(module, wants)
        with nnx_capturing.sowing():
            args, kwargs = self._with_rngs(arguments, rng)
            if self._of_linen is not None:
                immutable = self._collections.immutable(variables, training)
                kwargs["mutable"] = nnx_bridge.all_but(immutable)
            outputs = self._bound(module)(*args, **kwargs)
        return _values(outputs), Parts.of(module)

    def _with_rngs(
        self, arguments: Arguments, rng: jax.Array
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the method itself, which may take `rngs` before others."""
        args, kwargs = arguments.args, {**arguments.kwargs}
        place = self._rngs_place
        if place is not None:
            rngs = rngs_of(rng, self._rngs, "default" if self._of_linen is None else "params")
            if place < len(args):
                args = (*args[:place], rngs, *args[place:])
            else:
                kwargs["rngs"] = rngs
        return tuple(args), kwargs

    def _written(self, parts: Parts, after: Parts, state: Any) -> tuple[Any, dict[str, Any]]:
        """The new state, and what else the call has made, by path."""
        self._writes.check_made(parts, after)
        new_state = state and updated(state, after.variables())
        known = parts.named()
        anew = self._collections.made_anew(parts.variables())
        return new_state, {
            "/".join(path): value
            for path, value in after.named().items()
            if path not in known or path[0] in anew
        }


def _values(outputs: Any) -> Any:
    """The outputs, with the value of each variable in place of it."""
    return jax.tree.map(
        lambda leaf: raw(leaf) if isinstance(leaf, nnx.Variable) else leaf,
        outputs,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )
