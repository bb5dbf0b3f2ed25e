"""The case as a Keras layer, and what the properties do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from jaxlayer_core.adapter import Adapter
from jaxlayer_core.module_layer import as_layer
from jaxlayer_core.pure import PureModule
from jaxlayer_core.testing.cases import ConformanceCase
from jaxlayer_core.testing.comparing import is_variable
from jaxlayer_core.testing.native import SEED, Native, Result
from jaxlayer_core.testing.trees import loss_of

AnyLayer = Any


class Subject:
    """Makes layers of one case.

    Each layer gets a model of its own, so that the referee's model stays as it was made.

    Args:
        adapter: the adapter that is tested.
        case: the case.
    """

    def __init__(self, adapter: Adapter | type[Adapter], case: ConformanceCase) -> None:
        self.adapter = adapter
        self.case = case
        self.native = Native.of(case)
        self.arrays = self.native.arrays

    def pure(self, **options: Any) -> PureModule:
        """The canonical form that the adapter makes."""
        adapter = self.adapter() if isinstance(self.adapter, type) else self.adapter
        chosen = {"method", "training_arg"}
        own = {name: value for name, value in self.case.options.items() if name in chosen}
        return adapter.purify(self.case.make(), **{**own, **options})

    def layer(self, seed: int | None = SEED, model: Any = None, **options: Any) -> AnyLayer:
        """A layer that is not built."""
        model = self.case.make() if model is None else model
        options = {**self.case.options, **options}
        return as_layer(model, adapter=self.adapter, seed=seed, **options)

    def built(self, seed: int | None = SEED, **options: Any) -> AnyLayer:
        """A layer that has been called once on the data, in inference."""
        layer = self.layer(seed, **options)
        self.call(layer, False)
        return layer

    def call(
        self, layer: AnyLayer, training: bool | None, arrays: Sequence[Any] | None = None
    ) -> Any:
        """Calls the layer with the arguments of the case.

        Args:
            layer: the layer.
            training: the mode; None to leave it out.
            arrays: other arrays for the same places, or symbols.
        """
        args, kwargs = self.native.restore(self.arrays if arrays is None else arrays)
        mode = {} if training is None else {"training": training}
        return layer(*args, **kwargs, **mode)

    def run(self, layer: AnyLayer, training: bool, arrays: Sequence[Any] | None = None) -> Result:
        """What a call of the framework itself gives with the variables that the layer has now."""
        return self.native.run(*variables_of(layer), seed_of(layer), training, arrays)

    def assign(self, layer: AnyLayer, variables: tuple[Any, Any]) -> None:
        """Gives the layer's variables other values."""
        for tree, given in zip((layer.params, layer.state), variables, strict=True):
            own = jax.tree.leaves(tree, is_leaf=is_variable)
            for variable, value in zip(own, jax.tree.leaves(given), strict=True):
                if is_variable(variable):
                    variable.assign(value)

    def symbols(self) -> list[keras.KerasTensor]:
        """Inputs for a functional model; the batch is unknown where the model allows it."""

        def shape(array: np.ndarray) -> tuple[int | None, ...]:
            free = array.ndim and self.native.is_batched
            return (None, *array.shape[1:]) if free else array.shape

        return [
            keras.Input(batch_shape=shape(a), dtype=keras.backend.standardize_dtype(a.dtype))
            for a in self.arrays
        ]

    def gradients_of(self, layer: AnyLayer) -> Callable[..., Any]:
        """`(trainable, others, arrays)` to gradients of weights and arrays, and the new others."""

        def gradients(trainable: Any, others: Any, arrays: Any) -> Any:
            inexact = [jnp.issubdtype(array.dtype, jnp.inexact) for array in arrays]

            def loss(weights: Any, data: Any) -> Any:
                remaining = iter(data)
                given = [
                    next(remaining) if yes else array
                    for array, yes in zip(arrays, inexact, strict=True)
                ]
                outputs, after, losses = self.stateless(layer, weights, others, given)
                return loss_of(outputs) + sum(losses), after

            data = [array for array, yes in zip(arrays, inexact, strict=True) if yes]
            return jax.grad(loss, (0, 1), has_aux=True)(trainable, data)

        return gradients

    def stateless(
        self, layer: AnyLayer, trainable: Any, others: Any, arrays: Any, training: bool = True
    ) -> Any:
        """Outputs, new values of the variables that are not trained, and losses."""
        args, kwargs = (arrays,), {}
        if not isinstance(layer, Trained):
            args, kwargs = self.native.restore(list(arrays))
        return layer.stateless_call(
            trainable, others, *args, **kwargs, training=training, return_losses=True
        )

    def model(self, layer: AnyLayer) -> Trained:
        """A Keras model of the layer, ready for `train`."""
        return Trained(self, layer)


class Trained(keras.Model):  # type: ignore[misc]  # keras has no types
    """A model around a layer, whose loss is `loss_of` its outputs and the layer's own losses.

    Args:
        subject: knows how the layer is called.
        layer: the layer.
    """

    RATE = 0.01

    def __init__(self, subject: Subject, layer: AnyLayer) -> None:
        super().__init__(autocast=False)
        self._subject = subject
        self.layer = layer
        self.compile(optimizer=keras.optimizers.SGD(self.RATE))

    def call(self, arrays: Any, training: bool = False) -> Any:
        """Calls the layer."""
        return self._subject.call(self.layer, training, arrays)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The loss that `Native.gradients` differentiates."""
        return loss_of(y_pred) + sum(self.losses)

    def train(self, steps: int) -> None:
        """Steps of `fit`, each on the same data."""

        def batches() -> Iterator[Any]:
            while True:
                yield (self._subject.arrays,)

        self.fit(batches(), steps_per_epoch=steps, shuffle=False, verbose=0)


def variables_of(layer: AnyLayer) -> tuple[Any, Any]:
    """Params and state as the framework has them; copied, since `fit` gives its arrays away."""

    def copy(leaf: Any) -> Any:
        return jnp.array(leaf.value) if is_variable(leaf) else leaf

    params, state = (
        jax.tree.map(copy, tree, is_leaf=is_variable) for tree in (layer.params, layer.state)
    )
    return params, {} if state is None else state


def seed_of(layer: AnyLayer) -> np.ndarray:
    """The `[seed, counter]` that the key of the next drawing call is made of."""
    return np.array(layer.seed_generator.state.value)


def values(variables: Sequence[Any]) -> list[Any]:
    """Copies of what variables hold."""
    return [jnp.array(variable.value) for variable in variables]
