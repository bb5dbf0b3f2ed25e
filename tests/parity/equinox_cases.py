"""Equinox: its layers, models of its documentation and examples, and PyPI packages."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .cases import Cases, booleans, f32, floats, given, ids

CASES = Cases("equinox")
BATCHES = {"layer": {"batch_axis": None}}
NO_GRADIENTS = {"gradients": "it has no params", "fit": "it has no params"}
NO_MEANS = {"program": "JAX has no mean over a mapped axis of unknown size"}
split = jax.random.split


def add(name: str, make: Callable[..., Any], inputs: Any, **kw: Any) -> None:
    """Adds a case.

    Args:
        name: of the case.
        make: makes the module of the argument `key`.
        inputs: of the call.
        **kw: the other attributes of `Case`.
    """
    CASES.add(name, lambda: make, inputs, **kw)


def instance(name: str, make: Callable[[Any], Any], inputs: Any, **kw: Any) -> None:
    """Adds a case whose layer is given a module that exists."""
    CASES.add(name, lambda: make(jax.random.key(3)), inputs, **kw)


# ---- equinox.nn -----------------------------------------------------------------------
partial = functools.partial

add("eqx.nn.Linear", partial(eqx.nn.Linear, 3, 2), floats(4, 3))
add("eqx.nn.Linear('scalar')", partial(eqx.nn.Linear, "scalar", 2), floats(4))
add("eqx.nn.MLP", partial(eqx.nn.MLP, 3, 2, 8, 2), floats(4, 3), sample=True)
instance("eqx.nn.MLP, made", lambda key: eqx.nn.MLP(3, "scalar", 8, 1, key=key), floats(4, 3))
add("eqx.nn.Conv1d", partial(eqx.nn.Conv1d, 3, 4, 3, groups=1, padding=1), floats(2, 3, 8))
add(
    "eqx.nn.Conv2d(circular)",
    partial(eqx.nn.Conv2d, 4, 4, 3, padding="SAME", padding_mode="CIRCULAR", groups=2),
    floats(2, 4, 6, 6),
)
add(
    "eqx.nn.ConvTranspose2d", partial(eqx.nn.ConvTranspose2d, 3, 2, 3, stride=2), floats(2, 3, 4, 4)
)
add("eqx.nn.Embedding", partial(eqx.nn.Embedding, 10, 3), given(ids(6)))
add("eqx.nn.GRUCell", partial(eqx.nn.GRUCell, 3, 4), given(f32(4, 3), f32(4, 4, seed=1)))
add(
    "eqx.nn.LSTMCell",
    partial(eqx.nn.LSTMCell, 3, 4),
    given(f32(4, 3), (f32(4, 4, seed=1), f32(4, 4, seed=2))),
)
add(
    "eqx.nn.MultiheadAttention",
    partial(eqx.nn.MultiheadAttention, 2, 8, dropout_p=0.2),
    given(f32(2, 5, 8), f32(2, 5, 8, seed=1), f32(2, 5, 8, seed=2), mask=booleans(2, 5, 5)),
)
instance("eqx.nn.LayerNorm", lambda key: eqx.nn.LayerNorm(6), floats(4, 6))
instance("eqx.nn.RMSNorm", lambda key: eqx.nn.RMSNorm(6), floats(4, 6))
instance("eqx.nn.GroupNorm", lambda key: eqx.nn.GroupNorm(2, 4), floats(2, 4, 5))
instance("eqx.nn.PReLU", lambda key: eqx.nn.PReLU(), floats(4, 6))
instance("eqx.nn.Dropout", lambda key: eqx.nn.Dropout(0.4), floats(4, 6), lacks=NO_GRADIENTS)
instance(
    "eqx.nn.RotaryPositionalEmbedding",
    lambda key: eqx.nn.RotaryPositionalEmbedding(8),
    floats(2, 5, 8),
    lacks=NO_GRADIENTS,
)
instance(
    "eqx.nn.BatchNorm(ema)",
    lambda key: eqx.nn.BatchNorm(3, "batch", mode="ema"),
    floats(4, 3),
    lacks=NO_MEANS,
)
instance(
    "eqx.nn.BatchNorm(batch)",
    lambda key: eqx.nn.BatchNorm(3, "batch", momentum=0.9, mode="batch"),
    floats(4, 3, 5),
    lacks=NO_MEANS,
)
add(
    "eqx.nn.SpectralNorm",
    lambda key: eqx.nn.SpectralNorm(eqx.nn.Linear(3, 4, key=key), "weight", key=split(key)[0]),
    floats(4, 3),
)
add(
    "eqx.nn.WeightNorm",
    lambda key: eqx.nn.WeightNorm(eqx.nn.Linear(3, 4, key=key), "weight"),
    floats(4, 3),
)
add(
    "eqx.nn.Sequential, with state",
    lambda key: eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 4, 3, key=key),
            eqx.nn.BatchNorm(4, "batch", mode="batch"),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.AdaptiveAvgPool2d(1),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Dropout(0.3),
            eqx.nn.Linear(4, 2, key=key),
        ]
    ),
    floats(3, 3, 6, 6),
    lacks=NO_MEANS,
)
add(
    "eqx.nn.Sequential of pools",
    lambda key: eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 2, 3, key=key),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.AvgPool2d(2),
            eqx.nn.Identity(),
        ]
    ),
    floats(2, 1, 9, 9),
)


# ---- models of Equinox' documentation ---------------------------------------------------
class CNN(eqx.Module):
    """https://docs.kidger.site/equinox/examples/mnist, smaller."""

    layers: list

    def __init__(self, key):
        one, two, three = split(key, 3)
        self.layers = [
            eqx.nn.Conv2d(1, 3, kernel_size=4, key=one),
            eqx.nn.MaxPool2d(kernel_size=2),
            jax.nn.relu,
            jnp.ravel,
            eqx.nn.Linear(3 * 10 * 10, 8, key=two),
            jax.nn.sigmoid,
            eqx.nn.Linear(8, 3, key=three),
            jax.nn.log_softmax,
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class RNN(eqx.Module):
    """https://docs.kidger.site/equinox/examples/train_rnn."""

    hidden_size: int
    cell: eqx.Module
    linear: eqx.nn.Linear
    bias: jax.Array

    def __init__(self, in_size=2, out_size=1, hidden_size=4, *, key):
        ckey, lkey = split(key)
        self.hidden_size = hidden_size
        self.cell = eqx.nn.GRUCell(in_size, hidden_size, key=ckey)
        self.linear = eqx.nn.Linear(hidden_size, out_size, use_bias=False, key=lkey)
        self.bias = jnp.zeros(out_size)

    def __call__(self, input):
        hidden = jnp.zeros((self.hidden_size,))

        def f(carry, inp):
            return self.cell(inp, carry), None

        out, _ = jax.lax.scan(f, hidden, input)
        return jax.nn.sigmoid(self.linear(out) + self.bias)


class Stateful(eqx.Module):
    """https://docs.kidger.site/equinox/examples/stateful."""

    norm1: eqx.nn.BatchNorm
    spectral_linear: eqx.nn.SpectralNorm
    norm2: eqx.nn.BatchNorm
    linear1: eqx.nn.Linear
    linear2: eqx.nn.Linear

    def __init__(self, key):
        key1, key2, key3, key4 = split(key, 4)
        self.norm1 = eqx.nn.BatchNorm(input_size=3, axis_name="batch", mode="ema")
        self.spectral_linear = eqx.nn.SpectralNorm(
            layer=eqx.nn.Linear(in_features=3, out_features=8, key=key1),
            weight_name="weight",
            key=key2,
        )
        self.norm2 = eqx.nn.BatchNorm(input_size=8, axis_name="batch", mode="ema")
        self.linear1 = eqx.nn.Linear(in_features=8, out_features=8, key=key3)
        self.linear2 = eqx.nn.Linear(in_features=8, out_features=3, key=key4)

    def __call__(self, x, state):
        x, state = self.norm1(x, state)
        x, state = self.spectral_linear(x, state)
        x = jax.nn.relu(x)
        x, state = self.norm2(x, state)
        x = self.linear1(x)
        x = jax.nn.relu(x)
        return self.linear2(x), state


class MixerBlock(eqx.Module):
    patch_mixer: eqx.nn.MLP
    hidden_mixer: eqx.nn.MLP
    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm

    def __init__(self, num_patches, hidden_size, *, key):
        tkey, ckey = split(key)
        self.patch_mixer = eqx.nn.MLP(num_patches, num_patches, 8, depth=1, key=tkey)
        self.hidden_mixer = eqx.nn.MLP(hidden_size, hidden_size, 8, depth=1, key=ckey)
        self.norm1 = eqx.nn.LayerNorm((hidden_size, num_patches))
        self.norm2 = eqx.nn.LayerNorm((num_patches, hidden_size))

    def __call__(self, y):
        y = y + jax.vmap(self.patch_mixer)(self.norm1(y))
        y = y.T
        y = y + jax.vmap(self.hidden_mixer)(self.norm2(y))
        return y.T


class Mixer2d(eqx.Module):
    """https://docs.kidger.site/equinox/examples/score_based_diffusion: an MLP-mixer with time."""

    conv_in: eqx.nn.Conv2d
    conv_out: eqx.nn.ConvTranspose2d
    blocks: list
    norm: eqx.nn.LayerNorm
    t1: float

    def __init__(self, key, size=8, patch=4, hidden=6):
        inkey, outkey, *bkeys = split(key, 4)
        patches = (size // patch) ** 2
        self.conv_in = eqx.nn.Conv2d(2, hidden, patch, stride=patch, key=inkey)
        self.conv_out = eqx.nn.ConvTranspose2d(hidden, 1, patch, stride=patch, key=outkey)
        self.blocks = [MixerBlock(patches, hidden, key=bkey) for bkey in bkeys]
        self.norm = eqx.nn.LayerNorm((hidden, patches))
        self.t1 = 10.0

    def __call__(self, t, y):
        t = jnp.array(t) / self.t1
        _, height, width = y.shape
        t = jnp.broadcast_to(t, (1, height, width))
        y = self.conv_in(jnp.concatenate([y, t]))
        hidden, patch_height, patch_width = y.shape
        y = y.reshape(hidden, patch_height * patch_width)
        for block in self.blocks:
            y = block(y)
        y = self.norm(y)
        return self.conv_out(y.reshape(hidden, patch_height, patch_width))


class AttentionBlock(eqx.Module):
    layer_norm1: eqx.nn.LayerNorm
    layer_norm2: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    linear1: eqx.nn.Linear
    linear2: eqx.nn.Linear
    dropout1: eqx.nn.Dropout
    dropout2: eqx.nn.Dropout

    def __init__(self, width, hidden, heads, rate, key):
        key1, key2, key3 = split(key, 3)
        self.layer_norm1 = eqx.nn.LayerNorm(width)
        self.layer_norm2 = eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(heads, width, key=key1)
        self.linear1 = eqx.nn.Linear(width, hidden, key=key2)
        self.linear2 = eqx.nn.Linear(hidden, width, key=key3)
        self.dropout1 = eqx.nn.Dropout(rate)
        self.dropout2 = eqx.nn.Dropout(rate)

    def __call__(self, x, enable_dropout, key):
        input_x = jax.vmap(self.layer_norm1)(x)
        x = x + self.attention(input_x, input_x, input_x)
        input_x = jax.vmap(self.linear1)(jax.vmap(self.layer_norm2)(x))
        input_x = jax.nn.gelu(input_x)
        key1, key2 = split(key)
        input_x = self.dropout1(input_x, inference=not enable_dropout, key=key1)
        input_x = jax.vmap(self.linear2)(input_x)
        input_x = self.dropout2(input_x, inference=not enable_dropout, key=key2)
        return x + input_x


class VisionTransformer(eqx.Module):
    """https://docs.kidger.site/equinox/examples/vision_transformer: a flag among the arguments."""

    patch_embedding: eqx.nn.Linear
    positional_embedding: jax.Array
    cls_token: jax.Array
    blocks: list
    dropout: eqx.nn.Dropout
    mlp: eqx.nn.Sequential
    patch_size: int

    def __init__(self, key, width=8, patch_size=4, patches=4):
        key1, key2, key3, key4, key5 = split(key, 5)
        self.patch_size = patch_size
        self.patch_embedding = eqx.nn.Linear(3 * patch_size**2, width, key=key1)
        self.positional_embedding = jax.random.normal(key2, (patches + 1, width))
        self.cls_token = jax.random.normal(key3, (1, width))
        self.blocks = [AttentionBlock(width, 12, 2, 0.1, key4)]
        self.dropout = eqx.nn.Dropout(0.1)
        self.mlp = eqx.nn.Sequential([eqx.nn.LayerNorm(width), eqx.nn.Linear(width, 3, key=key5)])

    def __call__(self, x, enable_dropout, key):
        channels, height, width = x.shape
        size = self.patch_size
        x = x.reshape(channels, height // size, size, width // size, size)
        x = x.transpose(1, 3, 0, 2, 4).reshape(-1, channels * size**2)
        x = jnp.concatenate([self.cls_token, jax.vmap(self.patch_embedding)(x)])
        x += self.positional_embedding
        key, own = split(key)
        x = self.dropout(x, inference=not enable_dropout, key=own)
        for block, own in zip(self.blocks, split(key, len(self.blocks)), strict=True):
            x = block(x, enable_dropout, key=own)
        return self.mlp(x[0])


class Bert(eqx.Module):
    """https://docs.kidger.site/equinox/examples/bert: several inputs, keys passed down."""

    words: eqx.nn.Embedding
    segments: eqx.nn.Embedding
    positions: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    block: AttentionBlock
    dropout: eqx.nn.Dropout
    pooler: eqx.nn.Linear

    def __init__(self, *, key):
        keys = split(key, 5)
        self.words = eqx.nn.Embedding(10, 8, key=keys[0])
        self.segments = eqx.nn.Embedding(2, 8, key=keys[1])
        self.positions = eqx.nn.Embedding(6, 8, key=keys[2])
        self.norm = eqx.nn.LayerNorm(8)
        self.block = AttentionBlock(8, 12, 2, 0.1, keys[3])
        self.dropout = eqx.nn.Dropout(0.2)
        self.pooler = eqx.nn.Linear(8, 8, key=keys[4])

    def __call__(self, inputs, enable_dropout=False, key=None):
        x = jax.vmap(self.words)(inputs["token_ids"])
        x += jax.vmap(self.segments)(inputs["segment_ids"])
        x += jax.vmap(self.positions)(inputs["position_ids"])
        x = jax.vmap(self.norm)(x)
        first, second = split(key)
        x = self.dropout(x, inference=not enable_dropout, key=first)
        x = self.block(x, enable_dropout, key=second)
        return {"embeddings": x, "pooled": jnp.tanh(self.pooler(x[0]))}


ENABLE_DROPOUT = {"train": {"enable_dropout": True}, "eval": {"enable_dropout": False}}

add("docs: CNN", CNN, floats(2, 1, 14, 14))
add("docs: GRU classifier", RNN, floats(3, 7, 2))
add(
    "docs: BatchNorm and SpectralNorm",
    Stateful,
    floats(6, 3),
    sample=True,
    lacks=NO_MEANS,
)
add("docs: MLP-mixer with time", Mixer2d, given(f32(2), f32(2, 1, 8, 8)))
add("docs: vision transformer", VisionTransformer, floats(2, 3, 8, 8), **ENABLE_DROPOUT)
add(
    "docs: BERT",
    Bert,
    lambda: (
        (
            {
                "token_ids": ids(2, 6),
                "segment_ids": ids(2, 6, n=2),
                "position_ids": np.tile(np.arange(6, dtype="int32"), (2, 1)),
            },
        ),
        {},
    ),
    **ENABLE_DROPOUT,
)


# ---- what authors do --------------------------------------------------------------------
class Discriminator(eqx.Module):
    """As in https://docs.kidger.site/equinox/examples/deep_convolutional_gan."""

    layers: list

    def __init__(self, key):
        keys = split(key, 3)
        self.layers = [
            eqx.nn.Conv2d(1, 4, 4, 2, 1, use_bias=False, key=keys[0]),
            eqx.nn.PReLU(0.2),
            eqx.nn.Conv2d(4, 8, 4, 2, 1, use_bias=False, key=keys[1]),
            eqx.nn.BatchNorm(8, axis_name="batch", mode="batch"),
            eqx.nn.PReLU(0.2),
            eqx.nn.Conv2d(8, 1, 2, key=keys[2]),
        ]

    def __call__(self, x, state):
        for layer in self.layers:
            if isinstance(layer, eqx.nn.BatchNorm):
                x, state = layer(x, state)
            else:
                x = layer(x)
        return jnp.reshape(x, (-1,)), state


class Fire(eqx.Module):
    """A block of eqxvision's SqueezeNet."""

    squeeze: eqx.nn.Conv2d
    squeeze_activation: eqx.nn.Lambda
    expand1x1: eqx.nn.Conv2d
    expand3x3: eqx.nn.Conv2d

    def __init__(self, inplanes, planes, key):
        keys = split(key, 3)
        self.squeeze = eqx.nn.Conv2d(inplanes, planes, kernel_size=1, key=keys[0])
        self.squeeze_activation = eqx.nn.Lambda(jax.nn.relu)
        self.expand1x1 = eqx.nn.Conv2d(planes, 4, kernel_size=1, key=keys[1])
        self.expand3x3 = eqx.nn.Conv2d(planes, 4, kernel_size=3, padding=1, key=keys[2])

    def __call__(self, x, *, key):
        x = self.squeeze_activation(self.squeeze(x))
        return jnp.concatenate([jax.nn.relu(self.expand1x1(x)), jax.nn.relu(self.expand3x3(x))])


class SqueezeNet(eqx.Module):
    """As eqxvision has it: `key` is required, and passed through."""

    features: eqx.nn.Sequential
    classifier: eqx.nn.Sequential

    def __init__(self, *, key):
        keys = split(key, 3)
        self.features = eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(3, 4, kernel_size=3, stride=2, key=keys[0]),
                eqx.nn.Lambda(jax.nn.relu),
                Fire(4, 3, keys[1]),
            ]
        )
        self.classifier = eqx.nn.Sequential(
            [
                eqx.nn.Dropout(0.5),
                eqx.nn.Conv2d(8, 3, kernel_size=1, key=keys[2]),
                eqx.nn.AdaptiveAvgPool2d((1, 1)),
            ]
        )

    def __call__(self, x, *, key):
        one, two = split(key)
        return jnp.ravel(self.classifier(self.features(x, key=one), key=two))


class VAE(eqx.Module):
    """Draws in either mode, has methods, and returns a tuple."""

    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP

    def __init__(self, key):
        one, two = split(key)
        self.encoder = eqx.nn.MLP(6, 4, 8, 1, key=one)
        self.decoder = eqx.nn.MLP(2, 6, 8, 1, activation=jnp.tanh, key=two)

    def encode(self, x):
        return jnp.split(self.encoder(x), 2)

    def __call__(self, x, *, key):
        mean, log_scale = self.encode(x)
        z = mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape)
        return self.decoder(z), (mean, log_scale)


