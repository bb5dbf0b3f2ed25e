"""A framework of a few lines: layers in a chain, some of which count or draw."""

import jax
import jax.numpy as jnp


class Dense:
    """Multiplies by a matrix."""

    def __init__(self, features):
        self.features = features

    def setup(self, key, x):
        return {"w": jax.random.normal(key, (x.shape[-1], self.features)) / 4}, {}

    def run(self, weights, memory, key, x, learning):
        return x @ weights["w"], memory


class Noise:
    """Adds noise while learning, and counts how often."""

    def setup(self, key, x):
        return {}, {"count": jnp.zeros((), "int32")}

    def run(self, weights, memory, key, x, learning):
        if not learning:
            return x, memory
        noise = 0.01 * jax.random.normal(key, x.shape)
        return x + noise, {"count": memory["count"] + 1}


class Chain:
    """Runs links one after the other."""

    def __init__(self, *links):
        self.links = links

    def setup(self, key, x):
        weights, memory = {}, {}
        for number, link in enumerate(self.links):
            name = f"link{number}"
            weights[name], memory[name] = link.setup(jax.random.fold_in(key, number), x)
            x, _ = link.run(weights[name], memory[name], key, x, False)
        return weights, memory

    def run(self, weights, memory, key, x, learning):
        after = {}
        for number, link in enumerate(self.links):
            name = f"link{number}"
            x, after[name] = link.run(
                weights[name], memory[name], jax.random.fold_in(key, number), x, learning
            )
        return x, after
