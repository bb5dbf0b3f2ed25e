"""Flax linen modules in canonical form."""

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
    Adapter,
    Annotated,
    Arguments,
    CallSignature,
    Outcome,
    PatternError,
    PureModule,
    SignatureError,
    Variables,
    stream_key,
)
from jaxlayer_core.signature import parse_training_arg
from jaxlayer_flax import modes
from jaxlayer_flax.capturing import Capture
from jaxlayer_flax.roles import COLLECTIONS, Collections


class LinenAdapter(Adapter):
    """Adapts instances of `flax.linen.Module`.

    Args:
        rngs: streams to supply in training besides those that a module demands: `make_rng`
            demands, `has_rng` only looks.
        state_policy: roles of collections, before `jaxlayer_flax.roles.COLLECTIONS`.
        capture: paths of intermediate results to return beside the output.

    Example:
        >>> LinenAdapter().accepts(nn.Dense(3))
        True
    """

    framework = "flax.linen"

    def __init__(
        self,
        rngs: Iterable[str] = (),
        state_policy: Mapping[str, str] | None = None,
        capture: str | Iterable[str] = (),
    ) -> None:
        self._rngs = tuple(rngs)
        self._collections = Collections(COLLECTIONS.extended(state_policy))
        self._capture = Capture(capture)

    def accepts(self, obj: Any) -> bool:
        """Whether `obj` is a linen module."""
        return isinstance(obj, nn.Module)

    def purify(
        self,
        obj: Any,
        *,
        method: Any = None,
        training_arg: str | Iterable[str] | None = None,
    ) -> PureModule:
        """Makes the canonical form of a module and one of its methods."""
        return LinenModel(
            obj, method, training_arg, self._rngs, self._collections, self._capture
        ).pure()

    def variables(self, given: Any) -> tuple[Any, Any]:
        """Splits a dict of collections into params and state."""
        collections = clean(given)
        params = {k: collections[k] for k in self._collections.trained(collections)}
        state = {k: collections[k] for k in self._collections.kept(collections)}
        return params or None, state or None


def clean(variables: Any) -> dict[str, Any]:
    """Plain dicts, with Flax's metadata boxes turned into annotations."""

    def unbox(leaf: Any) -> Any:
        if isinstance(leaf, nn.Partitioned):
            return Annotated(leaf.value, tuple(leaf.names))
        return leaf.unbox() if isinstance(leaf, nn.meta.AxisMetadata) else leaf

    plain: dict[str, Any] = flax.core.unfreeze(variables)
    return jax.tree.map(unbox, plain, is_leaf=nn.meta.is_axis_metadata)


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
        self._signature, self._attributes = self._find_flags(training_arg)

    def pure(self) -> PureModule:
        """The canonical form."""
        return PureModule(
            init=self._init,
            call=self._call,
            signature=self._signature,
            has_modes=bool(
                self._signature.flags or self._attributes or modes.unset_flags(self._module)
            ),
            policy=COLLECTIONS,
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
            own = [
                name
                for cls in type(self._module).__mro__
                if issubclass(cls, nn.Module) and cls is not nn.Module
                for name, value in vars(cls).items()
                if inspect.isfunction(value) and name[:1] != "_" and name != "setup"
            ]
            raise SignatureError(
                f"{self._name} has no method {method or '__call__'!r}. Its methods are: "
                f"{', '.join(dict.fromkeys(own)) or 'none'}. Choose one with method=...."
            )
        return found

    def _find_flags(
        self, training_arg: str | Iterable[str] | None
    ) -> tuple[CallSignature, Mapping[str, bool]]:
        """The flags of the call, and those that are attributes."""
        parameters = list(inspect.signature(self._method).parameters.values())[1:]
        named = parse_training_arg(training_arg)
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
        if self._fill_children:
            return run(filled())
        try:
            return run(module)
        except Exception as error:
            if not modes.unset_flags(self._module):
                raise
            try:
                result = run(filled())
            except Exception:
                raise error from None
            self._fill_children = True
            return result

    def _init(self, rng: jax.Array, arguments: Arguments) -> Variables:
        variables = clean(
            self._in_mode(
                True,
                lambda module: module.init(
                    rng, *arguments.args, method=self._method, **arguments.kwargs
                ),
            )
        )
        params = {k: variables[k] for k in self._collections.trained(variables)}
        state = {k: variables[k] for k in self._collections.kept(variables)}
        self._grown |= self._find_grown(params, state, rng, arguments)
        return Variables(params, {k: v for k, v in state.items() if k not in self._grown})

    def _find_grown(
        self, params: Any, state: Any, rng: jax.Array, arguments: Arguments
    ) -> set[str]:
        """Collections that `sow` adds to in every call, which cannot be kept as they are."""
        if not any(isinstance(v, tuple) for c in state.values() for v in _entries(c)):
            return set()
        plain = jax.tree.map(
            lambda x: x.value if isinstance(x, Annotated) else x,
            (params, state),
            is_leaf=lambda x: isinstance(x, Annotated),
        )
        mutable = nn.DenyList(self._collections.immutable({**plain[0], **plain[1]}, True))
        _, mutated = self._apply({**plain[0], **plain[1]}, rng, arguments, True, mutable)
        after = clean(mutated)
        structure: Callable[[Any], Any] = jax.tree.structure
        return {
            name
            for name, collection in plain[1].items()
            if name in after and structure(collection) != structure(after[name])
        }

    def _call(
        self, params: Any, state: Any, rng: jax.Array, arguments: Arguments, training: bool
    ) -> Outcome:
        # What `sow` adds to in every call starts anew in every call.
        kept = {k: v for k, v in (state or {}).items() if k not in self._grown}
        variables = {**(params or {}), **kept}
        outputs, mutated = self._apply_in_mode(variables, rng, arguments, training)
        mutated = flax.core.unfreeze(nn.meta.unbox(mutated))
        new_state = state and {k: mutated.get(k, v) if k in kept else v for k, v in state.items()}
        sown = {
            "/".join((collection, *path)): value
            for collection in mutated.keys() - kept.keys()
            for path, value in flax.traverse_util.flatten_dict(mutated[collection]).items()
        }
        captured = {}
        if self._capture:
            captured = self._captured(mutated.get("intermediates", {}), variables, rng, arguments)
        return Outcome(outputs, new_state, sown, captured)

    def _captured(
        self, intermediates: Any, variables: Any, rng: jax.Array, arguments: Arguments
    ) -> dict[str, Any]:
        """What was asked for among the intermediate results of a call."""
        try:
            return self._capture.take(intermediates, self._name)
        except PatternError as error:
            mutable = nn.DenyList(variables)
            _, everything = self._apply(variables, rng, arguments, False, mutable, capture=True)
            raise self._capture.explain(everything.get("intermediates", {}), error) from None

    def _apply_in_mode(
        self, variables: Any, rng: jax.Array, arguments: Arguments, training: bool
    ) -> tuple[Any, Any]:
        """Applies the module as its author would in this mode."""
        immutable = self._collections.immutable(variables, training)
        wanted = self._capture.wants if self._capture else False
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


def _entries(collection: Any) -> Iterable[Any]:
    """Values of a nested dict."""
    if not isinstance(collection, Mapping):
        return [collection]
    return [leaf for value in collection.values() for leaf in _entries(value)]
