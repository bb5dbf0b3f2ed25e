"""A Flax residual network, as a Flax user writes it, trained by Keras on handwritten digits."""

from __future__ import annotations

import os
from collections.abc import Sequence

os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras reads it when it is imported

import digits
import flax.linen as nn
import jax
import keras
import numpy as np

from jaxlayer import FlaxLayer


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, each after a BatchNorm and a ReLU.

    Attributes:
        channels: how many the block gives.
        stride: of the first convolution.
    """

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Runs the block.

        Args:
            x: of shape `(batch, height, width, channels)`.
            train: whether to normalise by the batch.

        Returns:
            An array of the same rank.
        """
        y = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        shortcut = x
        if x.shape[-1] != self.channels or self.stride != 1:
            shortcut = nn.Conv(self.channels, (1, 1), self.stride, use_bias=False)(y)
        y = nn.Conv(self.channels, (3, 3), self.stride, use_bias=False)(y)
        y = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(y))
        y = nn.Conv(self.channels, (3, 3), use_bias=False)(y)
        return shortcut + y


class ResNet(nn.Module):
    """The model: nothing in it knows of Keras.

    Attributes:
        widths: channels of the blocks; each but the first halves the image.
        dropout: share of the features that training drops.
    """

    widths: Sequence[int] = (24, 48)
    dropout: float = 0.3

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Runs the model.

        Args:
            images: of shape `(batch, 8, 8, 1)`.
            train: whether to normalise by the batch, and to drop features.

        Returns:
            Logits of the ten digits.
        """
        x = nn.Conv(self.widths[0], (3, 3))(images)
        for index, width in enumerate(self.widths):
            x = ResidualBlock(width, stride=1 if index == 0 else 2)(x, train)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = x.mean(axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(10)(x)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the model, tests it and compares it with the native one.

    Args:
        arguments: the command line without the program's name; None for the process's own.
    """
    options = digits.read_options(arguments, description=__doc__ or "", epochs=12)
    keras.utils.set_random_seed(options.seed)
    data = digits.load()

    module = ResNet()
    model = keras.Sequential([keras.Input((8, 8, 1)), FlaxLayer(module)])
    model.summary()
    model.compile(
        optimizer=keras.optimizers.AdamW(weight_decay=1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )

    def learning_rate(epoch: int, _: float) -> float:
        return float(3e-3 * (1 + np.cos(np.pi * epoch / options.epochs)) / 2)

    history = model.fit(
        *data.train,
        batch_size=64,
        epochs=options.epochs,
        validation_data=data.validation,
        callbacks=[keras.callbacks.LearningRateScheduler(learning_rate)],
    )

    # The same batch for both: a compiler may order the sums of another batch size differently.
    images = data.test.images
    logits = model.predict(images, batch_size=len(images))

    # What Keras trained runs without it: the layer has the weights in Flax's own trees. As NumPy
    # arrays they stay; the JAX arrays are deleted when Keras trains or predicts again.
    layer = model.layers[-1]
    variables = jax.tree.map(np.asarray, {**layer.params, **layer.state})
    native_logits = jax.jit(module.apply, static_argnames="train")(variables, images, train=False)

    picture = options.output / "flax_digits.png"
    digits.report(
        "A Flax residual network trained by Keras",
        history.history,
        data.test,
        logits,
        native_logits,
        picture,
    )


if __name__ == "__main__":
    main()
