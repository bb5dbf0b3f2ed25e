"""From a model and the calls that it has seen to a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlayer_core import keras_bridge
from jaxlayer_core.calls import CallForm
from jaxlayer_core.errors import MissingDependencyError, NotExpressibleError, ProgramError
from jaxlayer_core.methods import Methods
from jaxlayer_core.program import exporting
from jaxlayer_core.program.blobs import Blob
from jaxlayer_core.program.calls import Call
from jaxlayer_core.program.exporting import Stored
from jaxlayer_core.program.flattening import FlatCall, FlatInit
from jaxlayer_core.program.initializing import Init
from jaxlayer_core.program.library import KEY_DATA, Library
from jaxlayer_core.program.method import Method, method_name
from jaxlayer_core.program.owned import Owned
from jaxlayer_core.program.program import Program
from jaxlayer_core.program.versions import Versions
from jaxlayer_core.pure import PureModule
from jaxlayer_core.variables import VariableTree

WAY_OUT = (
    "Give the model a config instead: make it of importable functions and modules, give its own "
    "classes get_config() and from_config(), and load it with custom_objects={...}."
)


def export_program(
    methods: Methods,
    forms: Sequence[CallForm],
    params: VariableTree,
    state: VariableTree,
    *,
    compute_dtype: str | None = None,
    casts_inputs: bool = True,
) -> Program:
    """Makes the program of a model: the calls that it has seen, without its source.

    Each call is stored in training and in inference, for any batch size and on any platform if
    the model allows that. The values of its variables are no part of it.

    Args:
        methods: the model.
        forms: the calls. The first is the one that the model is initialised for.
        params: its params.
        state: its state.
        compute_dtype: what Keras casts floating params to in a call; None if it does not.
        casts_inputs: whether it casts floating inputs to that, too.

    Returns:
        The program.

    Raises:
        ProgramError: there is no call, or one of them cannot be stored in any mode.
        MissingDependencyError: a package that storing needs is not installed.
    """
    owner = methods[None].signature.owner
    if not forms:
        raise ProgramError(
            f"{owner} cannot be stored as a program, because no call of it is known. Call the "
            "layer on data or on keras.Input(...) before saving it."
        )
    exporting.require_serializer()
    if compute_dtype is not None and casts_inputs:
        forms = [_cast(form, compute_dtype) for form in forms]
    exporter = _Exporter(methods, params, state, compute_dtype)
    for form in forms:
        exporter.add(form)
    return exporter.program(forms[0])


def _cast(form: CallForm, dtype: str) -> CallForm:
    """A call as the model sees it, its floating inputs cast."""
    cast = tuple(
        dataclasses.replace(spec, dtype=jnp.dtype(dtype))
        if jnp.issubdtype(spec.dtype, np.floating)
        else spec
        for spec in form.specs
    )
    return dataclasses.replace(form, specs=cast)


class _Exporter:
    """Stores one call after the other."""

    def __init__(
        self,
        methods: Methods,
        params: VariableTree,
        state: VariableTree,
        compute_dtype: str | None,
    ) -> None:
        self._methods = methods
        self._params, self._state = params, state
        self._compute_dtype = compute_dtype
        self._owner = methods[None].signature.owner
        self._owned = Owned.of(*self._describe(params)), Owned.of(*self._describe(state))
        self._used: dict[str | None, Any] = {None: None}
        self._blobs: dict[str, Blob] = {}
        self._calls: list[Call] = []
        self._gaps: list[str] = []

    def _casting(self) -> AbstractContextManager[Any]:
        """In which Keras casts params as it does in a call."""
        dtype = self._compute_dtype
        return nullcontext() if dtype is None else keras_bridge.autocast_scope(dtype)

    def _describe(self, tree: VariableTree) -> tuple[Any, list[Any]]:
        """The pytree as it is kept, and the specs of its arrays in a call."""
        kept = tree.restore(tree.values())
        with self._casting():
            return kept, tree.specs()

    def add(self, form: CallForm) -> None:
        """Stores a call in both modes.

        Raises:
            ProgramError: it cannot be stored in either.
        """
        method = form.structure.method
        with self._casting():
            module = self._methods.settle_call(form, self._params, self._state)
        self._used[method_name(method)] = method
        failures = []
        for training in (False, True):
            try:
                self._add(module, form, training)
            except MissingDependencyError:
                raise
            except Exception as error:
                failures.append(_not_stored(self._owner, form, training, error))
        if len(failures) == 2:
            raise failures[0]
        # One mode may be impossible for a call that is meant for the other.
        self._gaps += map(str, failures)

    def _add(self, module: PureModule, form: CallForm, training: bool) -> None:
        call = FlatCall(module, form, training, self._params, self._state)
        own = [spec for owned in self._owned for spec in owned.seen()]
        key = len(own)
        stored = exporting.store(
            call,
            [*own, KEY_DATA],
            call.ladder(),
            droppable=lambda index: index == key,
            gradient=True,
        )
        record = call.record(stored, stored.kept[key], stored.kept[key + 1 :])
        if not any(known.is_same(record) for known in self._calls):
            self._keep(stored)
            self._calls.append(record)

    def _keep(self, stored: Stored) -> None:
        self._blobs[stored.blob.digest] = stored.blob

    def _init(self, form: CallForm) -> Init | None:
        """The initialisation, or None where there is none or it cannot be stored."""
        module = self._methods[form.structure.method]
        if module.init is None:
            return None
        try:
            call = FlatInit(module, form)
            stored = exporting.store(
                call, [KEY_DATA], call.ladder(), droppable=lambda index: True, gradient=False
            )
        except Exception as error:
            # A model can do without: its variables are zeros until weights are loaded.
            self._gaps.append(f"Its initialisation: {type(error).__name__}: {error}")
            return None
        record = call.record(stored, stored.kept[0], stored.kept[1:])
        init = Init(record, tuple(call.axes))
        if not init.makes(*self._owned):
            self._gaps.append("Its initialisation makes other variables than it has.")
            return None
        self._keep(stored)
        return init

    def program(self, form: CallForm) -> Program:
        """The program of all calls.

        Args:
            form: the call to initialise for.
        """
        params, state = self._owned
        init = self._init(form)
        return Program(
            owner=self._owner,
            methods={name: Method.of(self._methods[m]) for name, m in self._used.items()},
            params=params,
            state=state,
            calls=tuple(self._calls),
            init=init,
            library=Library(self._owner, self._blobs, Versions.current()),
            gaps=tuple(self._gaps),
        )


def _not_stored(owner: str, form: CallForm, training: bool, error: Exception) -> ProgramError:
    shown = ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in form.specs)
    name = method_name(form.structure.method) or "__call__"
    mode = "training" if training else "inference"
    what = "contains something that no data can express" * isinstance(error, NotExpressibleError)
    return ProgramError(
        f"The call {name}({shown}) of {owner} in {mode} cannot be stored as a program"
        f"{what and ': it '}{what}: {type(error).__name__}: {error}\n{WAY_OUT}",
        cause=error,
    )
