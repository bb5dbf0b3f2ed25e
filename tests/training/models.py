"""Models that several test files use."""

import flax.linen as nn
import jax.numpy as jnp


class Rich(nn.Module):
    """Sows a loss, a metric, an output and a feature, under names of its own."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(4, name="encoder")(x)
        self.sow("stats", "mean", jnp.mean(x))
        self.sow("aux", "penalty", jnp.mean(x**2))
        self.sow("attention", "weights", nn.softmax(x))
        self.sow("intermediates", "feature", x + 1)
        return nn.Dense(1, name="head")(nn.relu(x))
