"""Flax linen: its layers, lifted transforms and collections, and models like its examples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .cases import (
    DETERMINISTIC,
    IS_TRAINING,
    RUNNING_AVERAGE,
    TRAIN,
    TRAINING,
    UPDATE_STATS,
    Cases,
    booleans,
    by_attribute,
    f32,
    floats,
    given,
    ids,
    onehots,
)

CASES = Cases("linen")
add = CASES.add

# ---- layers ---------------------------------------------------------------------------
add("nn.Dense", lambda: nn.Dense(5), floats(2, 3), sample=True)
add("nn.Dense(bf16 compute)", lambda: nn.Dense(5, use_bias=False, dtype=jnp.bfloat16), floats(2, 3))
add(
    "nn.Dense(param_dtype bf16)",
    lambda: nn.Dense(5, param_dtype=jnp.bfloat16),
    floats(2, 3),
    sample=True,
)
add(
    "nn.DenseGeneral",
    lambda: nn.DenseGeneral((2, 3), axis=(-2, -1), batch_dims=(0,)),
    floats(2, 4, 5),
    batched=False,
)
add("nn.Einsum", lambda: nn.Einsum((3, 4, 5), "abc,cde->abde"), floats(2, 6, 3))
add("nn.Conv", lambda: nn.Conv(4, (3, 3), strides=2), floats(2, 8, 8, 3), sample=True)
add(
    "nn.Conv 1d CAUSAL",
    lambda: nn.Conv(4, (3,), padding="CAUSAL", kernel_dilation=2),
    floats(2, 8, 3),
)
add(
    "nn.Conv grouped CIRCULAR+mask",
    lambda: nn.Conv(
        4, (3, 3), padding="CIRCULAR", feature_group_count=2, mask=np.ones((3, 3, 1, 4), "float32")
    ),
    floats(2, 6, 6, 2),
)
add("nn.Conv unbatched", lambda: nn.Conv(4, (3,)), floats(8, 3))
add(
    "nn.ConvTranspose",
    lambda: nn.ConvTranspose(4, (3, 3), strides=(2, 2), transpose_kernel=True),
    floats(2, 4, 4, 3),
)
add("nn.ConvLocal", lambda: nn.ConvLocal(4, (3, 3)), floats(2, 5, 5, 3))
add("nn.Embed", lambda: nn.Embed(11, 4), given(ids(2, 5, n=11)))
add("nn.Embed.attend", lambda: nn.Embed(11, 4), floats(2, 4), method="attend")
add("nn.PReLU", lambda: nn.PReLU(), floats(2, 4))
add(
    "nn.Dropout(attr)",
    lambda: nn.Dropout(0.5),
    floats(4, 8),
    rngs=("dropout",),
    **by_attribute(DETERMINISTIC),
    lacks={"gradients": "nothing is trained", "fit": "nothing is trained"},
)
add(
    "nn.Dropout(call keyword)",
    lambda: nn.Dropout(0.5, broadcast_dims=(0,)),
    floats(4, 8),
    rngs=("dropout",),
    **DETERMINISTIC,
    lacks={"gradients": "nothing is trained", "fit": "nothing is trained"},
)
add(
    "nn.Dropout(own stream)",
    lambda: nn.Dropout(0.5, rng_collection="noise"),
    floats(4, 8),
    rngs=("noise",),
    **DETERMINISTIC,
    lacks={"gradients": "nothing is trained", "fit": "nothing is trained"},
)
add(
    "nn.BatchNorm(attr)",
    lambda: nn.BatchNorm(momentum=0.9),
    floats(4, 3),
    **by_attribute(RUNNING_AVERAGE),
    sample=True,
)
add(
    "nn.BatchNorm(call keyword)",
    lambda: nn.BatchNorm(),
    floats(4, 3),
    **RUNNING_AVERAGE,
    sample=True,
)
add(
    "nn.BatchNorm(mask)",
    lambda: nn.BatchNorm(axis=-1),
    given(f32(4, 5, 3), mask=booleans(4, 5, 1)),
    **RUNNING_AVERAGE,
)
add("nn.LayerNorm", lambda: nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=-1), floats(2, 4, 3))
add(
    "nn.LayerNorm(mask)",
    lambda: nn.LayerNorm(),
    given(f32(2, 5, 3), mask=np.ones((2, 5, 3), bool)),
)
add("nn.GroupNorm", lambda: nn.GroupNorm(num_groups=2), floats(2, 4, 4, 6))
add(
    "nn.GroupNorm(group_size)", lambda: nn.GroupNorm(num_groups=None, group_size=3), floats(2, 4, 6)
)
add("nn.RMSNorm", lambda: nn.RMSNorm(), floats(2, 4))
add("nn.InstanceNorm", lambda: nn.InstanceNorm(), floats(2, 4, 4, 3))
add(
    "nn.SpectralNorm(Dense)",
    lambda: nn.SpectralNorm(nn.Dense(4)),
    floats(2, 3),
    **UPDATE_STATS,
    sample=True,
)
add(
    "nn.SpectralNorm(Conv)",
    lambda: nn.SpectralNorm(nn.Conv(4, (3, 3)), n_steps=2),
    floats(2, 5, 5, 3),
    **UPDATE_STATS,
)
add("nn.WeightNorm(Dense)", lambda: nn.WeightNorm(nn.Dense(4)), floats(2, 3))
add(
    "nn.WeightNorm(Conv)",
    lambda: nn.WeightNorm(nn.Conv(4, (3,)), feature_axes=-1, variable_filter={"kernel"}),
    floats(2, 5, 3),
)
add(
    "nn.Sequential",
    lambda: nn.Sequential([nn.Dense(6), nn.relu, nn.LayerNorm(), nn.Dense(2)]),
    floats(2, 3),
)
add(
    "nn.Sequential(dict between layers)",
    lambda: nn.Sequential([_DictOut(), _DictIn()]),
    floats(2, 3),
)
add("nn.BatchApply", lambda: _BatchApplied(), floats(2, 3, 4))


class _BatchApplied(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchApply(nn.Dense(3), num_dims=2)(x)


class _DictOut(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {"a": nn.Dense(3)(x), "b": nn.Dense(3)(x)}


class _DictIn(nn.Module):
    @nn.compact
    def __call__(self, a, b):
        return a + nn.Dense(3)(b)


# ---- attention ------------------------------------------------------------------------
add(
    "nn.MultiHeadDotProductAttention+mask",
    lambda: nn.MultiHeadDotProductAttention(2, dropout_rate=0.1),
    given(f32(2, 5, 8), f32(2, 6, 8, seed=1), mask=booleans(2, 1, 5, 6)),
    rngs=("dropout",),
    **DETERMINISTIC,
)
add(
    "nn.MultiHeadDotProductAttention(attr flag), inputs_v",
    lambda: nn.MultiHeadDotProductAttention(
        2, qkv_features=4, out_features=3, dropout_rate=0.1, normalize_qk=True
    ),
    given(f32(2, 5, 8), f32(2, 6, 8, seed=1), f32(2, 6, 7)),
    rngs=("dropout",),
    **by_attribute(DETERMINISTIC),
)
add(
    "nn.MultiHeadAttention self+causal mask",
    lambda: nn.MultiHeadAttention(2),
    given(f32(2, 5, 8), mask=np.tril(np.ones((2, 1, 5, 5), "float32")).astype(bool)),
    sample=True,
)
add(
    "nn.SelfAttention",
    lambda: nn.SelfAttention(2, dropout_rate=0.2, broadcast_dropout=False),
    given(f32(2, 5, 8), mask=None),
    rngs=("dropout",),
    **DETERMINISTIC,
    ignores=("SelfAttention will be deprecated:DeprecationWarning",),
)
add(
    "nn.MultiHeadDotProductAttention(sow_weights)",
    lambda: nn.MultiHeadDotProductAttention(2),
    given(f32(2, 5, 8), sow_weights=True),
)


class DecodeLM(nn.Module):
    """Autoregressive cache collection (`cache`), as flax' lm1b: one token a step."""

    decode: bool = False
    length: int = 6

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8)(tokens)
        mask = None if self.decode else nn.make_causal_mask(tokens)
        x = nn.MultiHeadDotProductAttention(2, decode=self.decode)(x, mask=mask)
        return nn.Dense(11)(x)


