"""The first values of a model's variables: the user's where given, the model's own otherwise.

Shapes come from tracing; values from the operations of the model's own `init` that they
depend on, run when Keras asks for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxlayer_core import backends, layouts, paths, specs
from jaxlayer_core.calls import CallForm
from jaxlayer_core.errors import BuildError, StructureError
from jaxlayer_core.leaves import Pending
from jaxlayer_core.packed import Packed
from jaxlayer_core.paths import Path
from jaxlayer_core.pure import Annotated, Arguments, PureModule, PyTree, Variables
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.structure import CallStructure
from jaxlayer_core.variables import Slot, VariableTree, is_leaf

InitFunction = Callable[[Any, Sequence[Any]], Packed]


def init_function(
    module: PureModule, structure: CallStructure, extra: Mapping[str, Any] | None = None
) -> InitFunction:
    """The module's init as a function of a key and the call's arrays.

    Args:
        module: must have an `init`.
        structure: the call to initialise for.
        extra: further keywords for the model, tried while looking for hidden flags.
    """

    def init(key: Any, arrays: Sequence[Any]) -> Packed:
        assert module.init is not None
        args, kwargs = structure.restore(arrays)
        signature = module.init_signature or module.signature
        arguments = signature.complete(args, {**kwargs, **(extra or {})}, training=True)
        try:
            variables = module.init(key, Arguments(*arguments))
        except Exception:
            if layouts.active_mesh() is None:
                raise
            # A model that constrains shardings needs the mesh. Not from the start: under a mesh,
            # annotated params may be constrained, too, also to axes that only other meshes have.
            # What fails for another reason fails again, and says so.
            with layouts.under_mesh():
                variables = module.init(key, Arguments(*arguments))
        return Packed.of(variables)

    return init


def shapes(module: PureModule, form: CallForm, key: jax.Array) -> Packed:
    """Specs of the module's variables; dimensions may be unknown."""
    init = init_function(module, form.structure)
    inferred: Packed = specs.infer(
        lambda arrays: init(arrays[0], arrays[1:]), [ArraySpec.of(key), *form.specs]
    )
    return inferred


def plan(
    module: PureModule,
    form: CallForm,
    key: jax.Array,
    given: Sequence[VariableTree],
    owner: str,
) -> Variables:
    """Decides leaf by leaf where its first value comes from.

    Args:
        module: must have an `init`.
        form: the call to initialise for.
        key: the key of the initialisation.
        given: params and state that the user gave; their trees are None where not given.
        owner: path of the layer.

    Returns:
        Params and state; leaves are the `Slot`s of variables that exist, `Pending` for those
        to be computed, and static values.

    Raises:
        StructureError: something given does not fit what the module needs.
        BuildError: a shape is unknown.
    """
    init = init_function(module, form.structure)
    if form.has_unknown_dimensions:
        out = shapes(module, form, key)
        values = _Values(init, form, key, None)
    else:
        program = backends.current().InitProgram(
            init, key, [spec.filled(()) for spec in form.specs]
        )
        out = jax.tree.map(ArraySpec.of, program.out)
        values = _Values(init, form, key, program)
    numbered = iter(range(len(out.arrays)))
    needs = Packed(
        [_Needed(spec, next(numbered)) for spec in out.arrays], out.treedef, out.statics
    ).unpack()
    merged = Variables(
        *(_merge(module, tree.slots, need) for tree, need in zip(given, needs, strict=True))
    )
    model = module.signature.owner
    _check_shapes(model, merged, form)
    return Variables(
        *(
            _fill((owner, *scope), tree, values)
            for scope, tree in zip(module.scopes, merged, strict=True)
        )
    )


@dataclasses.dataclass(frozen=True)
class _Needed:
    """A leaf that init makes: its spec and its number among init's results."""

    spec: ArraySpec
    number: int