class Running(eqx.Module):
    """A state of its own, an integer in it, and a module that takes whole batches."""

    mean: eqx.nn.StateIndex
    scale: jax.Array

    def __init__(self, key):
        self.mean = eqx.nn.StateIndex({"count": jnp.zeros((), jnp.int32), "mean": jnp.zeros(3)})
        self.scale = jax.random.normal(key, (3,))

    def __call__(self, x, state):
        own = state.get(self.mean)
        mean = 0.9 * own["mean"] + 0.1 * jnp.mean(x, axis=0)
        state = state.set(self.mean, {"count": own["count"] + 1, "mean": mean})
        return (x - mean) * self.scale, state


class Frozen(eqx.Module):
    """Arrays that are not trained: integers, NumPy's own, and one behind `stop_gradient`."""

    order: jax.Array
    weight: np.ndarray
    table: jax.Array
    name: str = eqx.field(static=True)

    def __init__(self, key):
        self.order = jax.random.permutation(key, 4)
        self.weight = np.linspace(-1, 1, 4, dtype="float32")
        self.table = jax.random.normal(key, (4,))
        self.name = "frozen"

    def __call__(self, x):
        return x[self.order] * self.weight + jax.lax.stop_gradient(self.table)


class Stacked(eqx.Module):
    """Layers made by `filter_vmap` and run by `scan`, as Equinox recommends for many."""

    layers: eqx.nn.Linear

    def __init__(self, key):
        self.layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(split(key, 3))

    @eqx.filter_jit
    def __call__(self, x):
        dynamic, static = eqx.partition(self.layers, eqx.is_array)

        def step(x, own):
            return jax.nn.tanh(eqx.combine(own, static)(x)), None

        return jax.lax.scan(step, x, dynamic)[0]