add("causal language model", lambda: DecodeLM(), given(ids(2, 6, n=11)))


class DecodeStep(nn.Module):
    """A cache made lazily: it holds `length` steps; calls take one token (int counter state)."""

    length: int = 6

    @nn.compact
    def __call__(self, token):
        x = nn.Embed(11, 8)(token)
        first = not self.has_variable("cache", "keys")
        keys = self.variable("cache", "keys", jnp.zeros, (token.shape[0], self.length, 8))
        index = self.variable("cache", "index", lambda: jnp.array(0, jnp.int32))
        if not first:
            keys.value = keys.value.at[:, index.value].set(x[:, 0])
            index.value = index.value + 1
        w = nn.softmax(jnp.einsum("bqd,bkd->bqk", nn.Dense(8)(x), keys.value))
        return nn.Dense(11)(jnp.einsum("bqk,bkd->bqd", w, keys.value) + x)


add(
    "decode step with a cache collection",
    lambda: DecodeStep(),
    given(ids(2, 1, n=11)),
    batched=False,
)
add(
    "nn.MultiHeadAttention(decode=True)",
    lambda: nn.MultiHeadAttention(2, decode=True, qkv_features=8),
    floats(2, 1, 8),
    batched=False,
)


# ---- recurrence -----------------------------------------------------------------------
def _nn_carry(h, b=2):
    return (f32(b, h), f32(b, h, seed=3))


add("nn.LSTMCell(carry tuple)", lambda: nn.LSTMCell(4), given(_nn_carry(4), f32(2, 3)), sample=True)
add("nn.OptimizedLSTMCell", lambda: nn.OptimizedLSTMCell(4), given(_nn_carry(4), f32(2, 3)))
add("nn.GRUCell", lambda: nn.GRUCell(4), given(f32(2, 4), f32(2, 3)))
add("nn.MGUCell", lambda: nn.MGUCell(4), given(f32(2, 4), f32(2, 3)))
add("nn.SimpleCell", lambda: nn.SimpleCell(4, residual=True), given(f32(2, 4), f32(2, 3)))
add(
    "nn.ConvLSTMCell",
    lambda: nn.ConvLSTMCell(3, (3, 3)),
    given((f32(2, 4, 4, 3), f32(2, 4, 4, 3)), f32(2, 4, 4, 2)),
)
add("nn.RNN(LSTM)", lambda: nn.RNN(nn.LSTMCell(4)), floats(2, 5, 3))
add(
    "nn.RNN(GRU)+seq_lengths, return_carry",
    lambda: nn.RNN(nn.GRUCell(4), return_carry=True),
    given(f32(2, 5, 3), seq_lengths=np.array([3, 5], "int32")),
)
add(
    "nn.RNN(LSTM) initial_carry, time_major, reverse",
    lambda: nn.RNN(nn.LSTMCell(4), time_major=True, reverse=True, keep_order=True),
    given(f32(5, 2, 3), initial_carry=_nn_carry(4)),
    batched=False,
)
add(
    "nn.Bidirectional",
    lambda: nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4))),
    given(f32(2, 5, 3), seq_lengths=np.array([3, 5], "int32")),
)


