"""A Keras layer that makes the variables of its model for the first call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import jax
import keras

from jaxlayer_core import backends, calls, initialization, layouts, memory, rng, roles
from jaxlayer_core.calls import CallForm
from jaxlayer_core.eager import EagerCalls
from jaxlayer_core.errors import BuildError, ConfigError, JaxLayerError, PatternError
from jaxlayer_core.methods import Methods
from jaxlayer_core.paths import Path
from jaxlayer_core.pure import PureModule, PyTree, Variables
from jaxlayer_core.recorded_calls import RecordedCalls
from jaxlayer_core.remat import Rematerialization
from jaxlayer_core.roles import Role
from jaxlayer_core.runner import Runner
from jaxlayer_core.storing import StoringLayer
from jaxlayer_core.variables import VariableTree

_BUILDING: ContextVar[tuple[Any, CallForm | None]] = ContextVar("building", default=(None, None))
"""The layer whose first call is in progress, and that call.

Not an attribute of the layer: with NNX enabled, attributes cannot be set inside a trace."""

_NOTHING = VariableTree((), jax.tree.structure(None))
"""No variables given."""


class BuildingLayer(StoringLayer):
    """Builds a model. Abstract; see `PureLayer` for the arguments."""

    def __init__(
        self,
        modules: Callable[[str | None], PureModule],
        *,
        params: PyTree = None,
        state: PyTree = None,
        seed: int | None = None,
        unpack_inputs: bool = False,
        non_array_outputs: str = "error",
        state_policy: Mapping[str, Role | str] | None = None,
        remat: bool | str | Callable[..., Any] = False,
        save_program: bool = False,
        **kwargs: Any,
    ) -> None:
        backends.current()
        super().__init__(seed=seed, **kwargs)
        if non_array_outputs not in ("error", "drop"):
            raise JaxLayerError(
                f"non_array_outputs must be 'error' or 'drop', got {non_array_outputs!r}."
            )
        self._unpack_inputs = unpack_inputs
        self._non_array_outputs = non_array_outputs
        self._state_policy = dict(state_policy or {})
        self._remat = Rematerialization(remat)
        self._save_program = save_program
        self._recorded = RecordedCalls()
        self._methods = Methods(modules, self._state_policy)
        self._built_form: CallForm | None = None  # the call that the layer was built for
        # Counter 0 initialises, the draws follow; without an init they start at 0.
        self._init_key = None
        if self._methods[None].init is not None:
            with jax.core.eval_context():
                self._init_key = rng.key_from_seed(self.seed_generator.next())
        with keras.name_scope(self.name, caller=self):
            self._set_variables(params, state, owner=self.name, complete=self._init_key is None)

    def _set_variables(self, params: PyTree, state: PyTree, owner: str, complete: bool) -> None:
        """Makes variables of two trees, and what runs the model with them."""
        module = self._methods[None]
        self._create_variables(
            params,
            state,
            owner=owner,
            scopes=module.scopes,
            policy=module.policy,
            complete=complete,
        )
        self._runner = Runner(
            self._methods,
            self._params,
            self._state,
            drop=self._non_array_outputs == "drop",
            remat=self._remat,
        )
        self._eager_calls = EagerCalls()

    def build(self, input_shape: Any = None) -> None:
        """Creates the variables that were not given.

        Args:
            input_shape: shape, or nest of shapes, of a single positional input. When the
                layer is called it knows dtypes and other arguments too; only a direct
                `build(shape)` has to assume a floating input (or an integer one, if the
                model takes no other).
        """
        layer, form = _BUILDING.get()
        if layer is self and form is not None:
            forms = [form]
        elif self._init_key is not None or input_shape is not None:
            forms = calls.forms_of_shape(
                self.name, input_shape, self.compute_dtype, self._unpack_inputs
            )
        else:
            return
        failures: list[JaxLayerError] = []
        for form in forms:
            try:
                with memory.collection_paused():
                    self._build_for(form)
            except PatternError:
                raise
            except JaxLayerError as error:
                failures.append(error)
            else:
                return
        raise failures[0]

    def _build_for(self, form: CallForm) -> None:
        for variable in self.variables:  # the layer may be older than the distribution
            layouts.follow_distribution(variable)
        if self._init_key is not None:
            params, state = self._plan(form, (self._params, self._state))
            self._set_variables(params, state, owner=self._owner, complete=True)
        layouts.check_rules_of(self._owner, [*self._params.names, *self._state.names])
        if self._state_policy:
            self._check_state_policy(form)
        self._ensure_metrics(form)
        self._built_form = form.without_values()

    @property
    def scopes(self) -> tuple[Path, Path]:
        """Names before the paths of params and of state."""
        return self._methods[None].scopes

    @property
    def _owner(self) -> str:
        """What the paths of the variables begin with."""
        return self.path or self.name

    def plan(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: Sequence[VariableTree] = (_NOTHING, _NOTHING),
    ) -> Variables:
        """Params and state of the model's own init as `Pending` leaves; nothing is allocated.

        Args:
            args: what the layer is called with; without any, the call that it was built for.
            kwargs: likewise.
            given: variables that exist.

        Raises:
            BuildError: the layer is not built, and there are no arguments.
        """
        if args or kwargs:
            form = CallForm.read(args, kwargs, None, self._unpack_inputs)
        elif self._built_form is not None:
            form = self._built_form
        else:
            raise BuildError(
                f"The variables of {self.name} are not known before it is built. Give what it will "
                "be called with, such as jax.ShapeDtypeStruct((8, 16), 'float32'), or call it on "
                "keras.Input(...) before."
            )
        return self._plan(form, given)

    def _plan(self, form: CallForm, given: Sequence[VariableTree]) -> Variables:
        if self._init_key is None:
            return Variables(*(tree.slots for tree in given))
        with self._explained("initialise", form):
            module = self._methods.settle_init(form, self._init_key)
            return initialization.plan(module, form, self._init_key, given, self._owner)

    def _check_state_policy(self, form: CallForm) -> None:
        """Refuses entries of the user's that mean nothing."""
        with self._explained("find what is made beside the output of", form):
            made = self._runner.made_beside(form)
        state, params = ([*map("/".join, t.paths)] for t in (self._state, self._params))
        roles.check_used(self._state_policy, [*state, *made], params)

    def _ensure_metrics(self, form: CallForm) -> None:
        """Makes the metrics that a call reports."""
        structure = form.structure
        if not self._methods[structure.method].policy.uses(Role.METRIC):
            return
        if self._reports.is_new(structure if structure.is_cacheable else structure.method):
            with jax.core.eval_context(), self._explained("find the metrics of", form):
                names = self._runner.metric_names(form)
            self._reports.add(self, names)

    def _explained(self, doing: str, form: CallForm) -> AbstractContextManager[None]:
        owner = self._methods[form.structure.method].signature.owner
        return calls.explained(self.name, owner, doing, form)

    def _prepare(self, form: CallForm) -> None:
        """Makes what a call needs that the layer does not have yet."""
        self._ensure_built(form)
        self._ensure_metrics(form)

    def _ensure_built(self, form: CallForm) -> None:
        """Builds the layer for a call, of which Keras would tell it one shape only."""
        if self.built:
            return
        token = _BUILDING.set((self, form))
        try:
            # Outside of any trace: nothing of a trace goes into the variables, and with NNX
            # enabled a layer cannot be changed inside one.
            with jax.core.eval_context():
                self.build(None)
        finally:
            _BUILDING.reset(token)

    def get_build_config(self) -> dict[str, Any] | None:
        """The call that the layer was built for, with dtypes, to build it again on load."""
        return None if self._built_form is None else {"call": self._built_form.get_config()}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the layer for the call in `get_build_config()`.

        Raises:
            ConfigError: the config is broken, or names what may not be had.
        """
        if not isinstance(config, dict):
            raise ConfigError(
                f"The config that {self.name} is to be built by is {config!r:.80}, and no dict."
            )
        if "call" not in config:
            self.build(config.get("input_shape"))
            return
        self._ensure_built(CallForm.from_config(config["call"]))

    def get_config(self) -> dict[str, Any]:
        """Config of the layer's own options."""
        return {
            **super().get_config(),
            "unpack_inputs": self._unpack_inputs,
            "non_array_outputs": self._non_array_outputs,
            "state_policy": {p: Role(role).value for p, role in self._state_policy.items()} or None,
            "remat": self._remat.get_config(),
            "save_program": self._save_program,
        }
