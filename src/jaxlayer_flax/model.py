"""One method of a Flax linen module in canonical form."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax

from jaxlayer_core import (
    Arguments,
    CallSignature,
    Outcome,
    PatternError,
    PureModule,
    Variables,
    stream_key,
)
from jaxlayer_core.capturing import Capture
from jaxlayer_core.signature import parse_training_arg
from jaxlayer_flax import capturing, linen_bridge, modes, trees
from jaxlayer_flax.adapting import no_method
from jaxlayer_flax.roles import Collections


class LinenModel:
    """One method of one module.

    It remembers what tracing has shown of the module: whether the flags of the modules inside
    have to be set from outside, and which collections grow in every call.

    Args:
        module: the module.
        method: name, bound method or function of the module; None for `__call__`.
        training_arg: names of train flags, or None.
        rngs: streams to supply in training in any case.
        collections: roles of the collections.
        capture: what to return beside the output.
    """

    def __init__(
        self,
        module: nn.Module,
        method: Any,
        training_arg: str | Iterable[str] | None,
        rngs: Iterable[str],
        collections: Collections,
        capture: Capture,
    ) -> None:
        self._module = module
        self._name = f"the Flax module {type(module).__name__}"
        self._method = self._find_method(method)
        self._rngs = tuple(rngs)
        self._collections = collections
        self._capture = capture
        self._grown: set[str] = set()
        self._fill_children = False
        self._shows_modes: bool | None = None
        self._named = parse_training_arg(training_arg)
        self._signature, self._attributes = self._find_flags()

    def pure(self) -> PureModule:
        """The canonical form."""
        waits = self._named != {} and modes.waits(self._module)
        return PureModule(
            init=self._init,
            call=self._call,
            signature=self._signature,
            has_modes=bool(self._signature.flags or self._attributes or waits),
            shows_modes=lambda: self._shows_modes,
            policy=self._collections.policy,
            scopes=((), ()),
            optional_groups=True,
            captures=bool(self._capture),
        )

    def _find_method(self, method: Any) -> Callable[..., Any]:
        """The method as a function whose first argument is the module."""
        if callable(method):
            return getattr(method, "__func__", method)
        found = getattr(type(self._module), method or "__call__", None)
        if not callable(found):
            raise no_method(self._name, type(self._module), nn.Module, method or "__call__")
        return found

    def _find_flags(self) -> tuple[CallSignature, Mapping[str, bool]]:
        """The flags of the call, and those that are attributes."""
        parameters = list(inspect.signature(self._method).parameters.values())[1:]
        named = self._named
        if named is not None:
            attributes = modes.attribute_flags(self._module, named)
            taken = {p.name for p in parameters}
            attributes = {k: v for k, v in attributes.items() if k not in taken}
            rest = [("" if v else "not ") + k for k, v in named.items() if k not in attributes]
            return CallSignature.read(self._name, parameters, rest), attributes
        signature = CallSignature.read(self._name, parameters)
        attributes = modes.attribute_flags(self._module)
        # A flag that is set as an attribute may not be given in the call as well.
        twice = set(attributes) & set(signature.flags)
        signature = signature.without(twice)
        if signature.flags:
            attributes = {k: v for k, v in attributes.items() if k in twice}
        return signature, attributes

    def _in_mode(self, training: bool, run: Callable[[nn.Module], Any]) -> Any:
        """Runs the module in a mode; sets the flags inside it only if it fails without."""
        module = modes.with_mode(self._module, self._attributes, training)
        filled = functools.partial(modes.with_children_mode, module, training)
        with linen_bridge.in_mode(training, self._named) as told:
            try:
                result = run(filled() if self._fill_children else module)
            except Exception as error:
                if self._fill_children or not modes.unset_flags(self._module):
                    raise
                try:
                    result = run(filled())
                except Exception:
                    raise error from None
                self._fill_children = True
            self._shows_modes = bool((told and self._named != {}) or self._shows_modes)
            return result

    def _init(self, rng: jax.Array, arguments: Arguments) -> Variables:
        variables = trees.clean(
            self._in_mode(
                True,
                lambda module: module.init(
                    rng, *arguments.args, method=self._method, **arguments.kwargs
                ),
            )
        )
        params, state = self._collections.split(variables)
        self._check_made_anew(variables, rng, arguments)
        self._grown |= self._find_grown(params, state, rng, arguments)
        return Variables(params, {k: v for k, v in state.items() if k not in self._grown})

    def _find_grown(
        self, params: Any, state: Any, rng: jax.Array, arguments: Arguments
    ) -> set[str]:
        """Collections that `sow` adds to in every call, which cannot be kept as they are."""
        if not any(map(trees.was_sown, state.values())):
            return set()
        variables = trees.plain({**params, **state})
        mutable = nn.DenyList(self._collections.immutable(variables, True))
        _, mutated = self._apply(variables, rng, arguments, True, mutable)
        return trees.grown({name: variables[name] for name in state}, trees.clean(mutated))

    def _check_made_anew(self, variables: Any, rng: jax.Array, arguments: Arguments) -> None:
        """Refuses to make variables anew in each call because the user wants to see them.

        What `sow` would write to an immutable collection it leaves; a variable that is missing
        from one is an error of Flax.
        """
        for name in self._collections.made_anew_by_choice(variables):
            rest = trees.plain({k: v for k, v in variables.items() if k != name})
            mutable = nn.DenyList(self._collections.immutable(rest, True) | {name})
            try:
                self._apply(rest, rng, arguments, True, mutable)
            except flax.errors.ModifyScopeVariableError:
                pass  # `put_variable` makes it anew in each call
            except (
                flax.errors.ScopeCollectionNotFound,
                flax.errors.ScopeVariableNotFoundError,
            ) as error:
                role = self._collections.role(name).value
                raise PatternError(
                    f"state_policy: {name!r} is a collection of variables that {self._name} keeps "
                    f"from call to call; as a collection with the role {role!r} it would be made "
                    f"anew in each. Give the role to its leaves: {{{name + '/.*'!r}: {role!r}}}.",
                    cause=error,
                ) from error

    def _call(
        self, params: Any, state: Any, rng: jax.Array, arguments: Arguments, training: bool
    ) -> Outcome:
        # What `sow` adds to in every call starts anew in every call.
        kept = {k: v for k, v in (state or {}).items() if k not in self._grown}
        variables = {**(params or {}), **kept}
        outputs, mutated = self._apply_in_mode(variables, rng, arguments, training)
        mutated = flax.core.unfreeze(nn.meta.unbox(mutated))
        if grown := trees.grown(kept, mutated):  # given by the user, or sown by this method only
            self._grown |= grown
            return self._call(params, state, rng, arguments, training)
        new_state = state and {k: mutated.get(k, v) if k in kept else v for k, v in state.items()}
        sown = {
            "/".join((collection, *path)): value
            for collection in mutated.keys() - variables.keys()
            for path, value in flax.traverse_util.flatten_dict(mutated[collection]).items()
            if collection != "intermediates" or not self._capture.wants(capturing.name(path))
        }
        captured = {}
        if self._capture:
            captured = self._captured(mutated.get("intermediates", {}), variables, rng, arguments)
        return Outcome(outputs, new_state, sown, captured)

    def _captured(
        self, intermediates: Any, variables: Any, rng: jax.Array, arguments: Arguments
    ) -> dict[str, Any]:
        """What was asked for among the intermediate results of a call."""
        there = found = capturing.results(intermediates)
        if self._capture.missing(found):
            _, everything = self._apply(variables, rng, arguments, False, True, capture=True)
            there = capturing.results(everything.get("intermediates", {}))
        return self._capture.take(found, self._name, there)

    def _is_captured(self, module: nn.Module, method: str) -> bool:
        """Whether Flax should keep what a method returns; its `capture_intermediates`."""
        return self._capture.wants(capturing.name((*module.path, method)))

    def _apply_in_mode(
        self, variables: Any, rng: jax.Array, arguments: Arguments, training: bool
    ) -> tuple[Any, Any]:
        """Applies the module as its author would in this mode."""
        immutable = self._collections.immutable(variables, training)
        wanted = self._is_captured if self._capture else False
        if wanted:
            immutable -= {"intermediates"}
        try:
            mutable = nn.DenyList(immutable)
            return self._apply(variables, rng, arguments, training, mutable, wanted)
        except Exception as error:
            if training:
                raise
            # It may insist on writing; let it, the layer does not keep what it writes.
            mutable = nn.DenyList(self._collections.immutable(variables, True) & immutable)
            try:
                return self._apply(variables, rng, arguments, training, mutable, wanted)
            except Exception:
                raise error from None

    def _apply(
        self,
        variables: Any,
        rng: jax.Array,
        arguments: Arguments,
        training: bool,
        mutable: Any,
        capture: Any = False,
    ) -> tuple[Any, Any]:
        """Applies the module, giving it just the rng streams that it asks for."""

        def run(module: nn.Module) -> Any:
            streams = list(self._rngs) if training else []
            while True:
                try:
                    return module.apply(
                        variables,
                        *arguments.args,
                        rngs={name: stream_key(rng, name) for name in streams},
                        method=self._method,
                        mutable=mutable,
                        capture_intermediates=capture,
                        **arguments.kwargs,
                    )
                except flax.errors.InvalidRngError as error:
                    asked = re.search(r'needs PRNG for "(.*?)"', str(error))
                    if asked is None or asked[1] in streams:
                        raise
                    streams.append(asked[1])

        return self._in_mode(training, run)