class LSTMScan(nn.Module):
    """The nn.scan idiom of flax' docs (and its carry made inside)."""

    features: int = 4

    @functools.partial(
        nn.scan, variable_broadcast="params", in_axes=1, out_axes=1, split_rngs={"params": False}
    )
    @nn.compact
    def __call__(self, carry, x):
        return nn.OptimizedLSTMCell(self.features)(carry, x)


add(
    "nn.scan over an LSTM (decorated __call__)",
    lambda: LSTMScan(),
    given(_nn_carry(4), f32(2, 5, 3)),
)

# ---- lifted transforms ------------------------------------------------------------------


class ResBlock(nn.Module):
    features: int = 8

    @nn.compact
    def __call__(self, x, deterministic):
        y = nn.Dense(self.features)(nn.LayerNorm()(x))
        y = nn.Dropout(0.2)(y, deterministic=deterministic)
        return x + nn.gelu(y), jnp.mean(y)


class ScanStack(nn.Module):
    n: int = 3

    @nn.compact
    def __call__(self, x, deterministic=True):
        stack = nn.scan(
            ResBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.n,
        )
        x, aux = stack(name="blocks")(x, deterministic)
        return x, {"aux": aux}


add(
    "nn.scan layer stack+dropout",
    lambda: ScanStack(),
    floats(2, 8),
    rngs=("dropout",),
    **DETERMINISTIC,
    sample=True,
)


