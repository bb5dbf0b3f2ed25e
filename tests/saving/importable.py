"""What tests import by name, as a user's own package would have it."""

import dataclasses
import enum
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp

imported = True


class Size(enum.Enum):
    SMALL = 8
    LARGE = 16


@dataclasses.dataclass(frozen=True)
class Config:
    size: Size = Size.SMALL
    rates: tuple[float, ...] = (0.1, 0.2)
    dtype: Any = jnp.float32


class Pair(NamedTuple):
    left: Any
    right: Any


class Settings:
    """A bag of options, as many packages have."""

    def __init__(self, width=4, **more):
        self.width = width
        self.more = more


class Grown:
    """An object that is not what its arguments say."""

    def __init__(self, width):
        self.width = width

    def __reduce__(self):
        return Grown, (self.width + 1,)


squared_relu = lambda x: jnp.square(jax.nn.relu(x))  # noqa: E731  # as it is found in the wild


class Block(nn.Module):
    config: Config = Config()
    activation: Any = nn.relu
    kernel_init: Any = nn.initializers.lecun_normal()
    inner: Any = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.config.size.value, kernel_init=self.kernel_init)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(self.config.rates[0], deterministic=not train)(x)
        return self.activation(x if self.inner is None else self.inner(x))

    def features(self, x):
        return x


class Tied(nn.Module):
    """Two fields may be one module, whose weights are then shared."""

    first: nn.Module
    second: nn.Module

    def __call__(self, x):
        return self.second(self.first(x))


def forward(x, is_training=False):
    x = hk.Linear(4, w_init=hk.initializers.RandomNormal(0.1))(x)
    x = hk.BatchNorm(True, True, 0.9)(x, is_training)
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(2)(x)


def plain_forward(x):
    return hk.nets.MLP([4, 2])(x)


def autoencoder():
    encoder, decoder = hk.Linear(2, name="encoder"), hk.Linear(3, name="decoder")

    def init(x):
        return decoder(encoder(x))

    return init, (encoder, decoder)


class Net(hk.Module):
    def __init__(self, width, activation=jax.nn.relu, name=None):
        super().__init__(name)
        self.width = width
        self.activation = activation

    def __call__(self, x):
        return self.activation(hk.Linear(self.width)(x))


def call_fn(params, inputs):
    return inputs @ params["w"]


def init_fn(rng, inputs):
    return {"w": jax.random.normal(rng, (inputs.shape[-1], 2))}


leaky = functools.partial(nn.leaky_relu, negative_slope=0.3)
