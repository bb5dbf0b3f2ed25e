"""The abstract Keras layer over a `PureModule`: build, call, shapes, its own variables."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import keras

from jaxlayer_core import backends, calls, initialization, keras_bridge, rng, weights
from jaxlayer_core.calls import CallForm
from jaxlayer_core.eager import EagerCalls
from jaxlayer_core.errors import JaxLayerError
from jaxlayer_core.methods import Methods
from jaxlayer_core.pure import PureModule, PyTree
from jaxlayer_core.runner import Runner, Writes
from jaxlayer_core.structure import CallStructure, Packed, is_array, is_plain
from jaxlayer_core.variables import VariableTree


class PureLayer(keras.layers.Layer):  # type: ignore[misc]  # keras has no types
    """A Keras layer that runs a `PureModule`. Abstract: use `JaxLayer` or a `ModuleLayer`.

    Args:
        modules: gives the module for one of the model's methods; None is the layer's own.
        params: initial params, or None.
        state: initial state, or None.
        seed: integer seed for the initial weights and all draws; None for a random one.
        unpack_inputs: whether a single tuple, list or dict input is unpacked into the
            model's positional or keyword arguments, as needed inside `keras.Sequential`.
        non_array_outputs: `"error"` or `"drop"`: what to do with results that are not arrays.
        copy_variables: whether given arrays are copied. Keras donates the buffers of its
            variables in training, so without a copy the caller's own arrays are deleted.
        dtype: dtype policy. Without one, and with Keras' global policy at its default,
            every weight and input keeps the dtype it has.
        autocast: whether floating inputs are cast to the policy's compute dtype.
        **kwargs: `name`, `trainable` and what else `keras.layers.Layer` takes.
    """

    def __init__(
        self,
        modules: Callable[[str | None], PureModule],
        *,
        params: PyTree = None,
        state: PyTree = None,
        seed: int | None = None,
        unpack_inputs: bool = False,
        non_array_outputs: str = "error",
        copy_variables: bool = True,
        dtype: Any = None,
        autocast: bool = True,
        **kwargs: Any,
    ) -> None:
        backends.current()
        # A policy that the user chose casts; Keras' default one must not touch the model.
        self._has_policy = dtype is not None or keras.config.dtype_policy().name != "float32"
        super().__init__(dtype=dtype, autocast=autocast and self._has_policy, **kwargs)
        if non_array_outputs not in ("error", "drop"):
            raise JaxLayerError(
                f"non_array_outputs must be 'error' or 'drop', got {non_array_outputs!r}."
            )
        self._seed = seed
        self._autocast = autocast
        self._unpack_inputs = unpack_inputs
        self._non_array_outputs = non_array_outputs
        self._copy_variables = copy_variables
        self._methods = Methods(modules)
        self._next_form: CallForm | None = None  # the call in progress, while not built
        self._built_form: CallForm | None = None  # the call that the layer was built for
        self.seed_generator = keras.random.SeedGenerator(seed)
        # Counter 0 initialises, the draws follow; without an init they start at 0.
        self._init_key = None
        if self._methods[None].init is not None:
            with jax.ensure_compile_time_eval():
                self._init_key = rng.key_from_seed(self.seed_generator.next())
        with keras.name_scope(self.name, caller=self):
            self._create_variables(params, state, owner=self.name)

    @property
    def params(self) -> PyTree:
        """The model's params: its own pytree, with Keras variables as leaves."""
        return self._params.tree

    @property
    def state(self) -> PyTree:
        """The model's state: its own pytree, with Keras variables as leaves."""
        return self._state.tree

    def _create_variables(self, params: PyTree, state: PyTree, owner: str) -> None:
        """Makes variables of two trees, in which some leaves may be variables already."""
        param_scope, state_scope = self._methods[None].scopes
        self._params = VariableTree.create(
            params,
            owner=owner,
            scope=param_scope,
            trainable=True,
            dtype=self.variable_dtype if self._has_policy else None,
            copy=self._copy_variables,
        )
        self._state = VariableTree.create(
            state, owner=owner, scope=state_scope, trainable=False, copy=self._copy_variables
        )
        # Attributes that are lists of variables are what Keras tracks.
        self._param_variables = self._params.variables
        self._state_variables = self._state.variables
        drop = self._non_array_outputs == "drop"
        self._runner = Runner(self._methods, self._params, self._state, drop)
        self._eager_calls = EagerCalls()
        if not self.trainable:
            for variable in self._param_variables:
                variable.trainable = False

    # Building.

    def build(self, input_shape: Any = None) -> None:
        """Creates the variables that were not given.

        Args:
            input_shape: shape, or nest of shapes, of a single positional input. When the
                layer is called it knows dtypes and other arguments too; only a direct
                `build(shape)` has to assume a floating input (or an integer one, if the
                model takes no other).
        """
        if self._init_key is None:
            self._built_form = self._next_form and self._next_form.without_values()
            return
        if self._next_form is not None:
            forms = [self._next_form]
        else:
            forms = calls.forms_of_shape(
                self.name, input_shape, self.compute_dtype, self._unpack_inputs
            )
        failures: list[JaxLayerError] = []
        for form in forms:
            try:
                self._initialise(form, self._init_key)
            except JaxLayerError as error:
                failures.append(error)
            else:
                self._built_form = form.without_values()
                return
        raise failures[0]

    def _initialise(self, form: CallForm, key: jax.Array) -> None:
        owner = self._methods[form.structure.method].signature.owner
        with calls.explained(self.name, owner, "initialise", form):
            module = self._methods.settle_init(form, key)
            given = (self._params, self._state)
            params, state = initialization.plan(module, form, key, given)
        self._create_variables(params, state, owner=self.path or self.name)

    def get_build_config(self) -> dict[str, Any] | None:
        """The call that the layer was built for, with dtypes, to build it again on load."""
        return None if self._built_form is None else {"call": self._built_form.get_config()}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the layer for the call in `get_build_config()`."""
        if "call" not in config:
            self.build(config.get("input_shape"))
            return
        with self._building_for(CallForm.from_config(config["call"])):
            self.build(None)

    # Calling.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with the model's own arguments.

        Args:
            *args: the model's positional arguments.
            **kwargs: the model's keyword arguments; also `training`, the mode, and `method`,
                the name of the model's method to call instead of the layer's own.

        Returns:
            What the model returns.
        """
        structure = kwargs.get("structure")
        if isinstance(structure, CallStructure):  # replayed by a Keras graph
            with self._building_for(CallForm.of(structure, args[0])):
                return super().__call__(*args, **kwargs)
        training = kwargs.pop("training", None)
        if len(args) == 1 and not kwargs and is_array(args[0]) and not self._is_special():
            ready = self._eager_calls.find(args[0], training, self.trainable)
            if ready is not None:
                return ready(args[0])
        method = self._pop_method(kwargs)
        form = CallForm.read(args, kwargs, method, self._unpack_inputs)
        if training is None:
            signature = self._methods[method].signature
            training = signature.stated_mode(*form.structure.restore(form.values))
        with self._building_for(form):
            if method is None and self._is_plain(args, kwargs, form, training):
                return super().__call__(args[0], training=training)
            arrays, structure = list(form.values), form.structure
            packed = super().__call__(arrays, structure=structure, training=training)
            return _adopted(packed.unpack())

    def _is_plain(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], form: CallForm, training: bool | None
    ) -> bool:
        """Whether Keras can handle a call as one of its own layers'.

        Otherwise Keras gets the arrays in a list and the rest as `structure`. A functional
        model replays a call as it was recorded, so what the call returns matters, too.
        """
        if kwargs or len(args) != 1 or self._unpack_inputs:
            return False
        if not (is_plain(args[0]) and form.structure.is_arrays_only):
            return False
        if not any(isinstance(value, keras.KerasTensor) for value in form.values):
            return True
        if not self.built:
            self.build(None)
        return is_plain(self._output_specs(form, training).unpack())

    def _pop_method(self, kwargs: dict[str, Any]) -> str | None:
        """The method that a call chooses, unless `method` is an argument of the model."""
        takes = self._methods[None].signature.takes("method")
        return None if takes else kwargs.pop("method", None)

    @contextlib.contextmanager
    def _building_for(self, form: CallForm) -> Iterator[None]:
        """Lets `build` know the call in progress, of which Keras tells it one shape only."""
        self._next_form = None if self.built else form
        try:
            yield
        finally:
            self._next_form = None

    def call(
        self,
        inputs: Any = None,
        *args: Any,
        structure: CallStructure | None = None,
        training: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the model; `layer(...)` and `layer.stateless_call(...)` are the ways here.

        Args:
            inputs: the model's first argument, or the arrays of `structure`.
            *args: its other positional arguments.
            structure: a call that has been read already, or None.
            training: the mode; None for the layer's default.
            **kwargs: the model's keyword arguments, and `method`.
        """
        form = self._form(inputs, args, kwargs, structure)
        try:
            outputs = self._run(form, training)
        except JaxLayerError:
            # Where Keras infers the shapes of a model around this layer, with symbols that
            # the model rejects, the ladder may succeed.
            if not (form.has_unknown_dimensions and keras_bridge.in_symbolic_scope()):
                raise
            outputs = self._stand_in(form, training)
        return _adopted(outputs if structure is not None else outputs.unpack())

    def _run(self, form: CallForm, training: bool | None) -> Packed:
        """Runs the model, and writes what it draws, updates and loses."""
        method = form.structure.method
        owner = self._methods[method].signature.owner
        arrays = [keras.ops.convert_to_tensor(value) for value in form.values]
        params, state = self._params.values(), self._state.values()
        with calls.explained(self.name, owner, "call", form):
            self._methods.settle_call(form, self._params, self._state)
            mode, writes = self._mode(method, training)
            program = self._runner.program(form.structure, mode, writes)
            draws = program.draws(params, state, rng.unused_key(), arrays)
            key = rng.key_from_seed(self.seed_generator.next()) if draws else rng.unused_key()
            outputs, new_state, losses = program(params, state, key, arrays)
        written = self._runner.written(method, writes)
        for variable, value in zip(written, new_state, strict=True):
            self._assign(variable, value)
        for loss in losses.values():
            self.add_loss(loss)
        if form.structure.is_single and not (draws or written or losses or self._is_special()):
            owned = (self._params.variables, self._state.variables)
            self._eager_calls.remember(form.values[0], training, self.trainable, program, *owned)
        return outputs

    def _form(
        self,
        inputs: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        structure: CallStructure | None,
    ) -> CallForm:
        """The form of the arguments of `call`."""
        if structure is not None:
            return CallForm.of(structure, inputs)
        method = self._pop_method(kwargs)
        none_at_all = inputs is None and not args
        given = () if none_at_all else (inputs, *args)
        return CallForm.read(given, kwargs, method, self._unpack_inputs)

    def _mode(self, method: str | None, training: bool | None) -> tuple[bool, Writes]:
        """The model's mode, and which state a call in it writes."""
        if not self.trainable:
            return False, "none"
        if training is None:
            training = not self._methods[method].has_modes
        return bool(training), "all" if training else "inference"

    def _is_special(self) -> bool:
        """Whether Keras adds something to each call of this layer."""
        return bool(
            self._has_policy
            or self._unpack_inputs
            or self.activity_regularizer
            or self._remat_mode
            or type(self).call is not PureLayer.call
        )

    def _assign(self, variable: keras.Variable, value: jax.Array) -> None:
        if isinstance(value, jax.core.Tracer) and not keras_bridge.in_stateless_scope():
            raise JaxLayerError(
                f"{self.name} has to write its state `{variable.path}` inside a JAX "
                "transformation, where a Keras variable cannot be assigned. Use "
                "layer.stateless_call(...), which returns the new state, or call the layer "
                "with training=False."
            )
        variable.assign(value)

    # Shapes.

    def compute_output_spec(
        self,
        inputs: Any = None,
        *args: Any,
        structure: CallStructure | None = None,
        training: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Shapes and dtypes of the outputs of a call, as `KerasTensor`s."""
        packed = self._output_specs(self._form(inputs, args, kwargs, structure), training)
        tensors = packed.map(
            lambda spec: keras.KerasTensor(spec.shape, keras.backend.standardize_dtype(spec.dtype))
        )
        return _adopted(tensors if structure is not None else tensors.unpack())

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Shapes of the outputs for a single positional input of the given shape."""
        if not self.built:
            self.build(input_shape)
        dtypes = [spec.dtype for spec in self._built_form.specs] if self._built_form else []
        form = calls.form_of_shape(input_shape, dtypes, self._unpack_inputs, self.compute_dtype)
        if self._built_form and len(form.specs) == len(self._built_form.specs):
            form = dataclasses.replace(form, structure=self._built_form.structure)
        return self._output_specs(form, None).map(lambda spec: spec.shape).unpack()

    def _output_specs(self, form: CallForm, training: bool | None) -> Packed:
        owner = self._methods[form.structure.method].signature.owner
        with calls.explained(self.name, owner, "infer the output of", form):
            self._methods.settle_call(form, self._params, self._state)
            mode, _ = self._mode(form.structure.method, training)
            return self._runner.output_specs(form, mode)

    def _stand_in(self, form: CallForm, training: bool | None) -> Packed:
        """Outputs of the right shape, for a caller that only infers shapes.

        An unknown dimension gets the first symbol of the inputs; Keras turns it into None.
        """
        dims = [dim for value in form.values for dim in value.shape]
        symbol = next(dim for dim in dims if not isinstance(dim, int))
        return self._output_specs(form, training).map(
            lambda spec: jax.numpy.zeros(
                tuple(symbol if dim is None else dim for dim in spec.shape), spec.dtype
            )
        )

    # Saving.

    def get_config(self) -> dict[str, Any]:
        """Config of the layer's own options."""
        config: dict[str, Any] = super().get_config()
        if not self._has_policy:
            config["dtype"] = None  # Keras' default, which must not come back as a choice
        return {
            **config,
            "seed": self._seed,
            "autocast": self._autocast,
            "unpack_inputs": self._unpack_inputs,
            "non_array_outputs": self._non_array_outputs,
        }

    def save_own_variables(self, store: Any) -> None:
        """Stores each variable under its own path."""
        weights.save(self._named_variables(), store)

    def load_own_variables(self, store: Any) -> None:
        """Loads each variable by its own path."""
        weights.load(self.name, self._named_variables(), store)

    def _named_variables(self) -> dict[str, keras.Variable]:
        param_scope, state_scope = self._methods[None].scopes
        return weights.named((param_scope, self._params), (state_scope, self._state))


def _adopted(outputs: Any) -> Any:
    """The outputs, their node types known to Keras."""
    keras_bridge.adopt(outputs)
    return outputs
