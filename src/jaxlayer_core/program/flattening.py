"""Calls and initialisations as functions of flat arrays, for JAX to store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlayer_core import rng
from jaxlayer_core.calls import CallForm
from jaxlayer_core.errors import NotExpressibleError
from jaxlayer_core.initialization import init_function
from jaxlayer_core.paths import Path
from jaxlayer_core.program import exporting, signatures, trees
from jaxlayer_core.program.arrays import cast, is_castable
from jaxlayer_core.program.calls import Call
from jaxlayer_core.program.exporting import Rung, Stored
from jaxlayer_core.program.kinds import CallKind, Specs
from jaxlayer_core.program.method import method_name
from jaxlayer_core.program.trees import Node
from jaxlayer_core.pure import Annotated, Arguments, PureModule, PyTree
from jaxlayer_core.serialization import encode
from jaxlayer_core.signature import CallSignature
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.structure import KeyData, Static, is_array
from jaxlayer_core.variables import VariableTree


class _Recorded:
    """What calls and initialisations have in common.

    Args:
        form: the recorded call.
        signature: of what is called.
        training: the mode.
    """

    def __init__(self, form: CallForm, signature: CallSignature, training: bool) -> None:
        self._form = form
        self._training = training
        args, kwargs = form.structure.restore(_markers(form))
        arguments = Arguments(*signature.complete(args, kwargs, training))
        marked, self._arguments = trees.split(signatures.named(signature, arguments), numbers=False)
        self._order = [int(np.ravel(marker)[-1]) for marker in marked]
        self._results: Node | None = None

    def ordered(self, specs: Specs) -> list[ArraySpec]:
        """Specs of a recorded call in the order of the arguments' tree."""
        return [specs[i] for i in self._order]

    def ladder(self, kind: CallKind, wanted: Specs | None = None) -> list[Rung]:
        """What the inputs, in the order of the arguments' tree, may be.

        Args:
            kind: the recorded calls.
            wanted: specs of a call that has to be taken; None to be as general as all of them.
        """
        kinds = [k for k in self._form.structure.leaves if not isinstance(k, Static)]
        keys = [number for number, i in enumerate(self._order) if isinstance(kinds[i], KeyData)]
        seen = list(map(self.ordered, kind.seen))
        found: list[Rung] = []
        for specs in dict.fromkeys([kind.form.specs] if wanted is None else kind.openings(wanted)):
            batch = next((spec.shape[0] for spec in specs if spec.shape), None)
            found += exporting.rungs(self.ordered(specs), batch, keys, seen)
        return [rung for rung in found if wanted is None or rung.takes(self.ordered(wanted))]

    def _inputs(self, arrays: Sequence[Any]) -> list[Any]:
        """Arrays in the order of the arguments' tree, in the order of the recorded call."""
        return [array for _, array in sorted(zip(self._order, arrays, strict=True), key=_first)]

    def record(self, stored: Stored, draws: bool, reads: Sequence[bool]) -> Call:
        """The description of what was stored.

        Args:
            stored: the outcome, after this has been traced.
            draws: whether it takes a key.
            reads: which inputs it takes.
        """
        assert self._results is not None
        return Call(
            method=method_name(self._form.structure.method),
            training=self._training,
            arguments=self._arguments,
            inputs=stored.inputs,
            least=stored.least,
            draws=draws,
            reads=tuple(reads),
            results=self._results,
            blob=stored.blob.digest,
            platforms=stored.platforms,
            no_gradient=stored.no_gradient,
        )


def _first(pair: tuple[int, Any]) -> int:
    return pair[0]


def _markers(form: CallForm) -> list[Any]:
    """Arrays that say in their last element which input they stand for.

    They go through the signature in place of the inputs, to find where each ends up. Keys are
    wrapped and unwrapped on the way, which changes the object but not what is in it.
    """
    markers = []
    for number, spec in enumerate(form.specs):
        marker = np.zeros(tuple(dim or 1 for dim in spec.shape[-1:]) or (1,), "uint32")
        marker[-1] = number
        markers.append(marker)
    return markers


class FlatCall(_Recorded):
    """A call in one mode: params, state, key data and inputs, to all that it returns.

    Args:
        module: the model.
        form: the recorded call.
        training: the mode.
        params: the model's params.
        state: its state.
    """

    def __init__(
        self,
        module: PureModule,
        form: CallForm,
        training: bool,
        params: VariableTree,
        state: VariableTree,
    ) -> None:
        super().__init__(form, module.signature, training)
        self._module = module
        self._params, self._state = params, state

    def __call__(self, *arrays: Any) -> list[Any]:
        """Runs the model, and notes the structure of what it returns."""
        count = len(self._params.paths)
        key = count + len(self._state.paths)
        signature = self._module.signature
        args, kwargs = self._form.structure.restore(self._inputs(arrays[key + 1 :]))
        outcome = self._module.call(
            self._params.restore(arrays[:count]),
            self._state.restore(arrays[count:key]),
            rng.key_from_seed(arrays[key]),
            Arguments(*signature.complete(args, kwargs, self._training)),
            self._training,
        )
        everything = {
            "outputs": _expressible(outcome.outputs),
            "state": self._state.extract(outcome.state, signature.owner),
            "sown": dict(outcome.sown),
            "captured": dict(outcome.captured),
        }
        results, self._results = trees.split(everything, numbers=True)
        return [jnp.asarray(result) for result in results]


class FlatInit(_Recorded):
    """An initialisation: key data and inputs, to params and state.

    Args:
        module: the model; must have an `init`.
        form: the call that it is initialised for.
        dtypes: those of the variables by path; what is made is cast to these.

    Attributes:
        axes: the mesh axes that the model asks for, per array.
    """

    def __init__(self, module: PureModule, form: CallForm, dtypes: Mapping[Path, Any]) -> None:
        super().__init__(form, module.init_signature or module.signature, True)
        self._dtypes = dtypes
        self._init = init_function(module, form.structure)
        self.axes: list[tuple[str | None, ...] | None] = []

    def __call__(self, *arrays: Any) -> list[Any]:
        """Runs the initialisation, and notes the structure of what it returns."""
        key, *inputs = arrays
        variables = self._init(rng.key_from_seed(key), self._inputs(inputs)).unpack()
        boxed, treedef = jax.tree_util.tree_flatten(variables, is_leaf=_is_annotated)
        plain = [leaf.value if _is_annotated(leaf) else leaf for leaf in boxed]
        params, state = jax.tree_util.tree_unflatten(treedef, plain)
        tree = {"params": params, "state": state}
        results, self._results = trees.split(tree, numbers=True)
        leaves = zip(self._results.leaves, boxed, strict=True)
        self.axes = [
            leaf.axes if _is_annotated(leaf) else None
            for (_, node), leaf in leaves
            if node.kind != "static"
        ]
        return [
            _cast(jnp.asarray(result), self._dtypes.get(path))
            for path, result in zip(self._results.arrays, results, strict=True)
        ]


def _cast(array: jax.Array, dtype: Any) -> jax.Array:
    """An array in the dtype of the variable that it is for, if it can be."""
    is_for_it = dtype is not None and is_castable(array.dtype, dtype)
    return cast(array, dtype) if is_for_it else array


def _is_annotated(value: Any) -> bool:
    return isinstance(value, Annotated)


def _expressible(tree: PyTree) -> PyTree:
    """Outputs with None for what no data can express; such a layer drops what is no array."""

    def keep(leaf: Any) -> Any:
        if is_array(leaf):
            return leaf
        try:
            encode(leaf)
        except NotExpressibleError:
            return None
        return leaf

    return jax.tree.map(keep, tree)