class RematStack(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        block = nn.remat(ResBlock, static_argnums=(2,))
        for i in range(2):
            x, _ = block(name=f"block_{i}")(x, not train)
        return x


add(
    "nn.remat(static_argnums)",
    lambda: RematStack(),
    floats(2, 8),
    rngs=("dropout",),
    **TRAIN,
    sample=True,
)


class VmapEnsemble(nn.Module):
    members: int = 3

    @nn.compact
    def __call__(self, x, deterministic: bool):
        ens = nn.vmap(
            ResBlock,
            in_axes=(None, None),
            out_axes=0,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            axis_size=self.members,
        )
        return ens()(x, deterministic)


add("nn.vmap ensemble", lambda: VmapEnsemble(), floats(2, 8), rngs=("dropout",), **DETERMINISTIC)
add("nn.remat_scan", lambda: nn.remat_scan(_Square, lengths=(2, 2))(), floats(2, 4))


class _Square(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.tanh(nn.Dense(x.shape[-1])(x))


class ScanBNBlock(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x, _):
        x = nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(x)
        return nn.relu(nn.Dense(x.shape[-1])(x)), None


class ScanBN(nn.Module):
    """Statistics stacked by nn.scan, one slice a layer."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        stack = nn.scan(
            ScanBNBlock,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=2,
        )
        return stack(train)(x, None)[0]


add("nn.scan stacking batch_stats", lambda: ScanBN(), floats(4, 3), **TRAIN)


class CondModel(nn.Module):
    @nn.compact
    def __call__(self, x, flag):
        if self.is_initializing():
            return nn.Dense(3, name="a")(x) + nn.Dense(3, name="b")(x)
        return nn.cond(
            flag,
            lambda m, v: nn.Dense(3, name="a")(v),
            lambda m, v: nn.Dense(3, name="b")(v),
            self,
            x,
        )


add("nn.cond(bool scalar array)", lambda: CondModel(), given(f32(2, 3), np.array(True)))


class TiedAE(nn.Module):
    """nn.map_variables, tied weights."""

    latents: int = 3

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        enc = nn.Dense(self.latents, use_bias=False, name="enc")
        z = enc(x)

        def tr(variables):
            return jax.tree.map(lambda a: a.T, variables)

        dec = nn.map_variables(
            lambda m, v: nn.Dense(d, use_bias=False, name="enc")(v), "params", tr, tr, mutable=True
        )
        return dec(self, z)


add("custom vjp: nn.custom_vjp (clipped gradients)", lambda: ClippedGrad(), floats(2, 3))


class ClippedGrad(nn.Module):
    @nn.compact
    def __call__(self, x):
        def f(mdl, x):
            return mdl(x)

        def fwd(mdl, x):
            return nn.vjp(f, mdl, x)

        def bwd(vjp_fn, y_t):
            return jax.tree.map(lambda g: jnp.clip(g, -0.1, 0.1), vjp_fn(y_t))

        return nn.custom_vjp(f, forward_fn=fwd, backward_fn=bwd)(nn.Dense(3), x)


# ---- metadata boxes ---------------------------------------------------------------------
add(
    "nn.with_partitioning Dense",
    lambda: nn.Dense(
        4, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    ),
    floats(2, 3),
    sample=True,
)
add(
    "nn.with_logical_partitioning MLP",
    lambda: LogicalMLP(),
    floats(2, 3),
    rngs=("dropout",),
    **DETERMINISTIC,
)


class LogicalMLP(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        x = nn.Dense(8, kernel_init=init)(x)
        x = nn.with_logical_constraint(x, ("batch", "mlp"))
        x = nn.Dropout(0.1)(nn.relu(x), deterministic=deterministic)
        return nn.Dense(2, kernel_init=init)(x)


class ScannedBoxes(nn.Module):
    """Boxes whose axis names grow under nn.scan (PARTITION_NAME metadata)."""

    @nn.compact
    def __call__(self, x):
        def body(mdl, c, _):
            k = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            return nn.tanh(nn.Dense(4, kernel_init=k, name="d")(c)), None

        return nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self, x, None)[0]


add("nn.scan over Partitioned boxes", lambda: ScannedBoxes(), floats(2, 4))

# ---- state of every kind -----------------------------------------------------------------


class Counter(nn.Module):
    @nn.compact
    def __call__(self, x):
        initialised = self.has_variable("counter", "count")
        count = self.variable("counter", "count", lambda: jnp.zeros((), jnp.int32))
        if initialised and self.is_mutable_collection("counter"):
            count.value += 1
        return nn.Dense(2)(x) * 1.0, count.value


add("int32 counter collection", lambda: Counter(), floats(2, 3), sample=True)


class SowAux(nn.Module):
    """Sows a loss and an intermediate (collections made by apply only)."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(4)(x))
        self.sow("losses", "l2", jnp.sum(h**2), reduce_fn=lambda a, b: a + b, init_fn=lambda: 0.0)
        self.sow("intermediates", "h", h)
        return nn.Dense(2)(h)


add("sow: losses+intermediates", lambda: SowAux(), floats(2, 3), sown=("losses",), sample=True)


class EMAVars(nn.Module):
    """BatchNorm and an own moving average; the flag has no default."""

    @nn.compact
    def __call__(self, x, training, scale=1.0):
        x = nn.BatchNorm(use_running_average=not training)(x)
        ema = self.variable("ema", "mean", jnp.zeros, (x.shape[-1],))
        if training and not self.is_initializing():
            ema.value = 0.9 * ema.value + 0.1 * x.mean(0)
        return nn.Dense(2)(x - ema.value) * scale


add(
    "BatchNorm + own ema collection, training= required",
    lambda: EMAVars(),
    given(f32(4, 3), scale=2.0),
    **TRAINING,
    sample=True,
)


class NoParams(nn.Module):
    def __call__(self, x, y=None):
        return x if y is None else x + y


add(
    "no parameters, None argument",
    lambda: NoParams(),
    given(f32(2, 3), None),
    lacks={"gradients": "nothing is trained", "fit": "nothing is trained"},
)


class SetupModel(nn.Module):
    """setup() style with lists and dicts of submodules."""

    sizes: tuple = (4, 3)
    dropout: float = 0.1

    def setup(self):
        self.layers = [nn.Dense(s) for s in self.sizes]
        self.heads = {"mean": nn.Dense(2), "std": nn.Dense(2)}
        self.drop = nn.Dropout(self.dropout)

    def encode(self, x, train=False):
        for layer in self.layers:
            x = self.drop(nn.relu(layer(x)), deterministic=not train)
        return x

    def __call__(self, x, train=False):
        h = self.encode(x, train=train)
        return {k: m(h) for k, m in self.heads.items()}


add("setup(): lists, dicts", lambda: SetupModel(), floats(2, 3), rngs=("dropout",), **TRAIN)
add(
    "setup(): method='encode'",
    lambda: SetupModel(),
    floats(8, 3),
    rngs=("dropout",),
    method="encode",
    **TRAIN,
)


class KwargsFlag(nn.Module):
    """The flag only exists inside **kwargs."""

    @nn.compact
    def __call__(self, x, **kwargs):
        x = nn.Dense(8)(x)
        x = nn.Dropout(0.5)(x, deterministic=not kwargs.get("train", False))
        return nn.Dense(2)(x)


add(
    "flag inside **kwargs",
    lambda: KwargsFlag(),
    floats(2, 3),
    rngs=("dropout",),
    **TRAIN,
    sample=True,
)


class ModeFlag(nn.Module):
    @nn.compact
    def __call__(self, x, *, mode: str):
        x = nn.Dropout(0.5)(nn.Dense(8)(x), deterministic=mode != "train")
        return nn.Dense(2)(x)


add(
    "string mode flag, keyword-only",
    lambda: ModeFlag(),
    floats(2, 3),
    rngs=("dropout",),
    train={"mode": "train"},
    eval={"mode": "eval"},
    explicit=True,
    sample=True,
)


class TwoFlags(nn.Module):
    """Two flags of opposite polarity in one signature (BERT with batch norm head)."""

    @nn.compact
    def __call__(self, x, deterministic: bool = True, use_running_average: bool = True):
        x = nn.BatchNorm(use_running_average=use_running_average)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.Dropout(0.5)(x, deterministic=deterministic))


add(
    "deterministic and use_running_average together",
    lambda: TwoFlags(),
    floats(4, 3),
    rngs=("dropout",),
    train={"deterministic": False, "use_running_average": False},
    eval={"deterministic": True, "use_running_average": True},
    sample=True,
)


class MergeFlag(nn.Module):
    """nn.merge_param: attribute or argument."""

    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x, deterministic: bool | None = None):
        det = nn.merge_param("deterministic", self.deterministic, deterministic)
        return nn.Dense(2)(nn.Dropout(0.5)(nn.Dense(8)(x), deterministic=det))


add(
    "nn.merge_param by attribute",
    lambda: MergeFlag(),
    floats(2, 3),
    rngs=("dropout",),
    **by_attribute(DETERMINISTIC),
    sample=True,
)
add(
    "nn.merge_param by argument",
    lambda: MergeFlag(),
    floats(2, 3),
    rngs=("dropout",),
    **DETERMINISTIC,
)
add(
    "attribute flag 'training'",
    lambda: TrainingAttr(),
    floats(4, 3),
    train_attrs={"training": True},
    eval_attrs={"training": False},
)


