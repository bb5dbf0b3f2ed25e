"""The abstract Keras layer over a `PureModule`: calls, and shapes of their outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import keras

from jaxlayer_core import calls, keras_bridge, processes, rng
from jaxlayer_core.calls import CallForm
from jaxlayer_core.errors import JaxLayerError
from jaxlayer_core.leaving_layer import LeavingLayer
from jaxlayer_core.packed import Packed
from jaxlayer_core.runner import Writes
from jaxlayer_core.structure import CallStructure, is_array, is_plain

_NOTHING = object()
"""No first argument; None is one."""


class PureLayer(LeavingLayer):
    """A Keras layer that runs a `PureModule`. Abstract: use `JaxLayer` or a `ModuleLayer`.

    Args:
        modules: gives the module for one of the model's methods; None is the layer's own.
        params: initial params, or None.
        state: initial state, or None.
        seed: integer seed for the initial weights and all draws; None for a random one.
        unpack_inputs: whether a single tuple, list or dict input is unpacked into the
            model's positional or keyword arguments, as needed inside `keras.Sequential`.
        non_array_outputs: `"error"` or `"drop"`: what to do with results that are not arrays.
        state_policy: path pattern to role, before the model's own table: what is kept as
            `"state"` or `"cache"` (written in inference, too), is a `"loss"`, a `"metric"`
            or an `"output"`, is `"constant"` or `"drop"`ped; see `jaxlayer_core.roles`.
            A path has no `params/` or `state/` before it here: it is that of the leaf in
            the state. A metric is reported as `<name of the layer>/<path>`.
        remat: whether to compute intermediate values again in the backward pass instead of
            keeping them: True for all, or a policy, a function of `jax.checkpoint_policies`
            or its name, for what to keep. `keras.RematScope` sets it, too.
        copy_variables: whether given arrays, and the values of given Keras variables, are
            copied. Keras donates the buffers of its variables in training, so without a copy
            the caller's own arrays are deleted. Keras variables are then shared, and
            trained or frozen together.
        regularizers: path pattern to Keras regularizer, such as `{"kernel": "l2"}`; the first
            that matches a weight counts.
        constraints: path pattern to Keras constraint, likewise.
        keep_float32: path patterns of weights that are float32 under any dtype policy, and
            not cast for compute.
        dtype: dtype policy. Without one, and with Keras' global policy at its default,
            every weight and input keeps the dtype it has. A global mixed policy casts for
            compute, and a leaf that the model made in half precision stays so; `dtype=`
            gives every floating weight the policy's variable dtype.
        autocast: whether floating inputs are cast to the policy's compute dtype.
        save_program: whether a saved model has the program of any model, for processes that do
            not have its source. A model that no config can express is saved so in any case.
        **kwargs: `name`, `trainable` and what else `keras.layers.Layer` takes.

    Raises:
        PatternError: a pattern is malformed, or matches nothing when the layer is built.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with the model's own arguments.

        Args:
            *args: the model's positional arguments.
            **kwargs: the model's keyword arguments; also `training`, the mode, and `method`,
                the name of the model's method to call instead of the layer's own.

        Returns:
            What the model returns.
        """
        structure = kwargs.get("jaxlayer_call")
        if isinstance(structure, CallStructure):  # replayed by a Keras graph
            self._prepare(CallForm.of(structure, args[0]))
            return super().__call__(*args, **kwargs)
        training = kwargs.pop("training", None)
        if len(args) == 1 and not kwargs and is_array(args[0]) and not self._is_special():
            ready = self._eager_calls.find(args[0], training, self.trainable)
            if ready is not None:
                self._clear_losses()  # of the last call, as Keras' own `__call__` does
                return ready(args[0])
        method = self._pop_method(kwargs)
        form = CallForm.read(args, kwargs, method, self._unpack_inputs)
        self._prepare(form)
        training = self._stated_mode(form, training)
        if method is None and self._is_plain(args, kwargs, form, training):
            return super().__call__(args[0], training=training)
        arrays, structure = list(form.values), form.structure
        packed = super().__call__(arrays, jaxlayer_call=structure, training=training)
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
        return is_plain(self._output_specs(form, training).unpack())

    def _pop_method(self, kwargs: dict[str, Any]) -> str | None:
        """The method that a call chooses, unless `method` is an argument of the model."""
        takes = self._methods[None].signature.takes("method")
        return None if takes else kwargs.pop("method", None)

    def call(
        self,
        inputs: Any = _NOTHING,
        /,
        *args: Any,
        jaxlayer_call: CallStructure | None = None,
        training: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the model; `layer(...)` and `layer.stateless_call(...)` are the ways here.

        Args:
            inputs: the model's first argument, or the arrays of `jaxlayer_call`.
            *args: its other positional arguments.
            jaxlayer_call: a call that has been read already, or None.
            training: the mode; None for the layer's default.
            **kwargs: the model's keyword arguments, and `method`.
        """
        form = self._form(inputs, args, kwargs, jaxlayer_call)
        try:
            outputs = self._run(form, training)
        except JaxLayerError:
            # Where Keras infers the shapes of a model around this layer, with symbols that
            # the model rejects, the ladder may succeed.
            if not (form.has_unknown_dimensions and keras_bridge.in_symbolic_scope()):
                raise
            outputs = self._stand_in(form, training)
        return _adopted(outputs if jaxlayer_call is not None else outputs.unpack())

    def _run(self, form: CallForm, training: bool | None) -> Packed:
        """Runs the model, and writes what it draws, updates and loses."""
        processes.warn_of_predict(self.name)
        method = form.structure.method
        arrays = [keras.ops.convert_to_tensor(value) for value in form.values]
        params, state = self._params.values(), self._state.values()
        with self._explained("call", form):
            self._methods.settle_call(form, self._params, self._state)
            training = self._stated_mode(form, training)
            mode, writes = self._mode(method, training)
            remat = self._is_rematerialized(form, training)
            program = self._runner.program(form.structure, mode, writes, remat)
            draws = program.draws(params, state, rng.unused_key(), arrays)
            key = rng.key_from_seed(self.seed_generator.next()) if draws else rng.unused_key()
            result = program(params, state, key, arrays)
        written = self._runner.written(method, writes)
        for name, value in zip(written, result.state, strict=True):
            if name not in self._freezing.frozen:
                self._assign(written[name], value)
        for loss in result.losses.values():
            self.add_loss(loss)
        self._reports.update(self, result.metrics)
        self._recorded.add(form)
        if form.structure.is_single and not (
            draws or written or result.losses or result.metrics or self._is_special()
        ):
            owned = (self._params.variables, self._state.variables)
            self._eager_calls.remember(form.values[0], training, self.trainable, program, *owned)
        return result.outputs

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
        given = () if inputs is _NOTHING else (inputs, *args)
        return CallForm.read(given, kwargs, method, self._unpack_inputs)

    def _stated_mode(self, form: CallForm, training: bool | None) -> bool | None:
        """The mode, also where the caller states it by giving a flag of the model itself."""
        if training is not None:
            return training
        signature = self._methods[form.structure.method].signature
        return signature.stated_mode(*form.structure.restore(form.values))

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
            or type(self).call is not PureLayer.call
        )

    def _assign(self, variable: keras.Variable, value: jax.Array) -> None:
        if keras_bridge.is_foreign_trace(value):
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
        inputs: Any = _NOTHING,
        /,
        *args: Any,
        jaxlayer_call: CallStructure | None = None,
        training: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Shapes and dtypes of the outputs of a call, as `KerasTensor`s."""
        form = self._form(inputs, args, kwargs, jaxlayer_call)
        packed = self._output_specs(form, training)
        self._recorded.add(form)
        tensors = packed.map(
            lambda spec: keras_bridge.uniterable(
                keras.KerasTensor(spec.shape, keras.backend.standardize_dtype(spec.dtype))
            )
        )
        return _adopted(tensors if jaxlayer_call is not None else tensors.unpack())

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
        with self._explained("infer the output of", form):
            self._methods.settle_call(form, self._params, self._state)
            training = self._stated_mode(form, training)
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

    # Options.

    def rematerialized_call(self, layer_call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """How Keras rematerialises inside `keras.RematScope`: `_run` does it, to the model."""
        return layer_call

    def _is_rematerialized(self, form: CallForm, training: bool | None) -> bool:
        """Whether the user, or the scope that the layer was made in, asks for it."""
        if self._remat.is_on or self._remat_mode is None:
            return self._remat.is_on
        call = self.call
        arguments = {"jaxlayer_call": form.structure, "training": training}
        return super().rematerialized_call(call, list(form.values), **arguments) is not call


def _adopted(outputs: Any) -> Any:
    """The outputs, their node types known to Keras."""
    keras_bridge.adopt(outputs)
    return outputs
