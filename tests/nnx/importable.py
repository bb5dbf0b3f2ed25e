"""Modules that tests, and other processes, import by name."""

import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    """Modes are attributes; two streams of dropout."""

    def __init__(self, width, *, rngs):
        self.dense = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.second(self.first(self.norm(self.dense(x))))

    def masks(self, x):
        return self.first(x), self.second(x)


class Meter(nnx.Variable):
    """A type of its own, which a role may be given to."""


class Measuring(nnx.Module):
    """Keeps a number, and makes others in each call."""

    def __init__(self, *, rngs):
        self.dense = nnx.Linear(3, 2, rngs=rngs)
        self.steps = Meter(jnp.zeros(()))

    def __call__(self, x):
        x = self.dense(x)
        self.steps.copy_from(Meter(self.steps[...] + 1))  # as all versions of Flax can
        self.sow(nnx.Intermediate, "hidden", x)
        self.sow(Activity, "size", jnp.mean(x**2))
        return x


class Activity(nnx.Variable):
    """What is sown."""


class Stack(nnx.Module):
    """Layers made by `vmap`, run by `scan`."""

    def __init__(self, depth, *, rngs):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def create(rngs):
            return nnx.Linear(3, 3, rngs=rngs)

        self.layers = create(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return layer(x)

        return run(x, self.layers)


class Own(nnx.Module):
    """Its own words for modes: an attribute, and an `eval` that does more."""

    def __init__(self, *, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.training = True
        self.frozen = False
        self.scale = 1.0

    def eval(self, **attributes):
        super().eval(**attributes)
        self.scale = 10.0

    def __call__(self, x):
        return {
            "x": self.dense(x) * self.scale,
            "training": x * self.training,
            "frozen": x * self.frozen,
        }


class Scale(nnx.Param):
    """A parameter of its own type."""


class Derived(nnx.Module):
    def __init__(self):
        self.scale = Scale(jnp.ones(3))

    def __call__(self, x):
        return x * self.scale


class Arrays(nnx.Module):
    """Arrays that are in no variable."""

    def __init__(self):
        self.count = jnp.zeros(2)
        self.offset = jnp.ones(2)

    def __call__(self, x):
        self.count = self.count + 1
        return x + self.count + self.offset


def annotated(rngs):
    """A function that makes a module, whose kernel names an axis of the mesh."""
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
    return nnx.Linear(4, 8, kernel_init=init, rngs=rngs)