class TrainingAttr(nn.Module):
    training: bool = True
    norm: Any = nn.BatchNorm

    @nn.compact
    def __call__(self, x):
        x = self.norm(use_running_average=not self.training)(nn.Dense(4)(x))
        return nn.Dense(2)(x)


class ParentChild(nn.Module):
    """A submodule handed in as an attribute, flag forwarded."""

    backbone: nn.Module
    classes: int = 3

    @nn.compact
    def __call__(self, images, train: bool = True):
        return nn.Dense(self.classes)(
            self.backbone(images, train=train).reshape(images.shape[0], -1)
        )


add(
    "module as an attribute",
    lambda: ParentChild(SetupHead()),
    floats(2, 4, 4, 3),
    **TRAIN,
    sample=True,
)


class SetupHead(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), (2, 2))(x)))


class FourierComplex(nn.Module):
    """Complex parameters and a complex intermediate (SSM-like)."""

    @nn.compact
    def __call__(self, x):
        lam = self.param(
            "lam", lambda k, s: jax.random.normal(k, s, jnp.complex64) * 0.1, (x.shape[-1],)
        )
        y = jnp.fft.ifft(jnp.fft.fft(x, axis=1) * lam, axis=1)
        return y.real, y


add("complex64 params and output", lambda: FourierComplex(), floats(2, 4, 3), sample=True)


class VectorQuantizerFlax(nn.Module):
    """EMA codebook in its own collection; int output."""

    codes: int = 5

    @nn.compact
    def __call__(self, x, is_training: bool):
        z = nn.Dense(3)(x)
        book = self.variable(
            "vq",
            "codebook",
            lambda: jax.random.normal(
                self.make_rng("params") if self.is_initializing() else jax.random.PRNGKey(0),
                (self.codes, 3),
            ),
        )
        d = jnp.sum((z[..., None, :] - book.value) ** 2, -1)
        idx = jnp.argmin(d, -1)
        q = book.value[idx]
        if is_training and not self.is_initializing():
            oh = jax.nn.one_hot(idx, self.codes)
            flat = oh.reshape(-1, self.codes)
            book.value = 0.9 * book.value + 0.1 * (flat.T @ z.reshape(-1, 3)) / (
                flat.sum(0)[:, None] + 1e-3
            )
        return z + jax.lax.stop_gradient(q - z), idx


add(
    "VQ with an EMA codebook collection",
    lambda: VectorQuantizerFlax(),
    floats(2, 4, 6),
    **IS_TRAINING,
    sample=True,
)

# ---- in the style of flax' own examples ------------------------------------------------


class CNN(nn.Module):
    """examples/mnist"""

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        return nn.Dense(10)(nn.relu(nn.Dense(16)(x)))


add("flax example: mnist", lambda: CNN(), floats(2, 8, 8, 1))


class FlaxResNetBlock(nn.Module):
    filters: int
    conv: Any
    norm: Any
    act: Callable
    strides: tuple = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.act(self.norm()(self.conv(self.filters, (3, 3), self.strides)(x)))
        y = self.norm(scale_init=nn.initializers.zeros_init())(self.conv(self.filters, (3, 3))(y))
        if residual.shape != y.shape:
            residual = self.norm(name="norm_proj")(
                self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(residual)
            )
        return self.act(residual + y)


class FlaxResNet(nn.Module):
    """examples/imagenet/models.py"""

    stage_sizes: tuple
    num_classes: int
    block_cls: Any = FlaxResNetBlock
    num_filters: int = 8
    dtype: Any = jnp.float32
    act: Callable = nn.relu
    conv: Any = nn.Conv

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = functools.partial(self.conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = nn.relu(
            norm(name="bn_init")(
                conv(self.num_filters, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(
                    x
                )
            )
        )
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, n in enumerate(self.stage_sizes):
            for j in range(n):
                x = self.block_cls(
                    self.num_filters * 2**i,
                    strides=(2, 2) if i > 0 and j == 0 else (1, 1),
                    conv=conv,
                    norm=norm,
                    act=self.act,
                )(x)
        x = jnp.mean(x, axis=(1, 2))
        return jnp.asarray(nn.Dense(self.num_classes, dtype=self.dtype)(x), self.dtype)


add(
    "flax example: imagenet ResNet",
    lambda: FlaxResNet((1, 1), 5),
    floats(2, 16, 16, 3),
    **TRAIN,
)
add(
    "flax example: imagenet ResNet bf16",
    lambda: FlaxResNet((1, 1), 5, dtype=jnp.bfloat16),
    floats(2, 16, 16, 3),
    **TRAIN,
)


class VAEEncoder(nn.Module):
    latents: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16, name="fc1")(x))
        return nn.Dense(self.latents, name="fc2_mean")(x), nn.Dense(
            self.latents, name="fc2_logvar"
        )(x)


class VAEDecoder(nn.Module):
    @nn.compact
    def __call__(self, z):
        return nn.Dense(12, name="fc2")(nn.relu(nn.Dense(16, name="fc1")(z)))


class FlaxVAE(nn.Module):
    """examples/vae: takes a key as an argument."""

    latents: int = 3

    def setup(self):
        self.encoder = VAEEncoder(self.latents)
        self.decoder = VAEDecoder()

    def __call__(self, x, z_rng):
        mean, logvar = self.encoder(x)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(z_rng, logvar.shape)
        return self.decoder(z), mean, logvar

    def generate(self, z):
        return nn.sigmoid(self.decoder(z))


