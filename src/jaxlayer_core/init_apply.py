"""Models that are a pair of plain functions: `(init, apply)`, or an object that has both.

Nothing but the names of their parameters tells what the functions take, so these are read once
(`init_apply_parameters`), and what they leave open is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxlayer_core.adapter import Adapter
from jaxlayer_core.errors import SignatureError, StructureError
from jaxlayer_core.init_apply_parameters import Apply, Init
from jaxlayer_core.pure import Arguments, Outcome, PureModule, PyTree, Variables
from jaxlayer_core.signature import CallSignature


class InitApplyAdapter(Adapter):
    """Adapts pairs `(init, apply)`, and objects with these two methods.

    `init` is one of

    - `init(rng, x, ...)`, with any of what the model is called with;
    - `init(rng, input_shape)`, which returns `(output_shape, params)`, as in
      `jax.example_libraries.stax`.

    `apply` is `apply(params, x, ...)`. It gets the key of the call if it takes one, by a name of
    `init_apply_parameters.KEYS`; where `init` takes a shape, as `rng=` in its `**kwargs`, too.
    With the parameter `state` after `params`, `init` returns `(params, state)` and `apply`
    `(outputs, state)`.

    The registry asks this adapter last.

    Example:
        >>> from jax.example_libraries import stax
        >>> InitApplyAdapter().accepts(stax.serial(stax.Dense(8), stax.Relu))
        True
    """

    framework = "init_apply"

    def accepts(self, obj: Any) -> bool:
        """Whether `obj` is such a pair, or an object (no class) with both methods."""
        if type(obj) is tuple:
            return len(obj) == 2 and all(map(_is_function, obj))
        if isinstance(obj, type):
            return False
        return callable(getattr(obj, "init", None)) and callable(getattr(obj, "apply", None))

    def purify(
        self,
        obj: Any,
        *,
        method: Any = None,
        training_arg: str | Iterable[str] | None = None,
    ) -> PureModule:
        """Makes the canonical form."""
        init, apply = obj if type(obj) is tuple else (obj.init, obj.apply)
        owner = _name(obj, apply)
        if method is not None:
            raise SignatureError(
                f"{owner} has no method {method!r}: init and apply are all there is."
            )
        init_form = Init.of(owner, init)
        apply_form = Apply.of(owner, apply, takes_shape=init_form.takes_shape)
        signature = CallSignature.read(owner, apply_form.data, training_arg)

        def make(rng: jax.Array, arguments: Arguments) -> Variables:
            made = init_form.run(rng, arguments, apply_form.data)
            if apply_form.state is None:
                return Variables(made, {})
            return Variables(*_pair(made, f"`init` of {owner}", "(params, state)"))

        def call(
            params: PyTree, state: PyTree, rng: jax.Array, arguments: Arguments, training: bool
        ) -> Outcome:
            result = apply_form.run(params, state, rng, arguments)
            if apply_form.state is None:
                return Outcome(result, state)
            return Outcome(*_pair(result, f"`apply` of {owner}", "(outputs, state)"))

        return PureModule(make, call, signature, has_modes=bool(signature.flags))


def _pair(result: Any, owner: str, names: str) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise StructureError(
            f"{owner} must return the tuple {names}, because `apply` has a `state` argument, but "
            f"it returned a {type(result).__name__}."
        )
    return result


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _name(obj: Any, apply: Callable[..., Any]) -> str:
    if type(obj) is not tuple:
        return f"the {type(obj).__name__} model"
    return f"the pair (init, {getattr(apply, '__name__', type(apply).__name__)})"
