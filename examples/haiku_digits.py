"""A Haiku ConvNet, as a Haiku user writes it, trained by Keras on handwritten digits."""

from __future__ import annotations

import os
from collections.abc import Sequence

os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras reads it when it is imported

import digits
import haiku as hk
import jax
import keras
import numpy as np

from jaxlayer import HaikuLayer


def convnet(images: jax.Array, is_training: bool) -> jax.Array:
    """The model: nothing in it knows of Keras.

    Args:
        images: of shape `(batch, 8, 8, 1)`.
        is_training: whether to normalise by the batch, and to drop features.

    Returns:
        Logits of the ten digits.
    """
    x = images
    for channels, stride in [(32, 1), (32, 1), (64, 2), (64, 1)]:
        x = hk.Conv2D(channels, kernel_shape=3, stride=stride, with_bias=False)(x)
        x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training)
        x = jax.nn.relu(x)
    x = hk.Flatten()(x)
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(10)(x)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the model, tests it and compares it with the native one.

    Args:
        arguments: the command line without the program's name; None for the process's own.
    """
    options = digits.read_options(arguments, description=__doc__ or "", epochs=30)
    keras.utils.set_random_seed(options.seed)
    data = digits.load()

    model = keras.Sequential([keras.Input((8, 8, 1)), HaikuLayer(convnet)])
    model.summary()
    model.compile(
        optimizer=keras.optimizers.Adam(2e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        *data.train,
        batch_size=64,
        epochs=options.epochs,
        validation_data=data.validation,
        callbacks=[
            keras.callbacks.ReduceLROnPlateau(factor=0.3, patience=2),
            keras.callbacks.EarlyStopping(patience=6, restore_best_weights=True),
        ],
    )

    # The same batch for both: a compiler may order the sums of another batch size differently.
    images = data.test.images
    logits = model.predict(images, batch_size=len(images))

    # What Keras trained runs without it: the layer has the weights in Haiku's own trees. As NumPy
    # arrays they stay; the JAX arrays are deleted when Keras trains or predicts again.
    layer = model.layers[-1]
    params, state = jax.tree.map(np.asarray, (layer.params, layer.state))
    native = jax.jit(hk.transform_with_state(convnet).apply, static_argnames="is_training")
    native_logits, _ = native(params, state, None, images, is_training=False)

    picture = options.output / "haiku_digits.png"
    digits.report(
        "A Haiku ConvNet trained by Keras",
        history.history,
        data.test,
        logits,
        native_logits,
        picture,
    )


if __name__ == "__main__":
    main()
