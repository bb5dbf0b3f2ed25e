"""A Keras layer that stores its variables under their own paths."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from typing import Any

import keras

from jaxlayer_core import checkpoints, keras_bridge, weights
from jaxlayer_core.checkpoints import Format, Loaded
from jaxlayer_core.errors import BuildError
from jaxlayer_core.pure import PyTree
from jaxlayer_core.tree_layer import TreeLayer
from jaxlayer_core.weight_sources import SEED


class StoringLayer(TreeLayer):
    """Saves and loads what a `TreeLayer` keeps. Abstract; see `PureLayer` for the arguments."""

    def save_own_variables(self, store: Any) -> None:
        """Stores each variable under its own path, and the seed's state.

        Args:
            store: Keras' store of the layer, or a dict.

        Raises:
            CheckpointError: other processes have parts of a variable.
        """
        weights.save(self._stored(), store)

    def load_own_variables(self, store: Any) -> None:
        """Loads each variable by its own path, and the seed's state, so that draws go on.

        Args:
            store: Keras' store of the layer, or what `save_own_variables` put into a dict.

        Raises:
            StructureError: the store has other leaves, shapes or kinds of dtypes, or is
                damaged. The layer is then as before. Under `load_weights(skip_mismatch=True)`,
                leaves that do not fit are skipped instead, with a UserWarning that names them.
        """
        if not store.keys() and (earlier := keras_bridge.earlier_loading_error(self)):
            # Keras tries again where there is nothing, and would tell that as the reason.
            if earlier.is_kept:
                return
            raise earlier.error
        weights.load(
            self.name,
            self._stored(),
            store,
            skip_mismatch=keras_bridge.is_skipping_mismatches(),
        )

    def load_variables(
        self,
        source: str | os.PathLike[str] | PyTree,
        *,
        prefix: str = "",
        rename: Mapping[str, str] | None = None,
        strict: bool = True,
        format: str | Format | type[Format] | None = None,
    ) -> Loaded:
        r"""Loads variables that were saved by the model's own framework, or by `save_variables`.

        Leaves are found by their paths, such as `params/Dense_0/kernel`. A source may leave out
        the first part (a tree of params alone), or be the tuple `(params, state)`. A floating
        dtype of another width is converted. Each variable keeps its dtype and sharding.

        Args:
            source: a file or folder, of a format that its suffix tells: `.msgpack`,
                `.safetensors`, `.npz`, or an Orbax folder; or a pytree of arrays: what
                `init` or a training loop of the model's framework gives, such as a trained
                module of NNX or Equinox. A file is never unpickled.
            prefix: where in the source the variables stand, such as `"params"` in a train state.
                What is beside it is left out.
            rename: regular expression to replacement, applied to the source's paths behind the
                prefix as `re.sub` does, one after the other: `{r"layers_(\d+)": r"Dense_\1"}`.
            strict: whether everything must fit. Otherwise what fits is loaded; look at what is
                returned, which says what did not.
            format: name of the format, where the suffix does not tell; or a
                `jaxlayer_core.checkpoints.Format` of your own.

        Returns:
            What was loaded, what the source has not, what only the source has, and what is of
            another shape or kind of dtype.

        Raises:
            BuildError: the layer has no variables yet.
            StructureError: something does not fit; all of it is in the message.
            CheckpointError: the file is not there, damaged, or of no known format.
            MissingDependencyError: a package that the format needs is not installed.
            PatternError: `rename` is malformed.
            All of these leave the layer as it was.

        Example:
            >>> import flax.linen as nn, jax, jax.numpy as jnp
            >>> from jaxlayer_core import as_layer
            >>> layer = as_layer(nn.Dense(2))
            >>> layer.build((None, 3))
            >>> trained = {"params": {"w": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "step": 7}
            >>> layer.load_variables(trained, prefix="params", rename={"^w$": "kernel"}).loaded
            {'params/bias': 'params/bias', 'params/kernel': 'params/w'}
        """
        if not self._is_complete:
            raise BuildError(
                f"{self.name} has no variables to load into before it is built. Call it on data or "
                "on keras.Input(...), or use layer.build(input_shape); or give the values when the "
                "layer is made, as its params or variables."
            )
        return checkpoints.load(
            self.name,
            (self._params, self._state),
            source if isinstance(source, str | os.PathLike) else self._named_tree(source),
            prefix=prefix,
            rename=rename,
            strict=strict,
            format=format,
            passed_over=self._passed_over(),
        )

    def _named_tree(self, tree: PyTree) -> PyTree:
        """What stands for the model in its framework, as a tree with the layer's own paths."""
        return tree

    def _passed_over(self) -> Collection[str]:
        """Paths that the framework's own trees have, and that are no variables of the layer."""
        return ()

    def save_variables(
        self,
        path: str | os.PathLike[str],
        format: str | Format | type[Format] | None = None,
        *,
        wait: bool = True,
    ) -> Future[None] | None:
        """Saves the variables as the model's own framework takes them.

        msgpack and Orbax keep the model's own tree: what the framework's functions restore is
        what `module.apply` takes, for models with params and state apart a dict of both. The
        other formats keep paths. PRNG keys are saved as their key data.

        What is at `path` is replaced whole or not at all, whatever happens meanwhile.

        Args:
            path: the file or folder; its suffix tells the format, see `load_variables`.
            format: name of the format, where the suffix does not tell.
            wait: False to write in the background while training goes on. The values are copied
                first. Not for Orbax in several processes, which have to meet.

        Returns:
            None; with `wait=False` a future. `future.result()` waits, and raises what went wrong.

        Raises:
            BuildError: the layer has no variables yet.
            CheckpointError: there is no such format, it cannot hold a leaf, what is at `path`
                is no such checkpoint, or several processes cannot save so: Orbax they write
                together, other formats hold what each has whole.
            MissingDependencyError: a package that the format needs is not installed.

        Example:
            >>> import flax.linen as nn, numpy as np, pathlib, tempfile
            >>> from jaxlayer_core import as_layer
            >>> layer = as_layer(nn.Dense(2))
            >>> layer.build((None, 3))
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "dense.npz"
            >>> layer.save_variables(path)
            >>> sorted(np.load(path))
            ['params/bias', 'params/kernel']
        """
        self._check_built("save")
        return checkpoints.save(self._params, self._state, path, format=format, wait=wait)

    def _stored(self) -> dict[str, keras.Variable]:
        trees = (self._params, self._state)
        named = {n: v for tree in trees for n, v in zip(tree.names, tree.variables, strict=True)}
        return {**named, SEED: self.seed_generator.state}