add(
    "flax example: vae, PRNG key as an argument",
    lambda: FlaxVAE(),
    given(f32(2, 12), np.array([0, 7], "uint32")),
    batched=False,
)
add("flax example: vae.generate", lambda: FlaxVAE(), floats(2, 3), method="generate")


class VAEOutput(NamedTuple):
    image: Any
    mean: Any
    variance: Any
    logits: Any


class StreamVAE(nn.Module):
    """A VAE that samples in inference too, from its own stream."""

    @nn.compact
    def __call__(self, x):
        mean, logvar = VAEEncoder(3)(x)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(self.make_rng("latent"), mean.shape)
        return VAEOutput(VAEDecoder()(z), mean, jnp.exp(logvar), None)


add(
    "VAE with stream 'latent' in inference too",
    lambda: StreamVAE(),
    floats(2, 12),
    rngs=("latent",),
    sample=True,
)


class Seq2seq(nn.Module):
    """examples/seq2seq: teacher forcing, an rng stream named 'lstm', samples ids."""

    teacher_force: bool = True
    hidden: int = 8
    vocab: int = 7

    @nn.compact
    def __call__(self, encoder_inputs, decoder_inputs):
        seq_len = jnp.argmax(encoder_inputs[..., -1], axis=-1)
        enc = nn.RNN(nn.LSTMCell(self.hidden), return_carry=True, name="encoder")
        carry, _ = enc(encoder_inputs, seq_lengths=seq_len)
        cell = nn.LSTMCell(self.hidden, name="decoder_cell")
        proj = nn.Dense(self.vocab, name="projection")

        def step(mdl, c, x):
            carry, last = c
            if not self.teacher_force:
                x = last
            carry, y = cell(carry, x)
            logits = proj(y)
            tok = jax.random.categorical(self.make_rng("lstm"), logits)
            return (carry, jax.nn.one_hot(tok, self.vocab)), (logits, tok)

        scan = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False, "lstm": True},
            in_axes=1,
            out_axes=1,
        )
        _, (logits, toks) = scan(self, (carry, decoder_inputs[:, 0]), decoder_inputs)
        return logits, toks


add(
    "flax example: seq2seq (teacher_force attr, stream 'lstm')",
    lambda: Seq2seq(),
    given(onehots(2, 5, 7), onehots(2, 4, 7, 1)),
    train_attrs={"teacher_force": True},
    eval_attrs={"teacher_force": False},
    rngs=("lstm",),
    layer={"training_arg": "teacher_force"},
)


@flax.struct.dataclass
class TransformerConfig:
    """examples/wmt, lm1b: everything, `deterministic` and `decode` too, is in the config."""

    vocab_size: int = 13
    output_vocab_size: int = 13
    share_embeddings: bool = False
    dtype: Any = jnp.float32
    emb_dim: int = 8
    num_heads: int = 2
    num_layers: int = 1
    qkv_dim: int = 8
    mlp_dim: int = 16
    max_len: int = 16
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    deterministic: bool = False
    decode: bool = False
    kernel_init: Callable = nn.initializers.xavier_uniform()
    bias_init: Callable = nn.initializers.normal(stddev=1e-6)


class WmtMlp(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        x = nn.relu(
            nn.Dense(c.mlp_dim, dtype=c.dtype, kernel_init=c.kernel_init, bias_init=c.bias_init)(x)
        )
        x = nn.Dropout(c.dropout_rate)(x, deterministic=c.deterministic)
        x = nn.Dense(c.emb_dim, dtype=c.dtype)(x)
        return nn.Dropout(c.dropout_rate)(x, deterministic=c.deterministic)


class WmtBlock(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x, encoded=None, mask=None, cross_mask=None):
        c = self.config
        attn = functools.partial(
            nn.MultiHeadDotProductAttention,
            num_heads=c.num_heads,
            qkv_features=c.qkv_dim,
            dropout_rate=c.attention_dropout_rate,
            deterministic=c.deterministic,
        )
        x = x + attn(decode=c.decode and encoded is not None)(nn.LayerNorm()(x), mask=mask)
        if encoded is not None:
            x = x + attn()(nn.LayerNorm()(x), encoded, mask=cross_mask)
        return x + WmtMlp(c)(nn.LayerNorm()(x))


class WmtTransformer(nn.Module):
    config: TransformerConfig

    def setup(self):
        c = self.config
        self.src_embed = nn.Embed(c.vocab_size, c.emb_dim)
        self.tgt_embed = nn.Embed(c.output_vocab_size, c.emb_dim)
        self.enc = [WmtBlock(c) for _ in range(c.num_layers)]
        self.dec = [WmtBlock(c) for _ in range(c.num_layers)]
        self.logits = nn.Dense(c.output_vocab_size)

    def encode(self, inputs, inputs_positions=None, inputs_segmentation=None):
        mask = nn.make_attention_mask(inputs > 0, inputs > 0)
        x = self.src_embed(inputs)
        for b in self.enc:
            x = b(x, mask=mask)
        return x

    def __call__(
        self,
        inputs,
        targets,
        inputs_positions=None,
        targets_positions=None,
        inputs_segmentation=None,
        targets_segmentation=None,
    ):
        encoded = self.encode(inputs, inputs_positions, inputs_segmentation)
        mask = nn.combine_masks(
            nn.make_attention_mask(targets > 0, targets > 0), nn.make_causal_mask(targets)
        )
        cross = nn.make_attention_mask(targets > 0, inputs > 0)
        y = self.tgt_embed(jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1])
        for b in self.dec:
            y = b(y, encoded, mask, cross)
        return self.logits(y)


