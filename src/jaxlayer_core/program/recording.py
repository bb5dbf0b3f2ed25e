"""From a model and the calls that it has seen to a program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlayer_core import keras_bridge
from jaxlayer_core.calls import CallForm
from jaxlayer_core.errors import ProgramError
from jaxlayer_core.methods import Methods
from jaxlayer_core.paths import Path
from jaxlayer_core.program import exporting
from jaxlayer_core.program.answering import answer
from jaxlayer_core.program.blobs import Blob
from jaxlayer_core.program.calls import Call
from jaxlayer_core.program.flattening import FlatInit
from jaxlayer_core.program.initializing import Init
from jaxlayer_core.program.kinds import CallKind, kind_of
from jaxlayer_core.program.library import KEY_DATA, Library
from jaxlayer_core.program.method import Method, method_name
from jaxlayer_core.program.owned import Owned
from jaxlayer_core.program.program import Program
from jaxlayer_core.program.versions import Versions
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.variables import VariableTree


def export_program(
    methods: Methods,
    kinds: Sequence[CallKind],
    params: VariableTree,
    state: VariableTree,
    *,
    built: CallForm | None = None,
    compute_dtype: str | None = None,
    casts_inputs: bool = True,
) -> Program:
    """Makes the program of a model: the calls that it has seen, without its source.

    Each call is stored in training and in inference, for any batch size and on any platform if
    the model allows that. A call that was made and that this general one does not take, or has no
    gradient for, is stored besides. The values of the variables are no part of it.

    Args:
        methods: the model.
        kinds: the calls.
        params: its params.
        state: its state.
        built: the call that its variables were made for, without any cast; None for the first.
        compute_dtype: what Keras casts floating params to in a call; None if it does not.
        casts_inputs: whether it casts floating inputs to that, too.

    Returns:
        The program.

    Raises:
        ProgramError: there is no call, or one of them cannot be stored in any mode.
        MissingDependencyError: a package that storing needs is not installed.
    """
    owner = methods[None].signature.owner
    if not kinds:
        raise ProgramError(
            f"{owner} cannot be stored as a program, because no call of it is known. Call the "
            "layer on data or on keras.Input(...) before saving it."
        )
    exporting.require_serializer()
    exporter = _Exporter(methods, params, state, compute_dtype)
    for kind in kinds:
        is_cast = compute_dtype is not None and casts_inputs
        exporter.add(kind.map(functools.partial(_cast, dtype=compute_dtype)) if is_cast else kind)
    form = built or kinds[0].form
    return exporter.program(form, kind_of(kinds, form))


def _cast(spec: ArraySpec, dtype: str | None) -> ArraySpec:
    """An input as the model sees it: floating ones are cast."""
    is_cast = jnp.issubdtype(spec.dtype, np.floating)
    return dataclasses.replace(spec, dtype=jnp.dtype(dtype)) if is_cast else spec


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

    def add(self, kind: CallKind) -> None:
        """Stores calls in both modes.

        Raises:
            ProgramError: none of them can be stored in either.
        """
        method = kind.form.structure.method
        with self._casting():
            module = self._methods.settle_call(kind.form, self._params, self._state)
        self._used[method_name(method)] = method
        own = [spec for owned in self._owned for spec in owned.seen()]
        modes = [
            answer(module, kind, training, self._params, self._state, own)
            for training in (False, True)
        ]
        if not any(mode.held for mode in modes):
            raise modes[0].failures[0]
        for mode in modes:
            # One mode may be impossible for a call that is meant for the other.
            self._gaps += map(str, mode.failures if mode.held else mode.failures[:1])
            for stored, record in mode.held:
                if not any(known.is_same(record) for known in self._calls):
                    self._blobs[stored.blob.digest] = stored.blob
                    self._calls.append(record)

    def _init(self, form: CallForm, kind: CallKind) -> Init | None:
        """The initialisation, or None where there is none or it cannot be stored."""
        module = self._methods[form.structure.method]
        if module.init is None:
            return None
        try:
            call = FlatInit(module, form, self._dtypes())
            ladder = call.ladder(kind, form.specs)
            stored = exporting.store(
                call, [KEY_DATA], ladder, droppable=lambda index: True, gradient=False
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
        self._blobs[stored.blob.digest] = stored.blob
        return init

    def _dtypes(self) -> dict[Path, Any]:
        """Dtypes of the variables, by the paths of what an initialisation makes."""
        return {
            (part, *path): form.dtype
            for part, owned in zip(("params", "state"), self._owned, strict=True)
            for path, form in zip(owned.tree.arrays, owned.arrays, strict=True)
        }

    def program(self, form: CallForm, kind: CallKind) -> Program:
        """The program of all calls.

        Args:
            form: the call to initialise for.
            kind: calls of which it is one, but for dtypes; what varies in them is left open.
        """
        params, state = self._owned
        init = self._init(form, kind)
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
