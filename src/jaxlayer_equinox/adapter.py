"""Equinox modules in canonical form."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax

from jaxlayer_core import (
    Adapter,
    Arguments,
    CallSignature,
    Outcome,
    PureModule,
    SignatureError,
    Variables,
)
from jaxlayer_core.signature import parse_training_arg
from jaxlayer_equinox import batching, models, trees
from jaxlayer_equinox.batching import BatchAxis
from jaxlayer_equinox.calling import Method
from jaxlayer_equinox.models import Model


class EquinoxAdapter(Adapter):
    """Adapts modules, classes of modules, and functions that make one.

    Params are the module's arrays by path, of which the inexact ones are trained; state is
    what its `eqx.nn.State` holds, by the path of the index.

    Args:
        batch_axis: see `EquinoxLayer`.
        axis_name: see `EquinoxLayer`.

    Example:
        >>> import equinox as eqx, jax
        >>> EquinoxAdapter().accepts(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
        True
    """

    framework = "equinox"

    def __init__(self, batch_axis: BatchAxis = 0, axis_name: Hashable = None) -> None:
        self._batch_axis = batch_axis
        self._axis_name = axis_name

    def accepts(self, obj: Any) -> bool:
        """Whether `obj` is a module or a class of modules; a function does not tell."""
        return isinstance(obj, eqx.Module) or models.is_class(obj)

    def purify(
        self,
        obj: Any,
        *,
        method: Any = None,
        training_arg: str | Iterable[str] | None = None,
    ) -> PureModule:
        """Makes the canonical form."""
        model = Model(obj)
        target = Method.of(model.name, model.module, model.is_stateful, method)
        is_left_alone = parse_training_arg(training_arg) == {}
        modes = [] if is_left_alone else trees.attributes(model.module, "inference")
        signature = CallSignature.read(model.name, target.data, training_arg)
        if modes and training_arg is None:
            # Equinox' own layers take `inference=None`, once called `deterministic`: then the
            # attribute counts.
            own = ("inference", "deterministic")
            signature = signature.without(
                [p.name for p in target.data if p.default is None and p.name in own]
            )
            signature = dataclasses.replace(signature, settled=True)
        axis_name = self._axis_name
        if axis_name is None and self._batch_axis is not None:
            axis_name = batching.axis_name_of(model.name, model.module)
        self._check_batch_axis(signature)

        def init(rng: jax.Array, arguments: Arguments) -> Variables:
            return Variables(*model.init(rng))

        def call(
            params: Any, state: Any, rng: jax.Array, arguments: Arguments, training: bool
        ) -> Outcome:
            module, _ = model.restore(params, state)
            # In training a module is as its author left it, with parts that only infer, unless all
            # of it only infers.
            if modes and (not training or all(modes)):
                module = eqx.nn.inference_mode(module, value=not training)

            def run(arguments: Arguments, key: jax.Array) -> tuple[Any, Any]:
                # A state can be written once, so each trace has its own.
                _, before = model.restore(params, state)
                outputs, after = target.run(module, arguments, before, key)
                return outputs, model.state_arrays(after)

            outputs, after = batching.mapped(
                run,
                arguments,
                rng,
                owner=model.name,
                parameters=target.data,
                batch_axis=self._batch_axis,
                axis_name=axis_name,
            )
            return Outcome(outputs, after)

        return PureModule(init, call, signature, has_modes=bool(modes or signature.flags))

    def _check_batch_axis(self, signature: CallSignature) -> None:
        if isinstance(self._batch_axis, Mapping):
            unknown = [name for name in self._batch_axis if not signature.takes(name)]
            if unknown:
                raise SignatureError(
                    f"batch_axis names {unknown}, which {signature.owner} does not take. Its "
                    f"arguments are: {', '.join(p.name for p in signature.parameters) or 'none'}."
                )
