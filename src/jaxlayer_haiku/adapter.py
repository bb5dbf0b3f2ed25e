"""Haiku models in canonical form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax

from jaxlayer_core import Adapter, Arguments, CallSignature, Outcome, PureModule, Variables
from jaxlayer_core.capturing import Capture
from jaxlayer_haiku import transforms
from jaxlayer_haiku.capturing import recording


class HaikuAdapter(Adapter):
    """Adapts transforms of every kind, module classes and partials of them, and functions.

    Example:
        >>> import haiku as hk
        >>> HaikuAdapter().accepts(hk.transform(lambda x: hk.Linear(2)(x)))
        True
    """

    framework = "haiku"

    def accepts(self, obj: Any) -> bool:
        """Whether `obj` is a transform or a module class; a function does not tell."""
        known = (*transforms.TRANSFORMED, *transforms.MULTI)
        return isinstance(obj, known) or transforms.is_module_class(obj)

    def purify(
        self,
        obj: Any,
        *,
        method: Any = None,
        training_arg: str | Iterable[str] | None = None,
        capture: str | Iterable[str] = (),
    ) -> PureModule:
        """Makes the canonical form; a function that is not transformed yet is."""
        wanted = Capture(capture)
        model = transforms.to_stateful(obj, method)
        signature = CallSignature.read(model.name, model.parameters, training_arg)
        init_signature = None
        if model.init_parameters is not None:
            init_signature = CallSignature.read(model.name, model.init_parameters, training_arg)

        def init(rng: jax.Array, arguments: Arguments) -> Variables:
            params, state = model.init(rng, *arguments.args, **arguments.kwargs)
            return Variables(params, state)

        def call(
            params: Any, state: Any, rng: jax.Array, arguments: Arguments, training: bool
        ) -> Outcome:
            with recording(wanted, model.name) as captured:
                outputs, new_state = model.apply(
                    params, state, rng, *arguments.args, **arguments.kwargs
                )
            return Outcome(outputs, new_state, captured=captured)

        return PureModule(
            init,
            call,
            signature,
            has_modes=bool(signature.flags),
            init_signature=init_signature,
            captures=bool(wanted),
        )