class _Values:
    """Init's results, computed together when the first is asked for."""

    def __init__(self, init: InitFunction, form: CallForm, key: jax.Array, program: Any) -> None:
        self._init = init
        self._form = form.concrete()
        self._key = key
        self._program = program
        self._wanted: dict[int, jax.sharding.Sharding | None] = {}
        self._results: dict[int, jax.Array] = {}

    def want(
        self, number: int, sharding: jax.sharding.Sharding | None
    ) -> Callable[[jax.sharding.Sharding | None], jax.Array]:
        """Asks for one result where it is to be; returns the function that gives it."""
        self._wanted[number] = sharding

        def result(sharding: jax.sharding.Sharding | None) -> jax.Array:
            if not self._results:
                self._evaluate()
            return self._results[number]

        return result

    def _evaluate(self) -> None:
        size = 1
        with jax.core.eval_context():
            if self._program is None:
                self._program, size = self._trace()
            self._results = self._program.evaluate(
                self._key, lambda index: self._form.value(index, size), self._wanted
            )

    def _trace(self) -> tuple[Any, int]:
        """Traces at the first size that the model accepts; the results do not depend on it."""
        failure: Exception | None = None
        for size in specs.SIZES:
            inputs = [s.filled([size] * s.shape.count(None)) for s in self._form.specs]
            try:
                return backends.current().InitProgram(self._init, self._key, inputs), size
            except Exception as error:
                failure = failure or error
        assert failure is not None
        raise failure


def _merge(module: PureModule, given: PyTree, needed: PyTree) -> PyTree:
    """The given tree, with what may be missing from it added."""
    if given is None:
        return needed
    if module.optional_groups and isinstance(given, Mapping) and isinstance(needed, Mapping):
        missing = {name: tree for name, tree in needed.items() if name not in given}
        present = {name: tree for name, tree in needed.items() if name in given}
        _check(module.signature.owner, given, present)
        return {**given, **missing}
    _check(module.signature.owner, given, needed)
    return given


def _check(owner: str, given: PyTree, needed: PyTree) -> None:
    """Compares what the user gave with what the module's init would make."""
    have = dict(paths.flatten(given, is_leaf=is_leaf)[0])
    problems = []
    for path, boxed in paths.flatten(needed, is_leaf=is_leaf)[0]:
        leaf = boxed.value if isinstance(boxed, Annotated) else boxed
        if not isinstance(leaf, _Needed):
            continue
        name = paths.show(path)
        spec = leaf.spec
        if path not in have:
            problems.append(f"`{name}` is missing (expected shape {spec.shape})")
            continue
        if not isinstance(have[path], Slot):
            kind = type(have[path]).__name__
            problems.append(f"`{name}` is {have[path]!r} of type {kind}, expected an array")
            continue
        shape, dtype = have[path].spec.shape, have[path].spec.dtype
        if len(shape) != len(spec.shape) or any(
            want not in (None, got) for got, want in zip(shape, spec.shape, strict=True)
        ):
            problems.append(f"`{name}` has shape {shape}, expected {spec.shape}")
        elif specs.kind(dtype) != specs.kind(spec.dtype):
            problems.append(f"`{name}` has dtype {dtype}, expected {spec.dtype}")
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise StructureError(
            f"The variables given for {owner} do not fit it:\n  {shown}{more}\n"
            "Give variables of the same model and configuration, or leave them out to have "
            "them initialised."
        )


def _check_shapes(owner: str, trees: Iterable[PyTree], form: CallForm) -> None:
    """Refuses variables whose shape nobody knows yet."""
    for tree in trees:
        for path, leaf in paths.flatten(tree, is_leaf=is_leaf)[0]:
            needed = leaf.value if isinstance(leaf, Annotated) else leaf
            if isinstance(needed, _Needed) and None in needed.spec.shape:
                unknown = [spec.shape for spec in form.specs if None in spec.shape]
                raise BuildError(
                    f"The shape of `{paths.show(path)}` of {owner} depends on a dimension that is "
                    f"not known: it would be {needed.spec.shape} for inputs of shape "
                    f"{', '.join(map(str, unknown))}. Give the size: keras.Input(shape=...) or "
                    "batch_shape=... without None there, or call the layer on data first."
                )


def _fill(scope: Path, tree: PyTree, values: _Values) -> PyTree:
    """Replaces what is needed by pending values, asked for where the variables will be."""

    def pending(path: Path, leaf: Any) -> Any:
        axes = None
        if isinstance(leaf, Annotated):
            leaf, axes = leaf.value, leaf.axes
        if not isinstance(leaf, _Needed):
            return leaf
        spec = leaf.spec.filled(())
        layout = layouts.layout_of("/".join((*scope, *path)), spec.shape, axes)
        return Pending(spec, values.want(leaf.number, layouts.sharding_of(layout)), axes)

    named, treedef = paths.flatten(tree, is_leaf=is_leaf)
    return jax.tree_util.tree_unflatten(treedef, [pending(p, leaf) for p, leaf in named])
