"""The seeds of a whole Keras model, also of Keras' own layers, in the model's files."""

from __future__ import annotations

import weakref
from typing import Any

import keras

from jaxlayer_core.errors import StructureError
from jaxlayer_core.rng import SEED_NAME

_ATTRIBUTE = "jaxlayer_seeds"


def keep_seeds(model: keras.Model) -> None:
    """Makes the files of a model hold the seeds of all its layers, and loading restore them.

    Keras saves no seeds, so that its own random layers (`Dropout`, `GaussianNoise`, random
    augmentation) draw the same again, or something else, after loading. The layers of jaxlayer
    do save theirs; this is for a model that has others beside them. From then on it is true
    of `save_weights` and `load_weights`, and of all that uses them: `BackupAndRestore`,
    `ModelCheckpoint`. Seeds are stored in the order of the layers, as Keras does with weights.

    Args:
        model: a Keras model, built or not. It gets one attribute, which is no layer of it and
            not part of its config: call this again on a model that `load_model` made, and load
            the `.keras` file once more with `model.load_weights`.

    Raises:
        StructureError: later, when a file is loaded that has no seeds, or more or fewer. Keras
            puts its text into a ValueError of its own.

    Example:
        >>> import tempfile, keras, numpy as np
        >>> def made():
        ...     model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5)])
        ...     keep_seeds(model)
        ...     return model
        >>> x, first, second = np.ones((4, 3)), made(), made()
        >>> file = tempfile.mkdtemp() + "/model.weights.h5"
        >>> first.save_weights(file)
        >>> second.load_weights(file)
        >>> np.array_equal(first(x, training=True), second(x, training=True))
        True
    """
    # Past Keras' own `__setattr__`, which would make it a layer of the model, or refuse it in a
    # model that is built. Keras saves whatever attributes know how to be saved.
    object.__setattr__(model, _ATTRIBUTE, _Seeds(model))


class _Seeds(keras.layers.Layer):  # type: ignore[misc]  # keras has no types
    """Stands for the seeds of a model where Keras saves and loads.

    Args:
        model: the model whose attribute this is.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__(name=_ATTRIBUTE)
        # Keras would follow a plain reference back to the model when it loads, for ever.
        self._model_of_seeds = weakref.ref(model)

    def save_own_variables(self, store: Any) -> None:
        """Stores the state of each seed."""
        for name, variable in self._named().items():
            store[name] = variable

    def load_own_variables(self, store: Any) -> None:
        """Loads the state of each seed."""
        named = self._named()
        if set(store.keys()) != set(named):
            raise StructureError(
                f"The file holds {len(store.keys())} seeds, expected {len(named)}, one for each "
                "random layer of the model. Load it into the model that saved it; a file that "
                "was saved without keep_seeds(model) has to be loaded before keep_seeds, too."
            )
        for name, variable in named.items():
            variable.assign(store[name])

    def _named(self) -> dict[str, keras.Variable]:
        model = self._model_of_seeds()
        variables = () if model is None else model.variables
        seeds = [variable for variable in variables if variable.name == SEED_NAME]
        return {str(index): variable for index, variable in enumerate(seeds)}
