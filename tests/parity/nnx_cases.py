"""Flax NNX: its layers, transforms and bridges, and models as its users write them."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .cases import DETERMINISTIC, RUNNING_AVERAGE, TRAIN, Cases, booleans, f32, floats, given, ids

CASES = Cases("nnx")
add = CASES.add
of = functools.partial
NO_PARAMS = {"gradients": "nothing is trained", "fit": "nothing is trained"}


def rngs() -> nnx.Rngs:
    """Of modules that exist before their layer."""
    return nnx.Rngs(3, dropout=4)


def listed(modules: list[Any]) -> Any:
    """A list of modules as an attribute, in any version of Flax."""
    return nnx.List(modules) if hasattr(nnx, "List") else modules


# ---- layers ---------------------------------------------------------------------------
add("nnx.Linear", lambda: of(nnx.Linear, 3, 4), floats(2, 3), sample=True)
add("nnx.Linear(instance)", lambda: nnx.Linear(3, 4, rngs=rngs()), floats(2, 3))
add(
    "nnx.Linear(no bias, bf16)",
    lambda: of(nnx.Linear, 3, 4, use_bias=False, dtype=jnp.bfloat16),
    floats(2, 3),
)
add(
    "nnx.Linear(param_dtype bf16)",
    lambda: of(nnx.Linear, 3, 4, param_dtype=jnp.bfloat16),
    floats(2, 3),
)
add(
    "nnx.LinearGeneral", lambda: of(nnx.LinearGeneral, (2, 3), (4, 5), axis=(1, 2)), floats(2, 2, 3)
)
add("nnx.Einsum", lambda: of(nnx.Einsum, "abc,cd->abd", (3, 4), (4,)), floats(2, 5, 3))
add("nnx.Conv", lambda: of(nnx.Conv, 3, 4, (3, 3), strides=2), floats(2, 6, 6, 3))
add(
    "nnx.Conv(circular, groups)",
    lambda: of(nnx.Conv, 4, 4, (3,), padding="CIRCULAR", feature_group_count=2),
    floats(2, 6, 4),
)
add("nnx.ConvTranspose", lambda: of(nnx.ConvTranspose, 3, 4, (2, 2), strides=2), floats(2, 3, 3, 3))
add("nnx.Embed", lambda: of(nnx.Embed, 10, 4), given(ids(2, 3)))
add("nnx.Embed(attend)", lambda: of(nnx.Embed, 10, 4), floats(2, 4), method="attend")
add("nnx.BatchNorm", lambda: of(nnx.BatchNorm, 3), floats(4, 3), sample=True)
add(
    "nnx.BatchNorm(call flag)",
    lambda: of(nnx.BatchNorm, 3),
    given(f32(4, 3), mask=booleans(4, 1)),
    **RUNNING_AVERAGE,
)
add("nnx.LayerNorm", lambda: of(nnx.LayerNorm, 3), floats(2, 4, 3))
add("nnx.RMSNorm", lambda: of(nnx.RMSNorm, 3), floats(2, 3))
add("nnx.GroupNorm", lambda: of(nnx.GroupNorm, 4, 2), floats(2, 5, 4))
add("nnx.Dropout", lambda: of(nnx.Dropout, 0.5), floats(8, 4), lacks=NO_PARAMS)
add("nnx.Dropout(no rngs of its own)", lambda: nnx.Dropout(0.5), floats(8, 4), lacks=NO_PARAMS)
add(
    "nnx.Dropout(flag)",
    lambda: nnx.Dropout(0.5, broadcast_dims=(0,), rngs=rngs()),
    floats(8, 4),
    lacks=NO_PARAMS,
    **DETERMINISTIC,
)
add(
    "nnx.MultiHeadAttention",
    lambda: of(nnx.MultiHeadAttention, 2, 8, decode=False, dropout_rate=0.2),
    given(f32(2, 5, 8), mask=np.tril(np.ones((2, 1, 5, 5))).astype(bool)),
    sample=True,
)


def decoding() -> nnx.Module:
    module = nnx.MultiHeadAttention(2, 8, 8, decode=True, rngs=rngs())
    module.init_cache((2, 6, 8))
    return module


add("nnx.MultiHeadAttention(decode)", decoding, floats(2, 1, 8), batched=False)
# ---- recurrence -----------------------------------------------------------------------
add(
    "nnx.LSTMCell", lambda: of(nnx.LSTMCell, 3, 4), given((f32(2, 4), f32(2, 4, seed=3)), f32(2, 3))
)
add("nnx.GRUCell", lambda: of(nnx.GRUCell, 3, 4), given(f32(2, 4), f32(2, 3)))
add("nnx.RNN(LSTM)", lambda: recurrent, floats(2, 5, 3))
add(
    "nnx.RNN(seq_lengths)",
    lambda: recurrent,
    given(f32(2, 5, 3), seq_lengths=np.array([3, 5], "int32")),
)
add("nnx.Bidirectional", lambda: both_ways, floats(2, 5, 3))


def recurrent(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=rngs))


def both_ways(rngs: nnx.Rngs) -> nnx.Module:
    forward, backward = (nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs)) for _ in range(2))
    return nnx.Bidirectional(forward, backward)


# ---- adaptors -------------------------------------------------------------------------
add("nnx.LoRA", lambda: of(nnx.LoRA, 3, 2, 4), floats(2, 3))
add("nnx.LoRALinear", lambda: of(nnx.LoRALinear, 3, 4, lora_rank=2), floats(2, 3))


class Block(nnx.Module):
    """What most users write: no flag in the call."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(nnx.relu(self.norm(self.dense(x))))


