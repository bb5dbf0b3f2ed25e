"""Random linen modules: a list of blocks on arrays of shape (batch, time, features)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from hypothesis import strategies as st

from jaxlayer_core.signature import FLAGS

FEATURES = 4
Blocks = tuple[Any, ...]
"""Names of blocks; a pair is a name and the blocks inside."""


class Counter(nn.Module):
    """State that is no float."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        count = self.variable("counts", "n", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing() and self.is_mutable_collection("counts"):
            count.value += 1
        return x * (1 + count.value)


class Noise(nn.Module):
    """Draws from a stream of its own."""

    train: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        if not self.train:
            return x
        return x + jax.random.normal(self.make_rng("noise"), x.shape)


class Step(nn.Module):
    """What `nn.scan` repeats over time."""

    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        carry = nn.tanh(nn.Dense(FEATURES)(carry) + x)
        return carry, carry


class Deep(nn.Module):
    """What `nn.scan` stacks in depth, with dropout in each layer."""

    train: bool

    @nn.compact
    def __call__(self, x: Any, _: None) -> Any:
        x = nn.Dense(FEATURES)(x)
        return nn.Dropout(0.3, deterministic=not self.train)(x), None


def leaf_block(name: str, x: Any, train: bool) -> Any:
    """Applies a block without blocks inside; called in a compact method."""
    if name == "embed":
        ids = jnp.clip(jnp.abs(x[..., 0]) * 3, 0, 6).astype(jnp.int32)
        return x + nn.Embed(7, FEATURES)(ids)
    if name == "shared":
        dense = nn.Dense(FEATURES)
        return dense(nn.relu(dense(x)))
    if name == "attention":
        return nn.MultiHeadDotProductAttention(2, dropout_rate=0.2, deterministic=not train)(x)
    if name == "scan time":
        scan = nn.scan(
            Step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
        )
        return scan()(jnp.zeros_like(x[:, 0]), x)[1]
    if name == "scan depth":
        scan = nn.scan(
            Deep,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=2,
        )
        return scan(train)(x, None)[0]
    if name == "vmap":
        mapped = nn.vmap(
            nn.Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=1,
            out_axes=1,
        )
        return mapped(FEATURES)(x)
    if name == "half":
        return nn.Dense(FEATURES, param_dtype=jnp.bfloat16)(x).astype(jnp.float32)
    return SIMPLE[name](train)(x)


SIMPLE = {
    "dense": lambda train: nn.Dense(FEATURES),
    "conv": lambda train: nn.Conv(FEATURES, (2,)),
    "batch norm": lambda train: nn.BatchNorm(use_running_average=not train, momentum=0.8),
    "layer norm": lambda train: nn.LayerNorm(),
    "group norm": lambda train: nn.GroupNorm(num_groups=2),
    "dropout": lambda train: nn.Dropout(0.4, deterministic=not train),
    "gru": lambda train: nn.RNN(nn.GRUCell(FEATURES)),
    "lstm": lambda train: nn.RNN(nn.OptimizedLSTMCell(FEATURES)),
    "weight norm": lambda train: nn.WeightNorm(nn.Dense(FEATURES)),
    "spectral norm": lambda train: (
        lambda x: nn.SpectralNorm(nn.Dense(FEATURES))(x, update_stats=train)
    ),
    "partitioned": lambda train: nn.Dense(
        FEATURES, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    ),
    "counter": lambda train: Counter(),
    "noise": lambda train: Noise(train),
    "tanh": lambda train: nn.tanh,
}
LEAVES = [*SIMPLE, "embed", "shared", "attention", "scan time", "scan depth", "vmap", "half"]
HOLDERS = ["residual", "nested", "remat", "named"]


def apply_blocks(blocks: Blocks, x: Any, train: bool) -> Any:
    """Applies blocks in turn; called in a compact method."""
    for number, block in enumerate(blocks):
        if isinstance(block, str):
            x = leaf_block(block, x, train)
        else:
            holder, inner = block
            if holder == "residual":
                x = x + apply_blocks(inner, x, train)
            elif holder == "remat":
                x = nn.remat(Inner, static_argnums=(2,))(inner)(x, train)
            else:
                x = Inner(inner, name=f"block_{number}_axes" if holder == "named" else None)(
                    x, train
                )
    return x


class Inner(nn.Module):
    """A module inside."""

    blocks: Blocks

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return apply_blocks(self.blocks, x, train)


def module_class(flag: str, required: bool) -> type[nn.Module]:
    """A class of modules whose train flag has this name."""
    namespace: dict[str, Any] = {"nn": nn, "apply_blocks": apply_blocks}
    default = "" if required else f"={not FLAGS[flag]}"
    exec(
        "class Net(nn.Module):\n"
        "    blocks: tuple\n"
        "    @nn.compact\n"
        f"    def __call__(self, x, {flag}{default}):\n"
        f"        return apply_blocks(self.blocks, x, {flag} is {FLAGS[flag]})\n",
        namespace,
    )
    return namespace["Net"]


def blocks(depth: int = 2) -> st.SearchStrategy[Blocks]:
    """A few blocks, some of which hold others."""
    one = st.sampled_from(LEAVES)
    if depth:
        one = one | st.tuples(st.sampled_from(HOLDERS), blocks(depth - 1))
    return st.lists(one, min_size=1, max_size=3).map(tuple)


@st.composite
def linen_modules(draw: Any) -> tuple[nn.Module, str]:
    """A module and the name of its flag."""
    flag = draw(st.sampled_from(sorted(FLAGS)))
    return module_class(flag, draw(st.booleans()))(draw(blocks())), flag
