"""Random Haiku functions: a list of blocks on arrays of shape (batch, time, features)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from hypothesis import strategies as st

from jaxlayer_core.signature import FLAGS

FEATURES = 4
Blocks = tuple[Any, ...]
"""Names of blocks; a pair is a name and the blocks inside."""


def counter(x: Any, train: bool) -> Any:
    """State that is no float."""
    count = hk.get_state("count", (), jnp.int32, init=jnp.zeros)
    if train:
        hk.set_state("count", count + 1)
    return x * (1 + count)


def new_key_data() -> Any:
    return jax.random.key_data(hk.next_rng_key())


def key_in_state(x: Any, train: bool) -> Any:
    """State that is a key, drawn when the model is initialised."""
    key = hk.get_state("key", (2,), jnp.uint32, init=lambda *_: new_key_data())
    first, second = jax.random.split(jax.random.wrap_key_data(key))
    if train:
        hk.set_state("key", jax.random.key_data(first))
    return x + jax.random.normal(second, x.shape)


def noise(x: Any, train: bool) -> Any:
    return x + jax.random.normal(hk.next_rng_key(), x.shape) if train else x


def dropout(x: Any, train: bool) -> Any:
    return hk.dropout(hk.next_rng_key(), 0.4, x) if train else x


def embed(x: Any, train: bool) -> Any:
    ids = jnp.clip(jnp.abs(x[..., 0]) * 3, 0, 6).astype(jnp.int32)
    return x + hk.Embed(7, FEATURES)(ids)


def shared(x: Any, train: bool) -> Any:
    linear = hk.Linear(FEATURES)
    return linear(jax.nn.relu(linear(x)))


def recurrent(core: Callable[[int], Any]) -> Callable[[Any, bool], Any]:
    def block(x: Any, train: bool) -> Any:
        cell = core(FEATURES)
        outputs, _ = hk.dynamic_unroll(cell, x, cell.initial_state(x.shape[0]), time_major=False)
        return outputs

    return block


def attention(x: Any, train: bool) -> Any:
    init = hk.initializers.VarianceScaling(1.0)
    return hk.MultiHeadAttention(2, 2, model_size=FEATURES, w_init=init)(x, x, x)


def scan(x: Any, train: bool) -> Any:
    """Noise and a shared layer, several times."""
    linear = hk.Linear(FEATURES)

    def step(carry: Any, _: None) -> Any:
        carry = jnp.tanh(linear(carry))
        return (dropout(carry, train) if train else carry), None

    if hk.running_init():
        return step(x, None)[0]
    return hk.scan(step, x, None, length=2)[0]


def stack(x: Any, train: bool) -> Any:
    return hk.experimental.layer_stack(2)(lambda x: jax.nn.relu(hk.Linear(FEATURES)(x)))(x)


def branches(x: Any, train: bool) -> Any:
    one, two = hk.Linear(FEATURES, name="one"), hk.Linear(FEATURES, name="two")
    if hk.running_init():
        return one(x) + two(x)
    return hk.cond(jnp.sum(x) > 0, one, two, x)


def moving_average(x: Any, train: bool) -> Any:
    average = hk.ExponentialMovingAverage(0.9)(x.mean((0, 1)), update_stats=train)
    return x - average


def half(x: Any, train: bool) -> Any:
    w = hk.get_parameter("half", (FEATURES,), jnp.bfloat16, init=hk.initializers.RandomNormal())
    return x * w.astype(jnp.float32)


LEAVES: dict[str, Callable[[Any, bool], Any]] = {
    "linear": lambda x, train: hk.Linear(FEATURES)(x),
    "conv": lambda x, train: hk.Conv1D(FEATURES, 2)(x),
    "batch norm": lambda x, train: hk.BatchNorm(True, True, 0.8)(x, train),
    "layer norm": lambda x, train: hk.LayerNorm(-1, True, True)(x),
    "mlp": lambda x, train: hk.nets.MLP([3, FEATURES])(
        x, 0.2 if train else None, hk.next_rng_key() if train else None
    ),
    "spectral norm": lambda x, train: (
        x
        @ hk.SpectralNorm()(
            hk.get_parameter("w", (FEATURES, FEATURES), init=hk.initializers.RandomNormal()),
            update_stats=train,
        )
    ),
    "gru": recurrent(hk.GRU),
    "lstm": recurrent(hk.LSTM),
    "rnn": recurrent(hk.VanillaRNN),
    "tanh": lambda x, train: jnp.tanh(x),
    "counter": counter,
    "key in state": key_in_state,
    "noise": noise,
    "dropout": dropout,
    "embed": embed,
    "shared": shared,
    "attention": attention,
    "scan": scan,
    "stack": stack,
    "branches": branches,
    "moving average": moving_average,
    "half": half,
}
HOLDERS = ["residual", "nested", "remat", "scope"]


class Inner(hk.Module):
    """A module inside."""

    def __init__(self, blocks: Blocks, name: str | None = None) -> None:
        super().__init__(name=name)
        self.blocks = blocks

    def __call__(self, x: Any, train: bool) -> Any:
        return apply_blocks(self.blocks, x, train)


def apply_blocks(blocks: Blocks, x: Any, train: bool) -> Any:
    """Applies blocks in turn, inside a transformed function."""
    for number, block in enumerate(blocks):
        if isinstance(block, str):
            with hk.name_scope(f"block_{number}"):
                x = LEAVES[block](x, train)
            continue
        holder, inner = block
        if holder == "residual":
            with hk.name_scope(f"residual_{number}"):
                x = x + apply_blocks(inner, x, train)
        elif holder == "nested":
            x = Inner(inner)(x, train)
        elif holder == "remat":
            x = hk.remat(Inner(inner), static_argnums=1)(x, train)
        else:
            with hk.name_scope(f"scope_{number}_axes"):
                x = apply_blocks(inner, x, train)
    return x


def blocks(depth: int = 2) -> st.SearchStrategy[Blocks]:
    """A few blocks, some of which hold others."""
    one = st.sampled_from(list(LEAVES))
    if depth:
        one = one | st.tuples(st.sampled_from(HOLDERS), blocks(depth - 1))
    return st.lists(one, min_size=1, max_size=3).map(tuple)


@dataclasses.dataclass(frozen=True)
class Composition:
    """A function that applies blocks.

    Attributes:
        blocks: the blocks.
        flag: name of its train flag.
        required: whether the flag has no default.
    """

    blocks: Blocks
    flag: str
    required: bool

    def make(self) -> Callable[..., Any]:
        """The function."""
        default = "" if self.required else f"={not FLAGS[self.flag]}"
        namespace: dict[str, Any] = {"apply_blocks": apply_blocks, "blocks": self.blocks}
        exec(
            f"def model(x, {self.flag}{default}):\n"
            f"    return apply_blocks(blocks, x, {self.flag} is {FLAGS[self.flag]})\n",
            namespace,
        )
        return namespace["model"]


def haiku_functions() -> st.SearchStrategy[Composition]:
    """Functions that use Haiku modules."""
    return st.builds(Composition, blocks(), st.sampled_from(sorted(FLAGS)), st.booleans())
