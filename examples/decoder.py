"""A decoder-only transformer in Flax, whose author says what its dimensions mean.

The names in `with_logical_partitioning` know no device and no mesh; rules give them axes later.
The architecture is that of LLaMA (https://arxiv.org/abs/2302.13971): RMSNorm, rotary positions,
SwiGLU, no biases.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of a decoder.

    Attributes:
        layers: number of blocks.
        width: of the residual stream.
        heads: of the attention.
        hidden: width inside the gated MLP.
        vocabulary: number of tokens.
    """

    layers: int
    width: int
    heads: int
    hidden: int
    vocabulary: int

    @property
    def params(self) -> int:
        """How many numbers the decoder learns."""
        block = 4 * self.width**2 + 3 * self.width * self.hidden + 2 * self.width
        return self.layers * block + 2 * self.vocabulary * self.width + self.width


SEVEN_BILLION = Size(32, 4096, 32, 11008, 32000)
"""LLaMA-7B: 6.74e9 params."""


def dense(features: int, *names: str) -> nn.Module:
    """A projection without bias, its kernel's dimensions named."""
    init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), names)
    return nn.Dense(features, use_bias=False, kernel_init=init)


def norm() -> nn.Module:
    """RMSNorm with a named scale."""
    ones = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
    return nn.RMSNorm(scale_init=ones)


def spread(x: jax.Array, *names: str | None) -> jax.Array:
    """Activations `(rows, length, ...)`; XLA is told which dimensions are split."""
    return nn.with_logical_constraint(x, ("rows", None, *names))


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions (https://arxiv.org/abs/2104.09864) for `(batch, length, heads, size)`."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] / 10000 ** (jnp.arange(half) / half)
    sin, cos = jnp.sin(angles)[:, None], jnp.cos(angles)[:, None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


class Block(nn.Module):
    """Attention and a gated MLP, each on a residual stream."""

    size: Size

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """Runs the block on `(batch, length, width)`; shaped for `nn.scan`."""
        width, hidden = self.size.width, self.size.hidden
        y = norm()(x)
        query, key, value = (self._heads(dense(width, "embed", "heads")(y)) for _ in range(3))
        causal = nn.make_causal_mask(x[..., 0])
        y = nn.dot_product_attention(rotate(query), rotate(key), value, mask=causal)
        x = spread(x + dense(width, "heads", "embed")(y.reshape(x.shape)), None)
        y = norm()(x)
        gated = nn.silu(dense(hidden, "embed", "mlp")(y))
        y = spread(gated * dense(hidden, "embed", "mlp")(y), "mlp")
        return spread(x + dense(width, "mlp", "embed")(y), None), None

    def _heads(self, x: jax.Array) -> jax.Array:
        return spread(x.reshape(*x.shape[:2], self.size.heads, -1), "heads", None)


class Decoder(nn.Module):
    """Tokens to logits of the next token.

    Attributes:
        size: the sizes.
        remat: whether a block computes its intermediate values again in the backward pass.
        scan: whether the blocks are one loop over stacked params, which compiles as fast as one
            block. Otherwise each is on its own.
    """

    size: Size
    remat: bool = True
    scan: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Gives logits `(batch, length, vocabulary)` for tokens `(batch, length)`."""
        size = self.size
        named = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocabulary", "embed"))
        x = nn.Embed(size.vocabulary, size.width, embedding_init=named)(tokens)
        x = spread(x, None)
        # Outside of a loop XLA would find the values that are there already.
        block = nn.remat(Block, prevent_cse=not self.scan) if self.remat else Block
        if self.scan:
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=size.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = stack(size, name="blocks")(x, None)
        else:
            for _ in range(size.layers):
                x, _ = block(size)(x)
        return spread(dense(size.vocabulary, "embed", "vocabulary")(norm()(x)), "vocabulary")


TENSOR = {"heads": "model", "mlp": "model", "vocabulary": "model"}
"""Rules: each block's projections are split as in Megatron-LM, over the axis `model`."""

SHARDED = {**TENSOR, "embed": "batch"}
"""Rules: what is left of each kernel is split over the axis `batch`, too, as in FSDP."""

ACTIVATIONS = [("rows", "batch"), *TENSOR.items()]
"""Rules for `nn.logical_axis_rules`, while the model is traced."""