class Tied(eqx.Module):
    """https://docs.kidger.site/equinox/api/nn/shared."""

    shared: eqx.nn.Shared

    def __init__(self, *, key):
        one, two = split(key)
        layers = (eqx.nn.Embedding(5, 3, key=one), eqx.nn.Linear(3, 5, key=two))
        self.shared = eqx.nn.Shared(
            layers, lambda pair: pair[1].weight, lambda pair: pair[0].weight
        )

    def __call__(self, token):
        embedding, linear = self.shared()
        return linear(embedding(token))


add("GAN discriminator", Discriminator, floats(3, 1, 8, 8), lacks=NO_MEANS)
add("eqxvision-like SqueezeNet", SqueezeNet, floats(2, 3, 11, 11))
add("VAE", VAE, floats(4, 6))
add("VAE.encode", VAE, floats(4, 6), method="encode")
add("own state, whole batches", Running, floats(4, 3), **BATCHES)
add("integers, NumPy and stop_gradient", Frozen, floats(3, 4))
add("filter_vmap and scan", Stacked, floats(3, 4))
add("tied weights", Tied, given(ids(6, n=5)))
add(
    "ensemble in a list",
    lambda key: _Ensemble([eqx.nn.MLP(3, 1, 4, 1, key=k) for k in split(key, 12)]),
    floats(2, 3),
)


