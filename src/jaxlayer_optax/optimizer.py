"""A Keras optimizer that updates weights as a transformation of Optax says."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import keras

from jaxlayer_core import errors
from jaxlayer_optax import rates, source, stored
from jaxlayer_optax.errors import OptaxError
from jaxlayer_optax.updating import NO_DECAY, UpdatingOptimizer

_OPTIONS = (
    *("clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum"),
    *("ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps"),
)


@keras.saving.register_keras_serializable(package="jaxlayer")
class OptaxOptimizer(UpdatingOptimizer):
    """A transformation of Optax as a Keras optimizer.

    The transformation gets the gradients, its state and the weights as it would in a loop of
    one's own. The weights are one nested dict by path, `{"dense": {"kernel": ..., "bias": ...}}`,
    less what is frozen. The state's arrays are Keras variables, named by their paths and placed
    on devices as the weights they belong to; they are saved with the model.

    An update that takes extra arguments gets, in Keras' own training loops, `value` (the loss),
    `grad`, `value_fn` and `obj_fn` (the loss of the step's data for other weights) and `grad_fn`
    (its gradients). In other loops give them with `extra_args`.

    Args:
        tx: the transformation: `optax.adamw(1e-3)`, an `optax.MultiSteps`, or whatever has
            `init` and `update`. Or a function that makes it, with an argument `learning_rate`
            if that is given here, and without arguments otherwise: `optax.adamw`,
            `functools.partial(optax.adamw, weight_decay=1e-2)`, a function of your own.
        learning_rate: for `tx` that is a function: a number, which `optimizer.learning_rate` and
            callbacks read and set; or a schedule, of Optax or of Keras, of the number of steps
            (each batch is one, also where gradients are accumulated, as in Keras). The rate is an
            array of the widest dtype of the gradients, whereas a number inside of `tx` leaves each
            weight its own; that shows where some weights are narrower than others.
            Without it, a learning rate can be read and set if the transformation comes from
            `optax.inject_hyperparams`.
        clipnorm: Keras clips each gradient to this norm, before Optax.
        clipvalue: Keras clips each element of the gradients, before Optax.
        global_clipnorm: Keras clips all gradients to this norm together, before Optax.
        use_ema: whether Keras keeps averages of the weights, and replaces the weights by them
            when training ends.
        ema_momentum: see Keras.
        ema_overwrite_frequency: see Keras.
        loss_scale_factor: Keras multiplies the loss by this, and divides the gradients.
        gradient_accumulation_steps: Keras gives Optax the mean gradients of so many steps. Extra
            arguments are then not given, as there are none for the mean.
        weight_decay: Keras' own, which is refused: it is an argument of Optax' functions.
        name: the optimizer's name, with which the paths of its variables begin. Keras' Orbax
            checkpoints go by these paths, and skip what they do not find; so it is always the
            same, and two optimizers of one `MultiOptimizer` need names of their own for them.

    Raises:
        OptaxError: `tx` is no transformation and makes none, or an option does not go with it.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="dense")])
        >>> import jax.numpy as jnp, optax
        >>> optimizer = OptaxOptimizer(optax.adamw, learning_rate=1e-3)
        >>> model.compile(optimizer, "mse")
        >>> _ = model.fit(jnp.ones((4, 3)), jnp.ones((4, 1)), verbose=0)
        >>> optimizer.variables[-1].path.partition("/")[2]
        '0/nu/sequential/dense/kernel'
        >>> optimizer.learning_rate = 1e-4
    """

    def __init__(
        self,
        tx: Any,
        learning_rate: Any = None,
        *,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        weight_decay: None = None,
        name: str = "optax_optimizer",
    ) -> None:
        if weight_decay is not None:
            raise OptaxError(NO_DECAY)
        super().__init__(
            tx,
            learning_rate,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )

    # Files.

    def save_own_variables(self, store: Any) -> None:
        """Stores each variable under its own path: `0/mu/dense/kernel`."""
        stored.save(self._stored(), store)

    def load_own_variables(self, store: Any) -> None:
        """Loads each variable by its own path.

        A model that is made again in one process has layers of other names; then the weights
        are taken in their order, as Keras does it.

        Raises:
            StructureError: the store has other leaves, or is damaged. Nothing is loaded. What
                another class of optimizer has stored is skipped with a warning, as in Keras.
        """
        stored.load(self.name, self._stored() if self.built else None, store)

    def _stored(self) -> list[stored.Entry]:
        averages = {"average": getattr(self, "_model_variables_moving_average", None)}
        sums = {"gradient_accumulator": getattr(self, "_accumulated_gradients", None)}
        own = [v for v in self._variables if v is self._iterations or v is self._learning_rate]
        return stored.entries(
            own, self._trainable_variables, averages | sums, self._weights, self._state
        )

    def get_config(self) -> dict[str, Any]:
        """Config with the transformation as data.

        A transformation that nothing can express, as it holds a lambda, is left out, with a
        UserWarning. A model that is saved so can be loaded with `compile=False`.
        """
        parts = {"tx": self._make.tx}
        if self._make.has_rate:
            parts["learning_rate"] = rates.as_given(self._learning_rate)
        options = {option: getattr(self, option) for option in _OPTIONS}
        return {"name": self.name, **source.describe(self.name, parts), **options}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> OptaxOptimizer:
        """Rebuilds the optimizer from `get_config()`.

        Args:
            config: the config.
            custom_objects: objects by the names that the config has for them.

        Raises:
            ConfigError: the config is broken, or has no transformation.
            TrustError: it names what nobody trusts.
        """
        # A scope of its own would hide what Keras has been given.
        given = (
            keras.saving.custom_object_scope(custom_objects) if custom_objects else nullcontext()
        )
        with errors.in_config_of(cls.__name__), given:
            options = dict(config)
            return cls(**source.restore(options), **options)


def as_optimizer(tx: Any, learning_rate: Any = None, **options: Any) -> keras.optimizers.Optimizer:
    """Makes a Keras optimizer of a transformation of Optax.

    Args:
        tx: the transformation, or what makes it. An optimizer of Keras is returned as it is.
        learning_rate: see `OptaxOptimizer`.
        **options: of `OptaxOptimizer`.

    Raises:
        OptaxError: it is none of these.

    Example:
        >>> import optax
        >>> as_optimizer(optax.sgd(0.1)).name
        'optax_optimizer'
    """
    if isinstance(tx, keras.optimizers.Optimizer) and learning_rate is None and not options:
        return tx
    return OptaxOptimizer(tx, learning_rate, **options)
