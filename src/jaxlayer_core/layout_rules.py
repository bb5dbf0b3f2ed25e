"""Layouts for `keras.distribution` out of what a model says of itself, and of rules for paths."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from jaxlayer_core import layouts, patterns
from jaxlayer_core.building import BuildingLayer
from jaxlayer_core.errors import LayoutError, LayoutWarning
from jaxlayer_core.leaves import Pending
from jaxlayer_core.paths import flatten
from jaxlayer_core.variables import is_leaf

Rules = Mapping[str, str | None] | Iterable[tuple[str, str | None]]
PathRules = Mapping[str, Sequence[str | None]]


def layout_map_from(
    layer: BuildingLayer,
    mesh: Any,
    rules: Rules | None = None,
    *,
    paths: PathRules | None = None,
    inputs: Any = (),
) -> Any:
    """Makes the `LayoutMap` of a layer from its model's own annotations.

    Args:
        layer: a layer of jaxlayer. One that is not built is planned, and nothing is allocated,
            so that the map can be active when its variables are made.
        mesh: a `keras.distribution.DeviceMesh`.
        rules: from the names that the model gives to dimensions (`nn.with_partitioning`,
            `nn.with_logical_partitioning`) to axes of the mesh, or None for dimensions that are
            not split. Pairs are `flax.linen.logical_axis_rules`: the first rule for a name whose
            axis is free counts, and a variable uses an axis once. A name without a rule
            is the axis of the mesh that is called so, or none. A dimension with several names
            at once is not split: a layout of Keras cannot say it.
        paths: from regular expressions, searched in the paths inside the layer, to one mesh axis,
            or None, per dimension; the first that matches. It goes before annotations.
        inputs: what an unbuilt layer will be called with: an array, a `jax.ShapeDtypeStruct`, a
            `keras.Input`, or a tuple of these.

    Returns:
        A `keras.distribution.LayoutMap` with an entry for each variable that a rule or an
        annotation is for. Rules for other layers can be added to it. The paths of an unbuilt
        layer are matched in whatever model it is part of.

    Raises:
        BuildError: the layer is not built and `inputs` are missing.
        LayoutError: an axis is unknown, or a variable cannot be split so.
        PatternError: a key of `paths` is no regular expression.

    Warns:
        LayoutWarning: a rule is for no variable.

    Example:
        >>> import flax.linen as nn, jax, keras
        >>> from jaxlayer_core import as_layer, layout_map_from
        >>> split = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        >>> layer = as_layer(nn.Dense(8, kernel_init=split), name="head")
        >>> mesh = keras.distribution.DeviceMesh((1, 1), ("data", "model"), ["cpu:0"])
        >>> x = jax.ShapeDtypeStruct((2, 4), "float32")
        >>> layout_map = layout_map_from(layer, mesh, {"mlp": "model"}, inputs=x)
        >>> layout_map["head/params/kernel"].axes
        (None, 'model')
    """
    pairs = list(rules.items() if isinstance(rules, Mapping) else rules or ())
    chosen = dict(paths or {})
    sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
    _check_rules(pairs, chosen, sizes)
    found = keras.distribution.LayoutMap(mesh)
    # A model that constrains shardings needs the mesh to be planned.
    with keras.distribution.ModelParallel(layout_map=found).scope():
        leaves = _leaves(layer, inputs)
    for name, pending in leaves.items():
        pattern = next((p for p in chosen if patterns.matches(p, name)), None)
        if pattern is not None:
            axes: Sequence[str | None] = chosen[pattern]
        elif pending.axes is not None:
            axes = to_mesh_axes(pending.axes, pairs, mesh.axis_names)
        else:
            continue
        layouts.check_axes(f"{layer.name}/{name}", pending.spec.shape, axes, sizes)
        full = (*axes, *[None] * (len(pending.spec.shape) - len(axes)))
        found[_key(layer, name)] = keras.distribution.TensorLayout(full, mesh)
    _warn_of_unused(layer, pairs, chosen, leaves)
    return found


def check_layout_map(layout_map: Any, model: keras.Model | keras.layers.Layer) -> None:
    """Warns of rules in a `LayoutMap` that are for no variable of a model.

    Keras says nothing of them. A layer of jaxlayer warns by itself when it is built, but only
    of rules that begin with its own path, which can be for no other layer.

    Args:
        layout_map: a `keras.distribution.LayoutMap`.
        model: a model, or a layer of any kind, that is built.

    Warns:
        LayoutWarning: a key matches no variable; near misses are named.

    Example:
        >>> import keras, warnings
        >>> from jaxlayer_core import check_layout_map
        >>> mesh = keras.distribution.DeviceMesh((1,), ("model",), ["cpu:0"])
        >>> layout_map = keras.distribution.LayoutMap(mesh)
        >>> layout_map["head/kernl"] = (None, "model")
        >>> dense = keras.layers.Dense(2, name="head")
        >>> dense.build((None, 3))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     check_layout_map(layout_map, dense)
        >>> print(str(caught[0].message).splitlines()[1])
          'head/kernl' matches no variable. Near it are: head/kernel, head/bias.
    """
    layouts.warn_of_unused(layout_map, [v.path for v in model.variables], model.name)


def to_mesh_axes(
    names: Sequence[str | None], rules: Sequence[tuple[str, str | None]], mesh_axes: Sequence[str]
) -> tuple[str | None, ...]:
    """The axes that the dimensions of a variable are split over.

    As `flax.linen.logical_to_mesh_axes`, but a name without a rule may be an axis itself.

    Args:
        names: the model's names for the dimensions.
        rules: from names to axes, in the order of their importance.
        mesh_axes: the axes of the mesh.
    """
    found: dict[int, str | None] = {}
    itself = [(name, name) for name in mesh_axes if name not in dict(rules)]
    for name, axis in (*rules, *itself):
        place = next((i for i, n in enumerate(names) if n == name and i not in found), None)
        if place is not None and (axis is None or axis not in found.values()):
            found[place] = axis
    return tuple(found.get(i) for i in range(len(names)))


def _leaves(layer: BuildingLayer, inputs: Any) -> dict[str, Pending]:
    """The variables of a layer, by their paths inside it."""
    planned = layer.plan(inputs if isinstance(inputs, tuple) else (inputs,), {})
    found = {}
    for scope, tree in zip(layer.scopes, planned, strict=True):
        for path, leaf in flatten(tree, is_leaf=is_leaf)[0]:
            if isinstance(leaf, Pending):
                found["/".join((*scope, *path))] = leaf
    return found


def _key(layer: BuildingLayer, name: str) -> str:
    if layer.built:
        return f"{layer.path}/{name}"
    return f"(?:.*/)?{re.escape(f'{layer.name}/{name}')}"


def _check_rules(
    pairs: Sequence[tuple[str, str | None]], chosen: PathRules, mesh: dict[str, int]
) -> None:
    for name, axis in pairs:
        if not (axis is None or isinstance(axis, str)):
            raise LayoutError(
                f"The rule for {name!r} is {axis!r}: Keras splits a dimension over one axis of the "
                "mesh. Give its name, or None."
            )
        if axis is not None and axis not in mesh:
            raise LayoutError(
                f"The rule for {name!r} names {axis!r}, which is no axis of the mesh. Its axes "
                f"are: {', '.join(map(repr, mesh))}."
            )
    for pattern, axes in chosen.items():
        patterns.check(pattern, "layout_map_from(paths=...)", functions=False)
        if isinstance(axes, str):
            raise LayoutError(
                f"The rule for {pattern!r} is {axes!r}; give one axis, or None, for each "
                f"dimension: ({axes!r},)."
            )


def _warn_of_unused(
    layer: BuildingLayer,
    pairs: Sequence[tuple[str, str | None]],
    chosen: PathRules,
    leaves: Mapping[str, Pending],
) -> None:
    known = sorted({n for leaf in leaves.values() for n in leaf.axes or () if isinstance(n, str)})
    unused = [
        f"{name!r} names no dimension of a variable. {patterns.near(name, known)}"
        for name in {name: None for name, axis in pairs if axis is not None}
        if name not in known
    ]
    names = [*leaves]
    unused += [
        f"{pattern!r} matches no path. {patterns.near(pattern, names)}"
        for pattern in chosen
        if not any(patterns.matches(pattern, name) for name in names)
    ]
    if unused:
        lines = "\n  ".join(unused)
        warnings.warn(
            f"Rules for the layout of {layer.name} that mean nothing:\n  {lines}",
            LayoutWarning,
            stacklevel=3,
        )