class _Ensemble(eqx.Module):
    members: list

    def __call__(self, x):
        return jnp.mean(jnp.stack([member(x) for member in self.members]), axis=0)


# ---- PyPI -------------------------------------------------------------------------------
def package(name: str, path: str, *args: Any, inputs: Any, **options: Any) -> None:
    """Adds a module of equimo, made with these arguments of its class."""

    def make():
        module, _, cls = path.rpartition(".")
        return partial(getattr(importlib.import_module(module), cls), *args, **options)

    CASES.add(name, make, inputs, requires="equimo==1.1.0 einops==0.8.2")


package("equimo: Mlp", "equimo.layers.ffn.Mlp", 4, dropout_rate=0.3, inputs=floats(2, 3, 4))
package(
    "equimo: AttentionBlock",
    "equimo.layers.attention.AttentionBlock",
    *(4, 2),
    mlp_ratio=2.0,
    attn_drop=0.2,
    drop_path=[0.1, 0.2],
    inputs=floats(2, 3, 4),
)
package(
    "equimo: ConvNeXtBlock",
    "equimo.layers.convolution.ConvNeXtBlock",
    4,
    kernel_size=3,
    drop_path=0.2,
    inputs=floats(2, 4, 6, 6),
)
package(
    "equimo: VisionTransformer",
    "equimo.models.vit.VisionTransformer",
    *(8, 3, 8, 4, 2, [1]),
    num_classes=3,
    mlp_ratio=1.5,
    pos_drop_rate=0.1,
    inputs=floats(2, 3, 8, 8),
)
