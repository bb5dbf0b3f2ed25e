"""Properties of the variables: their paths, where they come from, where they are saved."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from jaxlayer_core import paths
from jaxlayer_core.patterns import exactly
from jaxlayer_core.testing.base import Properties
from jaxlayer_core.testing.cases import ConformanceCase
from jaxlayer_core.testing.comparing import assert_same, is_variable, require
from jaxlayer_core.testing.native import SEED
from jaxlayer_core.testing.subject import seed_of, variables_of
from jaxlayer_core.testing.trees import is_inexact


class OwningProperties(Properties):
    """The model's trees are the layer's variables."""

    def test_variable_paths(self, case: ConformanceCase) -> None:
        """Every variable has a path of its own: the layer's, the scope's, the leaf's."""
        subject = self.subject(case)
        layer = subject.built()
        found = [variable.path for variable in layer.variables]
        twice = sorted({path for path in found if found.count(path) > 1})
        require(not twice, f"{case}: several variables share the paths {twice}.")
        trees = zip(
            (layer.params, layer.state), subject.native.start, subject.pure().scopes, strict=True
        )
        for tree, native, scope in trees:
            variables = jax.tree.leaves(tree, is_leaf=is_variable)
            leaves = [path for path, _ in paths.flatten(native)[0]]
            require(
                len(variables) == len(leaves),
                f"{case}: native has the leaves {leaves}, the layer {len(variables)}.",
            )
            for variable, path in zip(variables, leaves, strict=True):
                if is_variable(variable):
                    expected = "/".join((layer.path, *scope, *path))
                    require(
                        variable.path == expected,
                        f"{case}: the variable of leaf {path} has the path {variable.path!r}, "
                        f"expected {expected!r}.",
                    )

    def test_given_variables(self, case: ConformanceCase) -> None:
        """Params and state that the user gives are used and copied; training leaves them alone."""
        subject = self.subject(case)
        params, state = jax.tree.map(_moved, subject.native.init((SEED + 1, 0)))
        kept = jax.tree.map(np.array, (params, state))
        layer = subject.layer(**self.given(params, state))
        expected = subject.native.run(params, state, (SEED, 1), False)
        outputs = subject.call(layer, False)
        assert_same(layer.params, kept[0], f"params of {case} that were given")
        assert_same(outputs, expected.outputs, f"output of {case} with the variables given")
        subject.call(layer, True)
        if layer.trainable_variables:
            subject.model(layer).train(1)
        deleted = [leaf for leaf in jax.tree.leaves((params, state)) if leaf.is_deleted()]
        require(not deleted, f"{case}: training deleted {len(deleted)} of the user's arrays.")
        assert_same((params, state), kept, f"the user's variables after training {case}")

    def test_saved_weights(self, case: ConformanceCase) -> None:
        """Three steps, saving, loading into a new layer and three more are six steps."""
        subject = self.subject(case)
        straight, loaded = subject.built(SEED), subject.built(SEED + 1)
        if not straight.trainable_variables:
            return
        first, second = (subject.model(layer) for layer in (straight, loaded))
        first.train(3)
        second(subject.arrays)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "kept.weights.h5")
            first.save_weights(file)
            second.load_weights(file)
        assert_same(variables_of(loaded), variables_of(straight), f"variables of {case} loaded")
        assert_same(seed_of(loaded), seed_of(straight), f"seed of {case} loaded")
        for model in (first, second):
            model.train(3)
        what = f"of {case} after 3 steps, saving, loading and 3 steps, compared with 6 steps"
        assert_same(variables_of(loaded), variables_of(straight), f"variables {what}")
        assert_same(seed_of(loaded), seed_of(straight), f"seed {what}")

    def test_regularizers(self, case: ConformanceCase) -> None:
        """`regularizers={path: ...}` adds to `layer.losses`, for each leaf of params its own."""
        subject = self.subject(case)
        (scope, _), (params, state) = subject.pure().scopes, subject.native.start
        regularizers: dict[str, Any] = {}
        expected = subject.native.run(params, state, (SEED, 1), True).loss
        for path, leaf in paths.flatten(params)[0]:
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                strength = 0.5 + len(regularizers)
                name = exactly("/".join((*scope, *path)))
                regularizers[name] = keras.regularizers.L2(strength)
                expected += strength * jnp.sum(jnp.square(leaf.astype(jnp.float32)))
        layer = subject.layer(regularizers=regularizers)
        subject.call(layer, True)
        # Keras sums in another order than we do.
        tolerance = {"float32": {"rtol": 1e-5, "atol": 1e-6}}
        got, wanted = np.float32(sum(layer.losses)), np.float32(expected)
        assert_same(got, wanted, f"losses of {case} with all params regularised", tolerance)


def _moved(leaf: jax.Array) -> jax.Array:
    """Other values than any init makes, of the same kind."""
    return leaf + jnp.asarray(0.25, leaf.dtype) if is_inexact(leaf) else leaf
