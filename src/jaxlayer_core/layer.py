"""The abstract Keras layer over a `PureModule`: build, call, shapes, its own variables."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import keras

from jaxlayer_core import backends, hidden_flags, initialization, keras_bridge, rng, specs
from jaxlayer_core.eager import EagerCalls
from jaxlayer_core.errors import BuildError, JaxLayerError, ModuleError, StructureError
from jaxlayer_core.initialization import CallForm
from jaxlayer_core.pure import Arguments, PureModule, PyTree
from jaxlayer_core.specs import ArraySpec
from jaxlayer_core.structure import CallStructure, Packed, is_array, only_arrays
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
        self._unpack_inputs = unpack_inputs
        self._non_array_outputs = non_array_outputs
        self._copy_variables = copy_variables
        self._make_module = modules
        self._modules = _Cache(modules)
        self._programs = _Cache(lambda key: backends.current().Program(self._function(*key)))
        self._eager_calls = EagerCalls()
        self._searched: set[str | None] = set()  # methods searched for hidden flags
        self._next_form: CallForm | None = None
        self._form: CallForm | None = None
        self.seed_generator = keras.random.SeedGenerator(seed)
        # Counter 0 initialises, the draws follow; without an init they start at 0.
        self._init_key = None
        if self._module().init is not None:
            with jax.ensure_compile_time_eval():
                self._init_key = rng.key_from_seed(self.seed_generator.next())
        with keras.name_scope(self.name, caller=self):
            self._create_variables(params, state, owner=self.name)

    def _module(self, method: str | None = None) -> PureModule:
        module: PureModule = self._modules(method)
        return module

    # Variables.

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
        param_scope, state_scope = self._module().scopes
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
        self._eager_calls = EagerCalls()
        if not self.trainable:
            self.trainable = False  # passes it on to the new variables

    # Building.

    def build(self, input_shape: Any = None) -> None:
        """Creates the variables that were not given.

        Args:
            input_shape: shape, or nest of shapes, of a single positional input. The layer
                records dtypes and other arguments when it is called; only a direct
                `build(shape)` has to assume a floating input (or an integer one, if the
                model takes no other).
        """
        if self._module(None).init is None:
            self._form = self._next_form
            return
        forms = [self._next_form] if self._next_form else self._forms_from_shape(input_shape)
        failures: list[JaxLayerError] = []
        for form in forms:
            try:
                self._build_for(form)
            except JaxLayerError as error:
                failures.append(error)
            else:
                self._form = dataclasses.replace(form, values=())
                return
        raise failures[0]

    def _build_for(self, form: CallForm) -> None:
        assert self._init_key is not None
        method = form.structure.method
        with self._own_errors("initialise", form):
            module = hidden_flags.find_in_init(self._module(method), form, self._init_key)
            self._modules.put(method, module)
            given = (self._params, self._state)
            params, state = initialization.plan(module, form, self._init_key, given)
        self._create_variables(params, state, owner=self.path or self.name)

    def _forms_from_shape(self, input_shape: Any) -> list[CallForm]:
        """The calls that a bare shape may stand for: floating data, or integers."""
        if input_shape is None:
            raise BuildError(
                f"{self.name} cannot be built before the shape of its input is known. Call it "
                "on data or on keras.Input(...), or use layer.build(input_shape)."
            )
        forms = []
        for dtype in (self.compute_dtype, "int32"):
            nest = keras.tree.map_shape_structure(
                lambda shape, dtype=dtype: keras.KerasTensor(shape, dtype), input_shape
            )
            forms.append(self._read_call((nest,), {}, None))
        return forms

    def get_build_config(self) -> dict[str, Any] | None:
        """The call that the layer was built for, with dtypes, to build it again on load."""
        if self._form is None:
            return None
        arrays = [
            keras.KerasTensor(spec.shape, keras.backend.standardize_dtype(spec.dtype))
            for spec in self._form.specs
        ]
        args, kwargs = self._form.structure.restore(arrays)
        call = {"args": args, "kwargs": kwargs, "method": self._form.structure.method}
        return {"call": keras.saving.serialize_keras_object(call)}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the layer for the call in `get_build_config()`."""
        if "call" not in config:
            super().build_from_config(config)
            return
        call = keras.saving.deserialize_keras_object(config["call"])
        arrays, structure = CallStructure.of(tuple(call["args"]), call["kwargs"], call["method"])
        self._next_form = CallForm(structure, tuple(map(ArraySpec.of, arrays)))
        self.build(None)
        self._next_form = None

    # Calling.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with the model's own arguments.

        Args:
            *args: the model's positional arguments.
            **kwargs: the model's keyword arguments, and `training` and `method`, unless
                the model takes arguments of these names itself.

        Returns:
            What the model returns.
        """
        if isinstance(kwargs.get("structure"), CallStructure):  # replayed by a Keras graph
            return self._call_keras(*args, **kwargs)
        training = kwargs.pop("training", None)
        if len(args) == 1 and not kwargs:
            ready = self._eager_calls.find(args[0], training, self.trainable)
            if ready is not None:
                return ready(args[0])
        if not kwargs and len(args) == 1 and is_array(args[0]) and not rng.is_key(args[0]):
            self._next_form = None if self.built else self._read_call(args, {}, None)
            return self._call_keras(args[0], training=training)
        method = kwargs.pop("method", None)
        keras_bridge.adopt((args, kwargs))
        form = self._read_call(args, kwargs, method)
        if training is None:
            signature = self._module(method).signature
            training = signature.stated_mode(*form.structure.restore(form.values))
        self._next_form = None if self.built else form
        if form.structure.is_plain:
            return self._call_keras(args[0], training=training)
        return self._call_keras(list(form.values), structure=form.structure, training=training)

    def _call_keras(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self._next_form = None

    def _read_call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], method: str | None
    ) -> CallForm:
        """Splits a call into its arrays and the rest."""
        if self._unpack_inputs and len(args) == 1 and not kwargs and not is_array(args[0]):
            if isinstance(args[0], dict):
                args, kwargs = (), args[0]
            elif isinstance(args[0], tuple | list):
                args = tuple(args[0])
        arrays, structure = CallStructure.of(args, kwargs, method)
        return CallForm(structure, tuple(map(ArraySpec.of, arrays)), tuple(arrays))

    def call(
        self, inputs: Any, structure: CallStructure | None = None, training: bool | None = None
    ) -> Any:
        """Runs the model; `layer(...)` is the way to call this.

        Args:
            inputs: the single positional argument, or the arrays of `structure`.
            structure: what else the call has, or None.
            training: the mode; None for the layer's default.
        """
        form = self._to_form(inputs, structure)
        if any(None in spec.shape for spec in form.specs):
            return self._call_symbolically(form, training)
        self._find_hidden_flags(form)
        mode, writes = self._mode(form.structure.method, training)
        program = self._programs((form.structure, mode, writes))
        arrays = [keras.ops.convert_to_tensor(value) for value in form.values]
        params, state = self._params.values(), self._state.values()
        with self._own_errors("call", form):
            draws = program.draws(params, state, rng.unused_key(), arrays)
            key = rng.key_from_seed(self.seed_generator.next()) if draws else rng.unused_key()
            outputs, new_state, losses = program(params, state, key, arrays)
        written = self._written(writes)
        for variable, value in zip(written, new_state, strict=True):
            self._assign(variable, value)
        if structure is None and not (draws or written or losses or self._is_special()):
            owned = (self._params.variables, self._state.variables)
            self._eager_calls.remember(inputs, training, self.trainable, program, *owned)
        for loss in losses.values():
            self.add_loss(loss)
        result = outputs.unpack()
        keras_bridge.adopt(result)
        return result

    def _is_special(self) -> bool:
        """Whether Keras adds something to each call of this layer."""
        return bool(
            self._has_policy or self._unpack_inputs or self.activity_regularizer or self._remat_mode
        )

    def _call_symbolically(self, form: CallForm, training: bool | None) -> Any:
        """The call while somebody infers shapes with symbolic dimensions.

        The ladder may succeed where the model itself rejects symbols. An unknown dimension
        of the result then gets the first symbol of the inputs, which Keras turns back into
        None.
        """
        packed = self._output_specs(form, training)
        dims = [dim for value in form.values for dim in value.shape]
        symbol = next(dim for dim in dims if not isinstance(dim, int))
        result = packed.replace(
            lambda spec: jax.numpy.zeros(
                tuple(symbol if d is None else d for d in spec.shape), spec.dtype
            )
        )
        keras_bridge.adopt(result)
        return result

    def _find_hidden_flags(self, form: CallForm) -> None:
        """Settles the train flags that the signature of a call does not show."""
        method = form.structure.method
        if self._module(method).signature.hides_flags and method not in self._searched:
            self._searched.add(method)
            module = hidden_flags.find_in_call(
                self._module(method), form, self._params, self._state
            )
            self._modules.put(method, module)

    def _to_form(self, inputs: Any, structure: CallStructure | None) -> CallForm:
        if structure is None:
            return self._read_call((inputs,), {}, None)
        return CallForm(structure, tuple(map(ArraySpec.of, inputs)), tuple(inputs))

    def _mode(self, method: str | None, training: bool | None) -> tuple[bool, str]:
        """The model's mode, and which state it writes: `"all"`, `"some"` or `"none"`."""
        if not self.trainable:
            return False, "none"
        if training is None:
            training = not self._module(method).has_modes
        return bool(training), "all" if training else "some"

    def _writes(self, writes: str) -> list[bool]:
        """Per state variable, whether a call writes it."""
        some = self._module().writes_in_inference
        return [writes == "all" or (writes == "some" and some(path)) for path in self._state.paths]

    def _written(self, writes: str) -> list[keras.Variable]:
        chosen = self._writes(writes)
        return [v for v, write in zip(self._state.variables, chosen, strict=True) if write]

    def _assign(self, variable: keras.Variable, value: jax.Array) -> None:
        if isinstance(value, jax.core.Tracer) and not keras_bridge.in_stateless_scope():
            raise JaxLayerError(
                f"{self.name} has to write its state `{variable.path}` inside a JAX "
                "transformation, where a Keras variable cannot be assigned. Use "
                "layer.stateless_call(...), which returns the new state, or call the layer "
                "with training=False."
            )
        variable.assign(value)

    def _function(self, structure: CallStructure, training: bool, writes: str) -> Any:
        """The call as a function of arrays, for one structure and mode."""
        module = self._module(structure.method)
        owner = module.signature.owner
        drop = self._non_array_outputs == "drop"

        def function(
            params: Sequence[Any], state: Sequence[Any], key: jax.Array, inputs: Sequence[Any]
        ) -> tuple[Packed, list[Any], dict[str, Any]]:
            arguments = structure.restore(inputs)
            outcome = module.call(
                self._params.restore(params),
                self._state.restore(state),
                key,
                Arguments(*module.signature.complete(*arguments, training)),
                training,
            )
            new_state = self._state.extract(outcome.state, owner)
            kept = zip(new_state, self._writes(writes), strict=True)
            outputs = Packed.of(only_arrays(outcome.outputs, owner, drop))
            return outputs, [value for value, keep in kept if keep], outcome.losses

        return function

    # Shapes.

    def compute_output_spec(
        self, inputs: Any, structure: CallStructure | None = None, training: bool | None = None
    ) -> Any:
        """Shapes and dtypes of the outputs, as `KerasTensor`s."""
        form = self._to_form(inputs, structure)
        packed = self._output_specs(form, training)
        result = packed.replace(
            lambda spec: keras.KerasTensor(spec.shape, keras.backend.standardize_dtype(spec.dtype))
        )
        keras_bridge.adopt(result)
        return result

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Shapes of the outputs for a single positional input of the given shape."""
        forms = [self._form] if self._form is not None else self._forms_from_shape(input_shape)
        dtypes = iter(spec.dtype for spec in forms[0].specs)
        nest = keras.tree.map_shape_structure(
            lambda shape: keras.KerasTensor(shape, keras.backend.standardize_dtype(next(dtypes))),
            input_shape,
        )
        form = self._read_call((nest,), {}, None)
        return self._output_specs(form, None).replace(lambda spec: spec.shape)

    def _output_specs(self, form: CallForm, training: bool | None) -> Packed:
        self._find_hidden_flags(form)
        mode, writes = self._mode(form.structure.method, training)
        function = self._function(form.structure, mode, writes)
        params, state = self._params.specs(), self._state.specs()
        first, last = len(params), len(params) + len(state)

        def outputs(arrays: list[Any]) -> Packed:
            key, *inputs = arrays[last:]
            return function(arrays[:first], arrays[first:last], key, inputs)[0]

        with self._own_errors("infer the output of", form):
            packed: Packed = specs.infer(
                outputs, [*params, *state, ArraySpec.of(rng.unused_key()), *form.specs]
            )
        return packed

    # Saving.

    def get_config(self) -> dict[str, Any]:
        """Config of the layer's own options."""
        config: dict[str, Any] = super().get_config()
        if not self._has_policy:
            config["dtype"] = None  # Keras' default, which must not come back as a choice
        return {
            **config,
            "seed": self._seed,
            "unpack_inputs": self._unpack_inputs,
            "non_array_outputs": self._non_array_outputs,
        }

    def save_own_variables(self, store: Any) -> None:
        """Stores each variable under its own path."""
        for path, variable in self._named_variables().items():
            store[path] = variable

    def load_own_variables(self, store: Any) -> None:
        """Loads each variable by its own path.

        Raises:
            StructureError: the file has other paths or shapes. Nothing is loaded then.
        """
        variables = self._named_variables()
        stored = set(store.keys())
        if stored != set(variables):
            missing, unknown = sorted(set(variables) - stored), sorted(stored - set(variables))
            raise StructureError(
                f"The file does not hold the variables of the layer {self.name!r}. "
                f"Missing from the file: {missing[:10] or 'none'}; in the file but not in the "
                f"layer: {unknown[:10] or 'none'}. Load it into the model that saved it."
            )
        for path, variable in variables.items():
            if tuple(store[path].shape) != tuple(variable.shape):
                raise StructureError(
                    f"The file's `{path}` for the layer {self.name!r} has shape "
                    f"{tuple(store[path].shape)}, expected {tuple(variable.shape)}."
                )
        for path, variable in variables.items():
            variable.assign(store[path])

    def _named_variables(self) -> dict[str, keras.Variable]:
        param_scope, state_scope = self._module().scopes
        return {
            ".".join((*scope, *path)): variable
            for scope, tree in ((param_scope, self._params), (state_scope, self._state))
            for path, variable in zip(tree.paths, tree.variables, strict=True)
        }

    # Errors.

    @contextlib.contextmanager
    def _own_errors(self, doing: str, form: CallForm) -> Iterator[None]:
        """Turns what the framework raises into an error that says which layer and inputs."""
        try:
            yield
        except JaxLayerError:
            raise
        except Exception as error:
            owner = self._module(form.structure.method).signature.owner
            shown = ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in form.specs)
            kind = BuildError if doing != "call" else ModuleError
            raise kind(
                f"{owner}, wrapped by the layer {self.name!r}, failed to {doing} its model "
                f"on inputs {shown or '(none)'}: {type(error).__name__}: {error}",
                cause=error,
            ) from error


class _Cache:
    """A dict that makes what is missing."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make
        self._made: dict[Any, Any] = {}

    def __call__(self, key: Any) -> Any:
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def put(self, key: Any, value: Any) -> None:
        self._made[key] = value
