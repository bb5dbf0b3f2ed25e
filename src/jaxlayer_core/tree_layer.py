"""A Keras layer whose variables are two pytrees: freezing, rules and precision by path."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import keras

from jaxlayer_core import errors, options, summary
from jaxlayer_core.errors import BuildError, StructureError
from jaxlayer_core.freezing import Freezing
from jaxlayer_core.leaf_rules import LeafRules
from jaxlayer_core.leaves import to_variable
from jaxlayer_core.metrics import Reports
from jaxlayer_core.paths import Path
from jaxlayer_core.patterns import Pattern
from jaxlayer_core.pure import PyTree, Variables
from jaxlayer_core.roles import Policy
from jaxlayer_core.variables import VariableTree, check_fits


class TreeLayer(keras.layers.Layer):  # type: ignore[misc]  # keras has no types
    """Keeps params and state as Keras variables. Abstract; see `PureLayer` for the arguments."""

    def __init__(
        self,
        *,
        seed: int | None = None,
        copy_variables: bool = True,
        regularizers: Mapping[str, Any] | None = None,
        constraints: Mapping[str, Any] | None = None,
        keep_float32: str | Iterable[str] = (),
        dtype: Any = None,
        autocast: bool = True,
        has_policy: bool | None = None,
        has_own_dtype: bool | None = None,
        **kwargs: Any,
    ) -> None:
        # A config has a dtype policy always; whether it was chosen, and where, it says apart.
        if has_own_dtype is None:
            # A global mixed policy says how to compute, not that every weight is float32.
            has_own_dtype = dtype is not None
        if has_policy is None:
            # A policy that the user chose casts; Keras' default one must not touch the model.
            has_policy = dtype is not None or keras.config.dtype_policy().name != "float32"
        self._has_policy, self._has_own_dtype = has_policy, has_own_dtype
        self._rules = LeafRules(regularizers, constraints, keep_float32)
        self._freezing = Freezing()
        self._params = self._state = VariableTree((), None)
        super().__init__(dtype=dtype, autocast=autocast and self._has_policy, **kwargs)
        self._seed = seed
        self._autocast = autocast
        self._copy_variables = copy_variables
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._reports = Reports()
        self._is_complete = False  # whether all variables exist

    @property
    def params(self) -> PyTree:
        """The model's params: its own pytree, with Keras variables as leaves."""
        return self._params.tree

    @property
    def state(self) -> PyTree:
        """The model's state: its own pytree, with Keras variables as leaves."""
        return self._state.tree

    def variables_tree(self) -> Any:
        """The values of the variables as the model's own framework takes them.

        Returns:
            `(params, state)`, pytrees of arrays. They are copies: Keras donates the buffers
            of its variables when it trains on. `FlaxLayer` gives the dict of collections.

        Raises:
            BuildError: the layer is not built.

        Example:
            >>> import haiku as hk, jax.numpy as jnp
            >>> from jaxlayer import HaikuLayer
            >>> net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(2)(x)))
            >>> layer = HaikuLayer(net)
            >>> outputs = layer(jnp.ones((4, 3)))
            >>> params, _ = layer.variables_tree()
            >>> bool(jnp.array_equal(net.apply(params, jnp.ones((4, 3))), outputs))
            True
        """
        self._check_built("give")
        trees = (self._params, self._state)
        copies = ([jnp.array(v.value) for v in tree.variables] for tree in trees)
        return Variables(*(tree.restore(c) for tree, c in zip(trees, copies, strict=True)))

    def _check_built(self, doing: str) -> None:
        if not self._is_complete:
            raise BuildError(
                f"{self.name} has no variables to {doing} before it is built. Call it on data or "
                "on keras.Input(...), or use layer.build(input_shape)."
            )

    def _create_variables(
        self,
        params: PyTree,
        state: PyTree,
        *,
        owner: str,
        scopes: tuple[Path, Path],
        policy: Policy,
        complete: bool,
    ) -> None:
        """Makes variables of two trees, in which some leaves may be variables already.

        Args:
            params: the model's params.
            state: its state.
            owner: path of the layer, whose name scope is open.
            scopes: names before the paths of params and of state.
            policy: roles of the leaves.
            complete: whether no more leaves will come.
        """
        check_fits(owner, params, state)
        self._params, self._state = self._trees(
            params, state, owner=owner, scopes=scopes, policy=policy
        )
        if twice := sorted({*self._params.names} & {*self._state.names}):
            raise StructureError(
                f"A leaf of the params and a leaf of the state of {self.name} are both called "
                f"{twice[0]!r}. Their adapter gives them no scopes that keep them apart: "
                "PureModule(scopes=...)."
            )
        # Attributes that are lists of variables are what Keras tracks.
        self._param_variables = self._params.weights
        self._state_variables = self._state.weights
        self._is_complete = complete
        if complete:
            self._rules.apply(dict(zip(self._params.names, self._params.variables, strict=True)))
            self._freezing.settle([*self._params.names, *self._state.names])
        self.trainable = self._trainable

    def _trees(
        self,
        params: PyTree,
        state: PyTree,
        *,
        owner: str,
        scopes: tuple[Path, Path],
        policy: Policy,
        make: Callable[..., Any] = to_variable,
    ) -> tuple[VariableTree, VariableTree]:
        """The two trees with what `make` makes of each leaf, as `_create_variables` takes them."""
        widened = self._has_own_dtype or self.variable_dtype != "float32"
        create = functools.partial(
            VariableTree.create, owner=owner, policy=policy, copy=self._copy_variables, make=make
        )
        return (
            create(
                params,
                scope=scopes[0],
                trainable=True,
                dtype=self.variable_dtype if self._has_policy and widened else None,
                full_precision=self._rules.keeps_float32,
            ),
            create(state, scope=scopes[1], trainable=False),
        )

    # Freezing.

    def freeze(self, pattern: Pattern | Iterable[Pattern]) -> None:
        """Freezes leaves: params are not trained any more, state is not written.

        A frozen part still runs in the mode of the layer; `layer.trainable = False` freezes
        everything and runs it in inference mode. As with `trainable`, a model that was
        compiled before has to be compiled again.

        Args:
            pattern: a regular expression to search in the leaves' paths, which begin with
                `params/` (Haiku, plain functions: also `state/`) or the collection's name
                (Flax); or a function from a path to a bool; or several.

        Raises:
            PatternError: a pattern matches nothing; the message lists near misses. Before
                the layer is built, that shows when it is.

        Example:
            >>> import flax.linen as nn, jax.numpy as jnp
            >>> from jaxlayer_core import as_layer
            >>> layer = as_layer(nn.Dense(2))
            >>> layer.freeze("kernel")
            >>> _ = layer(jnp.ones((4, 3)))
            >>> [variable.name for variable in layer.trainable_variables]
            ['bias']
        """
        self._freezing.add(pattern, frozen=True)
        self.trainable = self._trainable

    def unfreeze(self, pattern: Pattern | Iterable[Pattern]) -> None:
        """Undoes `freeze` for leaves; takes what that takes."""
        self._freezing.add(pattern, frozen=False)
        self.trainable = self._trainable

    @property
    def trainable(self) -> bool:
        """Whether the layer is trained; if not, it runs in inference mode and writes nothing."""
        return bool(self._trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        for name, variable in zip(self._params.names, self._params.variables, strict=True):
            frozen = not value or name in self._freezing.frozen
            variable.trainable = not frozen and self._params.is_trainable(variable)

    # Precision.

    @property
    def dtype_policy(self) -> Any:
        """The dtype policy. Setting one makes it count, as `dtype=` does for the compute dtype."""
        return keras.layers.Layer.dtype_policy.fget(self)

    @dtype_policy.setter
    def dtype_policy(self, value: Any) -> None:
        keras.layers.Layer.dtype_policy.fset(self, value)
        self._has_policy = True
        self.autocast = self._autocast

    # Metrics.

    @property
    def metrics(self) -> list[Any]:
        """All metrics, with those that the model reports."""
        return [*super().metrics, *self._reports.metrics]

    @property
    def variables(self) -> list[keras.Variable]:
        """All variables, with constants and the sums of metrics, which are no `weights`.

        These are what Keras' trainer hands to each step.
        """
        return [*super().variables, *self._state.constants, *self._reports.variables]

    # Showing.

    def summary(self, print_fn: Callable[[str], Any] | None = None) -> None:
        """Prints the model's own variables: paths, shapes, dtypes, sizes, what is trained.

        Args:
            print_fn: gets the table as text; None to print it to the terminal, in color.

        Raises:
            BuildError: the layer is not built.

        Example:
            >>> import flax.linen as nn
            >>> from jaxlayer_core import as_layer
            >>> layer = as_layer(nn.Dense(2))
            >>> layer.build((None, 3))
            >>> layer.summary(print_fn=lambda text: print("6 values" in text, "kernel" in text))
            False True
        """
        self._check_built("show")
        names = [*self._params.names, *self._state.names]
        variables = [*self._params.variables, *self._state.variables]
        title = f"{self.name} ({type(self).__name__})"
        named = list(zip(names, variables, strict=True))
        summary.show(title, named, self._freezing.frozen, print_fn)

    # Configuration.

    def get_config(self) -> dict[str, Any]:
        """Config of the layer's own options."""
        config: dict[str, Any] = super().get_config()
        return {
            **config,
            "has_policy": self._has_policy,
            "has_own_dtype": self._has_own_dtype,
            **self._rules.get_config(),
            "seed": self._seed,
            "autocast": self._autocast,
            "freezing": self._freezing.get_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TreeLayer:
        """Rebuilds the layer from `get_config()`.

        Raises:
            ConfigError: the config has values that the layer does not take.
        """
        with errors.in_config_of(cls.__name__):
            config = options.checked(cls, config)
            steps = config.pop("freezing", ())
            layer: TreeLayer = super().from_config(config)
            layer._freezing.replay(steps)
        return layer