_CFG = {
    "train_attrs": {"config": TransformerConfig(deterministic=False)},
    "eval_attrs": {"config": TransformerConfig(deterministic=True)},
}
add(
    "flax example: wmt transformer (config.deterministic)",
    lambda: WmtTransformer(TransformerConfig()),
    given(ids(2, 5, n=12) + 1, ids(2, 4, n=12, seed=1) + 1),
    rngs=("dropout",),
    **_CFG,
)
add(
    "flax example: wmt transformer with Nones by keyword",
    lambda: WmtTransformer(TransformerConfig()),
    given(
        ids(2, 5, n=12) + 1,
        ids(2, 4, n=12, seed=1) + 1,
        inputs_positions=None,
        inputs_segmentation=ids(2, 5, n=1),
    ),
    rngs=("dropout",),
    **_CFG,
)
add(
    "flax example: wmt transformer.encode",
    lambda: WmtTransformer(TransformerConfig()),
    given(ids(2, 5, n=12) + 1),
    rngs=("dropout",),
    method="encode",
    **_CFG,
)


class ActorCritic(nn.Module):
    """examples/ppo: uint8 frames, a tuple out."""

    num_outputs: int = 4

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32) / 255.0
        x = nn.relu(nn.Conv(4, (4, 4), strides=(2, 2), name="conv1")(x))
        x = nn.relu(nn.Dense(16, name="hidden")(x.reshape(x.shape[0], -1)))
        return nn.log_softmax(nn.Dense(self.num_outputs, name="logits")(x)), nn.Dense(
            1, name="value"
        )(x)


add(
    "flax example: ppo ActorCritic (uint8)",
    lambda: ActorCritic(),
    given(ids(2, 12, 12, 4, n=255, dtype="uint8")),
)


class GraphsTuple(NamedTuple):
    """jraph's, for the model in the style of examples/ogbg_molpcba."""

    nodes: Any
    edges: Any
    receivers: Any
    senders: Any
    globals: Any
    n_node: Any
    n_edge: Any


class OgbgGNN(nn.Module):
    """examples/ogbg_molpcba: a flag attribute on the module, a NamedTuple in and out."""

    latent: int = 8
    deterministic: bool = True
    dropout: float = 0.1

    @nn.compact
    def __call__(self, graph):
        def mlp(n):
            def f(x):
                x = nn.relu(nn.Dense(self.latent, name=n)(x))
                return nn.Dropout(self.dropout, deterministic=self.deterministic)(x)

            return f

        nodes, edges = nn.Dense(self.latent)(graph.nodes), nn.Dense(self.latent)(graph.edges)
        n = nodes.shape[0]
        for i in range(2):
            edges = mlp(f"edge{i}")(
                jnp.concatenate([edges, nodes[graph.senders], nodes[graph.receivers]], -1)
            )
            agg = jax.ops.segment_sum(edges, graph.receivers, n)
            nodes = nn.LayerNorm()(nodes + mlp(f"node{i}")(jnp.concatenate([nodes, agg], -1)))
        k = graph.n_node.shape[0]
        gi = jnp.repeat(jnp.arange(k), graph.n_node, total_repeat_length=n)
        pooled = jax.ops.segment_sum(nodes, gi, k)
        return graph._replace(nodes=nodes, edges=edges, globals=nn.Dense(3)(pooled))


def _graph(cls=GraphsTuple, nodes=5, edges=7, fn=3, fe=2, g=None):
    return cls(
        nodes=f32(nodes, fn),
        edges=None if fe is None else f32(edges, fe),
        receivers=ids(edges, n=2, seed=1),
        senders=ids(edges, n=2, seed=2),
        globals=g,
        n_node=np.array([2, nodes - 2], "int32"),
        n_edge=np.array([edges, 0], "int32"),
    )


add(
    "flax example: ogbg GNN (attr flag, NamedTuple, globals=None)",
    lambda: OgbgGNN(),
    given(_graph()),
    rngs=("dropout",),
    **by_attribute(DETERMINISTIC),
)


class SST2(nn.Module):
    """examples/sst2: word dropout, two streams, lengths, attribute default None."""

    dropout_rate: float = 0.2
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, inputs, lengths, deterministic: bool | None = None):
        det = nn.merge_param("deterministic", self.deterministic, deterministic)
        if not det:
            drop = jax.random.bernoulli(self.make_rng("word_dropout"), 0.2, inputs.shape)
            inputs = jnp.where(drop, 1, inputs)
        x = nn.Embed(11, 6)(inputs)
        x = nn.Dropout(self.dropout_rate)(x, deterministic=det)
        h = nn.Bidirectional(nn.RNN(nn.LSTMCell(4)), nn.RNN(nn.LSTMCell(4)))(x, seq_lengths=lengths)
        w = nn.softmax(
            nn.Dense(1)(h),
            axis=1,
            where=(jnp.arange(inputs.shape[1]) < lengths[:, None])[..., None],
        )
        return nn.Dense(1)(jnp.sum(w * h, 1))


add(
    "flax example: sst2 (two streams)",
    lambda: SST2(),
    given(ids(2, 5, n=11), np.array([3, 5], "int32")),
    rngs=("dropout", "word_dropout"),
    **DETERMINISTIC,
)


class StochasticDepthViT(nn.Module):
    """A ViT with stochastic depth from stream 'drop_path' and dropout; positional flag first."""

    depth: int = 2
    dim: int = 8
    drop_path: float = 0.3

    @nn.compact
    def __call__(self, img, train: bool):
        x = nn.Conv(self.dim, (4, 4), (4, 4), name="patch")(img)
        x = x.reshape(x.shape[0], -1, self.dim)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, self.dim))
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], 1)
        x = x + self.param("pos", nn.initializers.normal(0.02), (1, x.shape[1], self.dim))
        for _ in range(self.depth):
            y = nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=not train)(
                nn.LayerNorm()(x)
            )
            if train:
                keep = jax.random.bernoulli(
                    self.make_rng("drop_path"), 1 - self.drop_path, (x.shape[0], 1, 1)
                )
                y = y * keep
            x = x + y
        return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])


