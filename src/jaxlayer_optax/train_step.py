"""The train step of Keras that an update belongs to: the loss, and the function of the loss.

Keras gives an optimizer gradients and nothing else. What Optax calls extra arguments is in the
function that calls it, so it is read there.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax

from jaxlayer_core import keras_bridge
from jaxlayer_core.pure import PyTree
from jaxlayer_optax.weights import Weights


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A step in progress.

    Attributes:
        model: the model that is trained.
        state: the values of all variables at the step's beginning, as Keras orders them.
        data: inputs, targets and sample weights.
        loss: the loss, as it is logged: not scaled.
    """

    model: Any
    state: Any
    data: tuple[Any, Any, Any]
    loss: jax.Array

    def value_fn(self, weights: Weights) -> Callable[[PyTree], jax.Array]:
        """The loss as a function of the weights alone, with the data and draws of this step.

        Args:
            weights: what the function takes, nested.
        """
        trainable, rest, optimizer, metrics = self.state
        positions = {id(v): i for i, v in enumerate(self.model.trainable_variables)}
        own = [positions[id(v)] for v in weights.variables]

        # The last two are what an update is given beside it: line searches of Optax demand that
        # the function take all that. It is a node of pytrees, since Optax may hand it through
        # `jax.lax.cond`.
        def value_fn(params: PyTree, *, grad_fn: Any = None, obj_fn: Any = None) -> jax.Array:
            values = list(trainable)
            for position, value in zip(own, weights.flatten(params), strict=True):
                values[position] = value
            _, (loss, *_) = self.model.compute_loss_and_updates(
                values, rest, metrics, *self.data, training=True, optimizer_variables=optimizer
            )
            return loss

        return jax.tree_util.Partial(value_fn)


def find(weights: Weights) -> TrainStep | None:
    """The step of Keras' own that updates these weights; None in any other loop."""
    wanted = {id(variable) for variable in weights.variables}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if keras_bridge.is_of_keras(frame, "keras.src.backend.jax.trainer", "train_step"):
            local = frame.f_locals
            model = local["self"]
            if wanted <= {id(variable) for variable in model.trainable_variables}:
                data = (local["x"], local["y"], local["sample_weight"])
                return TrainStep(model, local["state"], data, local["unscaled_loss"])
        frame = frame.f_back
    return None