class Deep(nnx.Module):
    """Two layers of dropout, which must differ; a submodule in two places; a number as state."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.blocks = listed([Block(3, rngs=rngs), Block(3, rngs=rngs)])
        self.again = self.blocks[0].dense
        self.calls = Count(jnp.zeros((), "int32"))

    def __call__(self, x):
        self.calls.copy_from(Count(self.calls[...] + 1))  # as all versions of Flax can
        for block in self.blocks:
            x = block(x)
        return {"hidden": x, "out": self.again(x)}

    def encode(self, x):
        return self.blocks[0](x)


class Count(nnx.Variable):
    """A type of the user's own."""


add("nnx model", lambda: Deep, floats(4, 3))
add("nnx model(instance)", lambda: Deep(rngs=rngs()), floats(4, 3), sample=True)
add("nnx model(method)", lambda: Deep, floats(4, 3), method="encode")
add(
    "nnx.Sequential",
    lambda: nnx.Sequential(nnx.Linear(3, 4, rngs=rngs()), nnx.relu, Block(4, rngs=rngs())),
    floats(4, 3),
)


class Flagged(nnx.Module):
    """A flag in the call, `rngs` in the call, a static option, and two inputs."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, y, scale=1.0, *, train: bool, rngs: nnx.Rngs):
        return self.dropout(self.dense(x * scale), deterministic=not train, rngs=rngs) + y


add(
    "nnx flag and rngs in the call",
    lambda: Flagged,
    given(f32(4, 3), f32(4, 4), scale=2.0),
    **TRAIN,
)


class Penalised(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, x):
        x = self.dense(x)
        self.sow(losses, "activity", jnp.mean(x**2))
        self.sow(nnx.Intermediate, "hidden", x)
        return x


class losses(nnx.Variable):
    """A collection is named after its type."""


add("nnx sown losses", lambda: Penalised, floats(4, 3), sown=("losses",))


class Normalised(nnx.Module):
    def __init__(self, kind: str, *, rngs: nnx.Rngs) -> None:
        self.norm = getattr(nnx, kind)(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


if hasattr(nnx, "WeightNorm"):
    # They write the kernel that they normalise, which is no mistake of the layer to forget.
    writes = {
        "ignores": ("the NNX module Normalised writes the param:UserWarning",),
        "lacks": {"fit": "a call writes the kernel, which a layer leaves to the optimizer"},
    }
    add("nnx.WeightNorm", lambda: of(Normalised, "WeightNorm"), floats(2, 3), **writes)
    add("nnx.SpectralNorm", lambda: of(Normalised, "SpectralNorm"), floats(2, 3), **writes)


# ---- transforms -------------------------------------------------------------------------
class Stack(nnx.Module):
    """Layers made by `vmap` and run by `scan`, as in Flax's guide."""

    def __init__(self, make: Any, depth: int, *, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def create(rngs):
            return make(3, 3, rngs=rngs)

        self.blocks = create(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, block):
            return block(x)

        return forward(x, self.blocks)


add("nnx.scan over a stack", lambda: of(Stack, nnx.Linear, 2), floats(4, 3), sample=True)
if hasattr(nnx, "List"):  # before, all layers of a stack shared one stream, which had to be split
    add("nnx.scan with dropout", lambda: of(Stack, Dropping, 2), floats(4, 3))


class Dropping(Block):
    """A block for stacks."""

    def __init__(self, width: int, _: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(width, rngs=rngs)


class Rematerialised(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.block = Block(3, rngs=rngs)

    @nnx.remat
    def __call__(self, x):
        return self.block(x)


add("nnx.remat", lambda: Rematerialised, floats(4, 3))


class Jitted(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.block = Block(3, rngs=rngs)

    def __call__(self, x):
        return nnx.jit(lambda block, x: block(x))(self.block, x)


add("nnx.jit inside", lambda: Jitted, floats(4, 3))


class JittedMethod(Jitted):
    @nnx.jit
    def __call__(self, x):
        return self.block(x)


add("nnx.jit around __call__", lambda: JittedMethod, floats(4, 3))


class Ensemble(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=2)
        @nnx.vmap
        def create(rngs):
            return nnx.Linear(3, 4, rngs=rngs)

        self.members = create(rngs)

    def __call__(self, x):
        return nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(self.members, x)


add("nnx.vmap ensemble", lambda: Ensemble, floats(4, 3))


class Partitioned(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        self.dense = nnx.Linear(3, 4, kernel_init=init, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


add("nnx.with_partitioning", lambda: Partitioned, floats(4, 3))


# ---- the bridge -------------------------------------------------------------------------
class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(4)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


def bridged() -> nnx.Module:
    return nnx.bridge.ToNNX(Linen(), rngs=rngs()).lazy_init(f32(4, 3))


add("nnx.bridge.ToNNX", bridged, floats(4, 3), **TRAIN)


# ---- models on PyPI ----------------------------------------------------------------------
def published(name: str, *args: Any, **kwargs: Any) -> Any:
    """Gives a class of a package, with arguments, when asked."""
    module, _, called = name.rpartition(".")

    def make() -> Any:
        return of(getattr(importlib.import_module(module), called), *args, **kwargs)

    return make


SIZES = {"d_model": 8, "n_layers": 1, "forecast_horizon": 2, "d_state": 4, "headdim": 4}
add(
    "mamba2-jax forecaster (nnx)",
    published("mamba2_jax.modeling.Mamba2Forecaster", 3, **SIZES, chunk_size=4),
    floats(2, 8, 3),
    requires="mamba2-jax==1.1.2",
)
add(
    "mamba3-jax forecaster (nnx)",
    published("mamba3_jax.modeling.Mamba3Forecaster", 3, **SIZES, chunk_size=4),
    floats(2, 8, 3),
    requires="mamba3-jax==1.0.1",
)
add(
    "jraphx GCN (nnx)",
    published("jraphx.nn.models.GCN", 3, 4, 2, dropout_rate=0.3, norm="batch_norm"),
    given(f32(5, 3), np.array([[0, 1, 2, 3], [1, 2, 3, 4]], "int32")),
    batched=False,
    requires="jraphx==0.1.0",
)
add(
    "jraphx GAT (nnx)",
    published("jraphx.nn.models.GAT", 3, 4, 2, dropout_rate=0.3),
    given(f32(5, 3), np.array([[0, 1, 2, 3], [1, 2, 3, 4]], "int32")),
    batched=False,
    requires="jraphx==0.1.0",
)
add(
    "jraphx MLP (nnx)",
    published("jraphx.nn.models.MLP", [3, 4, 2], dropout_rate=0.3, norm="batch_norm"),
    floats(4, 3),
    requires="jraphx==0.1.0",
)