add(
    "ViT with streams dropout+drop_path",
    lambda: StochasticDepthViT(),
    floats(2, 8, 8, 3),
    rngs=("dropout", "drop_path"),
    **TRAIN,
)


class NoisyDQN(nn.Module):
    """Noisy nets: a 'noise' stream, frozen by a keyword of another polarity (eval_mode)."""

    @nn.compact
    def __call__(self, x, eval_mode: bool = False):
        w = self.param("mu", nn.initializers.lecun_normal(), (x.shape[-1], 4))
        s = self.param("sigma", nn.initializers.constant(0.1), (x.shape[-1], 4))
        if not eval_mode:
            w = w + s * jax.random.normal(self.make_rng("noise"), w.shape)
        return {"q_values": x @ w}


add(
    "NoisyNet DQN (eval_mode, stream 'noise')",
    lambda: NoisyDQN(),
    floats(2, 3),
    rngs=("noise",),
    train={"eval_mode": False},
    eval={"eval_mode": True},
    sample=True,
)


@flax.struct.dataclass
class UNetOutput:
    sample: Any
    aux: Any = None


class TinyUNet(nn.Module):
    """diffusers-like: scalar timestep, return_dict static flag, flax.struct output."""

    ch: int = 4

    @nn.compact
    def __call__(
        self,
        sample,
        timesteps,
        encoder_hidden_states=None,
        return_dict: bool = True,
        train: bool = False,
    ):
        t = jnp.broadcast_to(jnp.asarray(timesteps, jnp.float32), (sample.shape[0],))
        freqs = jnp.exp(-jnp.arange(4.0))
        emb = nn.Dense(self.ch)(
            nn.silu(
                nn.Dense(8)(
                    jnp.concatenate([jnp.sin(t[:, None] * freqs), jnp.cos(t[:, None] * freqs)], -1)
                )
            )
        )
        h = nn.Conv(self.ch, (3, 3))(sample) + emb[:, None, None]
        d = nn.Conv(self.ch, (3, 3), strides=2)(nn.silu(nn.GroupNorm(2)(h)))
        if encoder_hidden_states is not None:
            b, hh, ww, c = d.shape
            q = d.reshape(b, hh * ww, c)
            d = d + nn.MultiHeadDotProductAttention(2)(q, encoder_hidden_states).reshape(
                b, hh, ww, c
            )
        d = nn.Dropout(0.1)(d, deterministic=not train)
        u = jax.image.resize(d, h.shape, "nearest")
        out = nn.Conv(sample.shape[-1], (3, 3))(jnp.concatenate([u, h], -1))
        return UNetOutput(sample=out) if return_dict else (out,)


add(
    "diffusion U-Net (struct out)",
    lambda: TinyUNet(),
    given(f32(2, 8, 8, 3), ids(2, n=100), f32(2, 3, 6)),
    rngs=("dropout",),
    **TRAIN,
)
add(
    "diffusion U-Net (Python int timestep, return_dict=False)",
    lambda: TinyUNet(),
    given(f32(2, 8, 8, 3), 7, return_dict=False),
    rngs=("dropout",),
    **TRAIN,
)


class RealNVP(nn.Module):
    """Methods forward/inverse through a shared setup; tuple out with log-det."""

    n: int = 2

    def setup(self):
        self.nets = [nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(4)]) for _ in range(self.n)]

    def __call__(self, x, reverse: bool = False):
        logdet = jnp.zeros(x.shape[:-1])
        for net in self.nets[:: -1 if reverse else 1]:
            a, b = jnp.split(x, 2, -1)
            s, t = jnp.split(net(a), 2, -1)
            s = jnp.tanh(s)
            b = (b - t) * jnp.exp(-s) if reverse else b * jnp.exp(s) + t
            logdet = logdet + (-s.sum(-1) if reverse else s.sum(-1))
            x = jnp.concatenate([b, a], -1)
        return x, logdet

    def sample(self, n: int):
        z = jax.random.normal(self.make_rng("sample"), (n, 4))
        return self(z, reverse=True)[0]


add("normalising flow", lambda: RealNVP(), floats(3, 4))
add(
    "normalising flow .sample(n) static int, stream 'sample'",
    lambda: RealNVP(),
    given(3),
    method="sample",
    rngs=("sample",),
    lacks={"fit": "there is no data to iterate over"},
)


class DictBatchModel(nn.Module):
    """One nested batch (dict of arrays, FrozenDict, list) as the only argument."""

    @nn.compact
    def __call__(self, batch, train=False):
        h = nn.Dense(4)(batch["x"]["dense"]) + nn.Embed(5, 4)(batch["x"]["cat"]).sum(1)
        for extra in batch["extras"]:
            h = h + nn.Dense(4)(extra)
        h = nn.Dropout(0.1, deterministic=not train)(h)
        return [h, {"y": nn.Dense(2)(h)}]


add(
    "nested batch dict with a list",
    lambda: DictBatchModel(),
    given({"x": {"dense": f32(2, 3), "cat": ids(2, 3, n=5)}, "extras": [f32(2, 1), f32(2, 2)]}),
    rngs=("dropout",),
    **TRAIN,
    sample=True,
)
