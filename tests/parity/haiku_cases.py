"""Haiku: its layers, nets, recurrence and transforms, and models like those of its examples."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from .cases import IS_TRAINING, UPDATE_STATS, Cases, booleans, f32, floats, given, ids

CASES = Cases("haiku")
add = CASES.add


def layer(name, ctor, inputs, **kw):
    """Adds a function that builds one layer and calls it with whatever it is given."""

    def make():
        def forward(*args, **kwargs):
            return ctor()(*args, **kwargs)

        return forward

    add(name, make, inputs, **kw)


# ---- hk.nets --------------------------------------------------------------------------
def _mlp_dropout():
    def forward(x, is_training):
        net = hk.nets.MLP([16, 16, 4], activation=jax.nn.gelu, name="mlp")
        if is_training:
            return net(x, dropout_rate=0.3, rng=hk.next_rng_key())
        return net(x)

    return hk.transform(forward)


add("hk.nets.MLP+dropout", _mlp_dropout, floats(4, 8), **IS_TRAINING, sample=True)
add(
    "hk.nets.MLP without_apply_rng",
    lambda: hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([16, 4])(x))),
    floats(4, 8),
)
add(
    "hk.nets.MLP.reverse (autoencoder)",
    lambda: _mlp_reverse,
    floats(4, 8),
)


def _mlp_reverse(x):
    enc = hk.nets.MLP([12, 3], name="encoder")
    z = enc(x)
    return {"z": z, "reconstruction": enc.reverse(name="decoder")(z)}


def _resnet18(resnet_v2):
    def forward(images, is_training, test_local_stats=False):
        net = hk.nets.ResNet18(num_classes=10, resnet_v2=resnet_v2)
        return net(images, is_training, test_local_stats)

    return hk.transform_with_state(forward)


add(
    "hk.nets.ResNet18",
    lambda: _resnet18(resnet_v2=False),
    floats(1, 32, 32, 3),
    **IS_TRAINING,
)
add(
    "hk.nets.ResNet18(v2)",
    lambda: _resnet18(resnet_v2=True),
    floats(1, 32, 32, 3),
    **IS_TRAINING,
)
add(
    "hk.nets.ResNet(custom blocks)",
    lambda: (
        lambda x, is_training: hk.nets.ResNet(
            blocks_per_group=(1, 1, 1, 1),
            num_classes=5,
            bn_config={"decay_rate": 0.9},
            channels_per_group=(8, 8, 16, 16),
            bottleneck=True,
        )(x, is_training=is_training)
    ),
    floats(2, 16, 16, 3),
    **IS_TRAINING,
)
add(
    "hk.nets.MobileNetV1",
    lambda: hk.transform_with_state(
        lambda x, is_training: hk.nets.MobileNetV1(strides=(1, 2), channels=(8, 16), num_classes=5)(
            x, is_training
        )
    ),
    floats(2, 16, 16, 3),
    **IS_TRAINING,
)
add(
    "hk.nets.VectorQuantizer",
    lambda: (
        lambda x, is_training: hk.nets.VectorQuantizer(
            embedding_dim=4, num_embeddings=6, commitment_cost=0.25
        )(x, is_training)
    ),
    floats(2, 3, 4),
    **IS_TRAINING,
)


def _vq_ema():
    def forward(x, is_training):
        z = hk.Linear(4)(x)
        vq = hk.nets.VectorQuantizerEMA(4, 6, commitment_cost=0.25, decay=0.9)
        out = vq(z, is_training)
        return {"recon": hk.Linear(8)(out["quantize"]), **out}

    return hk.transform_with_state(forward)


add("hk.nets.VectorQuantizerEMA", _vq_ema, floats(2, 3, 8), **IS_TRAINING, sample=True)

# ---- layers ---------------------------------------------------------------------------
layer("hk.Linear", lambda: hk.Linear(5), floats(2, 3), sample=True)
layer(
    "hk.Linear(no bias)+precision",
    lambda: hk.Linear(5, with_bias=False),
    given(f32(2, 3), precision=jax.lax.Precision.HIGHEST),
)
layer("hk.Bias", lambda: hk.Bias(bias_dims=[-1]), floats(2, 4, 3))
layer("hk.Conv1D", lambda: hk.Conv1D(4, 3), floats(2, 8, 3))
layer(
    "hk.Conv2D(strided, dilated)",
    lambda: hk.Conv2D(4, (3, 2), stride=2, padding="VALID"),
    floats(2, 8, 8, 3),
    sample=True,
)
layer(
    "hk.Conv2D(NCHW, groups)",
    lambda: hk.Conv2D(4, 3, rate=2, data_format="NCHW", feature_group_count=2),
    floats(2, 4, 8, 8),
)
layer(
    "hk.Conv2D(mask)",
    lambda: hk.Conv2D(
        4,
        3,
        mask=np.tril(np.ones((3, 3), "float32"))[:, :, None, None]
        * np.ones((3, 3, 2, 4), "float32"),
    ),
    floats(2, 6, 6, 2),
)
layer("hk.Conv3D", lambda: hk.Conv3D(4, 3), floats(1, 4, 4, 4, 2))
layer("hk.ConvND(unbatched)", lambda: hk.ConvND(2, 4, 3, padding=hk.pad.same), floats(6, 6, 2))
layer("hk.Conv1DTranspose", lambda: hk.Conv1DTranspose(4, 3, stride=2), floats(2, 5, 3))
layer(
    "hk.Conv2DTranspose",
    lambda: hk.Conv2DTranspose(4, 3, stride=2, output_shape=(8, 8)),
    floats(2, 4, 4, 3),
)
layer("hk.DepthwiseConv1D", lambda: hk.DepthwiseConv1D(2, 3), floats(2, 6, 3))
layer("hk.DepthwiseConv2D", lambda: hk.DepthwiseConv2D(2, 3), floats(2, 6, 6, 3))
layer("hk.SeparableDepthwiseConv2D", lambda: hk.SeparableDepthwiseConv2D(2, 3), floats(2, 6, 6, 3))
layer(
    "hk.BatchNorm", lambda: hk.BatchNorm(True, True, 0.9), floats(4, 3), **IS_TRAINING, sample=True
)
layer(
    "hk.BatchNorm(test_local_stats)",
    lambda: hk.BatchNorm(True, True, 0.9, data_format="channels_first"),
    given(f32(4, 3, 5), test_local_stats=True),
    **IS_TRAINING,
)
layer(
    "hk.BatchNorm(scale, offset given)",
    lambda: hk.BatchNorm(False, False, 0.9),
    given(f32(4, 3), scale=np.ones(3, "float32"), offset=f32(3)),
    **IS_TRAINING,
    batched=False,
    lacks={"gradients": "nothing is trained"},
)
layer("hk.LayerNorm", lambda: hk.LayerNorm(-1, True, True, param_axis=-1), floats(4, 3))
layer(
    "hk.LayerNorm(given scale)",
    lambda: hk.LayerNorm((1, 2), False, True),
    given(f32(4, 3, 2), np.ones((3, 2), "float32")),
    batched=False,
)
layer("hk.GroupNorm", lambda: hk.GroupNorm(2), floats(2, 4, 4, 6))
layer("hk.InstanceNorm", lambda: hk.InstanceNorm(True, True), floats(2, 4, 4, 3))
layer("hk.RMSNorm", lambda: hk.RMSNorm(-1), floats(2, 4))
layer(
    "hk.SpectralNorm",
    lambda: hk.SpectralNorm(n_steps=1),
    floats(4, 3),
    **UPDATE_STATS,
    lacks={"gradients": "nothing is trained"},
)
layer(
    "hk.ExponentialMovingAverage",
    lambda: hk.ExponentialMovingAverage(0.9),
    floats(3),
    **UPDATE_STATS,
    batched=False,
    lacks={"gradients": "nothing is trained"},
)
layer("hk.Embed(ids)", lambda: hk.Embed(11, 4), given(ids(2, 5, n=11)), sample=True)
layer(
    "hk.Embed(one-hot lookup)",
    lambda: hk.Embed(11, 4, lookup_style=hk.EmbedLookupStyle.ONE_HOT),
    given(ids(2, 5, n=11, dtype="uint8")),
)
layer("hk.Flatten", lambda: hk.Sequential([hk.Flatten(), hk.Linear(2)]), floats(2, 3, 4))
layer(
    "hk.Reshape+hk.BatchApply",
    lambda: hk.Sequential([hk.Reshape((4, 3), preserve_dims=1), hk.BatchApply(hk.Linear(2))]),
    floats(2, 12),
)
layer(
    "hk.MaxPool+hk.AvgPool",
    lambda: hk.Sequential(
        [
            hk.Conv2D(3, 3),
            hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "SAME"),
            hk.AvgPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        ]
    ),
    floats(2, 8, 8, 3),
)
layer(
    "hk.nets.MLP in hk.Sequential with functions",
    lambda: hk.Sequential([hk.Linear(6), jax.nn.relu, hk.nets.MLP([4, 2]), jnp.tanh]),
    floats(2, 3),
)


def _mha():
    def forward(query, key, value, mask=None):
        attn = hk.MultiHeadAttention(
            num_heads=2,
            key_size=4,
            model_size=8,
            w_init=hk.initializers.VarianceScaling(1.0),
        )
        return attn(query, key, value, mask=mask)

    return forward


def _mha_inputs():
    x, y = f32(2, 5, 8), f32(2, 6, 8, seed=1)
    return (x, y, y), {"mask": booleans(2, 1, 5, 6)}


add("hk.MultiHeadAttention+mask", _mha, _mha_inputs, sample=True)
add(
    "hk.MultiHeadAttention(mask=None)",
    _mha,
    given(f32(2, 5, 8), f32(2, 6, 8), f32(2, 6, 8), mask=None),
)


def _dropout():
    def forward(x, is_training=True, rate=0.5):
        x = hk.Linear(8)(x)
        if is_training:
            x = hk.dropout(hk.next_rng_key(), rate, x)
        return hk.Linear(2)(x)

    return forward


add("hk.dropout in a function", _dropout, given(f32(4, 3), rate=0.25), **IS_TRAINING, sample=True)
add(
    "hk.multinomial sampling head (int output)",
    lambda: (
        lambda x: (lambda logits: (logits, hk.multinomial(hk.next_rng_key(), logits, 3)))(
            hk.Linear(5)(x)
        )
    ),
    floats(2, 3),
)


# ---- recurrence -----------------------------------------------------------------------
def _unroll(core, time_major=True, batch=2, static=False):
    def make():
        def forward(xs, state=None):
            c = core()
            if state is None:
                state = c.initial_state(batch)
            unroll = hk.static_unroll if static else hk.dynamic_unroll
            return unroll(c, xs, state, time_major=time_major)

        return forward

    return make


def _lstm_state(h, b=2):
    return hk.LSTMState(hidden=f32(b, h), cell=f32(b, h, seed=2))


add("hk.LSTM dynamic_unroll", _unroll(lambda: hk.LSTM(4)), floats(5, 2, 3))
add(
    "hk.LSTM dynamic_unroll, LSTMState given, batch major",
    _unroll(lambda: hk.LSTM(4), time_major=False),
    given(f32(2, 5, 3), _lstm_state(4)),
)
add(
    "hk.LSTM static_unroll, state=None",
    _unroll(lambda: hk.LSTM(4), static=True),
    given(f32(3, 2, 3), None),
)
add("hk.GRU dynamic_unroll", _unroll(lambda: hk.GRU(4)), floats(5, 2, 3), sample=True)
add(
    "hk.VanillaRNN dynamic_unroll",
    _unroll(lambda: hk.VanillaRNN(4, double_bias=False)),
    floats(5, 2, 3),
)
add("hk.Conv1DLSTM", _unroll(lambda: hk.Conv1DLSTM((6,), 4, 3)), floats(3, 2, 6, 2))
add("hk.Conv2DLSTM", _unroll(lambda: hk.Conv2DLSTM((4, 4), 3, 3)), floats(3, 2, 4, 4, 2))
add(
    "hk.DeepRNN([LSTM, relu, GRU])",
    _unroll(lambda: hk.DeepRNN([hk.LSTM(4), jax.nn.relu, hk.GRU(3)])),
    floats(4, 2, 3),
)
add(
    "hk.deep_rnn_with_skip_connections",
    _unroll(lambda: hk.deep_rnn_with_skip_connections([hk.LSTM(4), hk.LSTM(3)])),
    floats(4, 2, 3),
)
add(
    "hk.IdentityCore",
    _unroll(lambda: hk.DeepRNN([hk.Linear(3), hk.IdentityCore()])),
    floats(4, 2, 3),
)


def _reset_core():
    def forward(xs, resets):
        core = hk.ResetCore(hk.LSTM(4))
        return hk.dynamic_unroll(core, (xs, resets), core.initial_state(2))

    return forward


add("hk.ResetCore(bool resets)", _reset_core, given(f32(5, 2, 3), booleans(5, 2)))


def _cell_step():
    """One step, explicit state in and out, as an RL agent's step function."""

    def step(observation, state):
        core = hk.GRU(4)
        out, state = core(observation, state)
        return hk.Linear(3)(out), state

    return hk.without_apply_rng(hk.transform(step))


add("hk.GRU step with carry", _cell_step, given(f32(2, 3), np.zeros((2, 4), "float32")))


# ---- transforms -----------------------------------------------------------------------
def _scan():
    def forward(x, n_steps=3):
        lin = hk.Linear(x.shape[-1])

        def body(carry, _):
            carry = jnp.tanh(lin(carry))
            return carry, carry.mean()

        return hk.scan(body, x, None, length=n_steps)

    return forward


add("hk.scan (static length)", _scan, given(f32(2, 4), n_steps=4))


def _layer_stack():
    def forward(x, is_training):
        @hk.layer_stack(3, with_per_layer_inputs=True)
        def layer(x, scale):
            y = hk.Linear(8)(x) * scale
            if is_training:
                y = hk.dropout(hk.next_rng_key(), 0.1, y)
            return x + jax.nn.relu(y), jnp.mean(y)

        return layer(x, jnp.arange(1.0, 4.0))

    return forward


add("hk.layer_stack+dropout", _layer_stack, floats(2, 8), **IS_TRAINING, sample=True)


def _remat():
    def forward(x, is_training):
        def block(x):
            x = hk.Linear(8)(x)
            x = hk.BatchNorm(True, True, 0.9)(x, is_training)
            return jax.nn.relu(x)

        for _ in range(2):
            x = hk.remat(block)(x)
        return x

    return hk.transform_with_state(forward)


add("hk.remat+BatchNorm", _remat, floats(4, 3), **IS_TRAINING, sample=True)
add(
    "hk.vmap(split_rng=False)",
    lambda: lambda x: hk.vmap(hk.nets.MLP([4, 2]), split_rng=False)(x),
    floats(3, 2, 5),
)


def _vmap_ensemble():
    def forward(x):
        def member(x):
            return hk.nets.MLP([4, 2])(hk.dropout(hk.next_rng_key(), 0.1, x))

        return hk.vmap(member, split_rng=not hk.running_init())(x)

    return forward


add("hk.vmap(split_rng)", _vmap_ensemble, floats(3, 2, 5))


def _lift():
    """Ensemble by lifting an inner transformed function (hk.lift docs)."""

    def forward(x):
        def net(x):
            return hk.nets.MLP([6, 2], name="member")(x)

        inner = hk.without_apply_rng(hk.transform(net))
        n = 3
        keys = hk.next_rng_keys(n) if hk.running_init() else jnp.zeros((n, 2), "uint32")
        params = hk.lift(jax.vmap(inner.init, in_axes=(0, None)), name="ensemble")(keys, x)
        return jax.vmap(inner.apply, in_axes=(0, None))(params, x)

    return forward


add("hk.lift (ensemble)", _lift, floats(2, 4))


def _lift_state():
    def forward(x, is_training):
        f = hk.transform_with_state(
            lambda x: hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training)
        )
        init, updater = hk.lift_with_state(f.init, name="inner")
        params, state = init(hk.maybe_next_rng_key(), x)
        out, state = f.apply(params, state, None, x)
        updater.update(state)
        return out

    return forward


add("hk.lift_with_state", _lift_state, floats(4, 3), **IS_TRAINING, sample=True)


def _cond():
    def forward(x, use_big):
        big, small = hk.nets.MLP([8, 2], name="big"), hk.Linear(2, name="small")
        if hk.running_init():  # haiku asks that branches make the same parameters
            return big(x) + small(x)
        return hk.cond(use_big, big, small, x)

    return forward


add("hk.cond(bool scalar array)", _cond, given(f32(2, 3), np.array(True)), sample=True)


def _switch_fori():
    def forward(x, branch):
        branches = [hk.Linear(4, name=f"b{i}") for i in range(3)]
        lin = hk.Linear(4, name="loop")
        if hk.running_init():
            return lin(sum(b(x) for b in branches))
        x = hk.switch(branch, branches, x)
        return hk.fori_loop(0, 2, lambda i, v: jnp.tanh(lin(v)), x)

    return forward


add("hk.switch+hk.fori_loop", _switch_fori, given(f32(2, 3), np.int32(1)))


def _counter():
    def forward(x):
        n = hk.get_state("count", (), jnp.int32, init=jnp.zeros)
        hk.set_state("count", n + 1)
        w = hk.get_parameter("w", (x.shape[-1],), x.dtype, init=jnp.ones)
        return w * x, n

    return hk.transform_with_state(forward)


add("hk.get_state int counter", _counter, floats(2, 3), sample=True)
add(
    "hk.get_parameter bare function (params {'~': ...})",
    lambda: lambda x: x @ hk.get_parameter("w", (3, 2), init=hk.initializers.TruncatedNormal(0.1)),
    floats(2, 3),
)


class _SNGenerator(hk.Module):
    """SNParamsTree kept inside one forward function (haiku's spectral norm test)."""

    def __call__(self, x, is_training):
        net = hk.transform(lambda x: hk.Linear(4, name="inner")(x))
        params = hk.lift(net.init, name="net")(hk.maybe_next_rng_key(), x)
        params = hk.SNParamsTree(ignore_regex="[^?!.]*b$", name="sn")(
            params, update_stats=is_training
        )
        return net.apply(params, None, x)


add(
    "hk.SNParamsTree",
    lambda: lambda x, is_training: _SNGenerator()(x, is_training),
    floats(4, 3),
    **IS_TRAINING,
    sample=True,
)


def _ema_tree():
    def forward(x):
        net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(4, name="inner")(x)))
        params = hk.lift(net.init, name="net")(hk.maybe_next_rng_key(), x)
        ema = hk.EMAParamsTree(0.9)(params)
        return net.apply(params, x), net.apply(ema, x)

    return hk.transform_with_state(forward)


add("hk.EMAParamsTree", _ema_tree, floats(4, 3))


def _intercept():
    def forward(x):
        def interceptor(f, args, kwargs, ctx):
            return jax.tree.map(lambda a: a * 2, f(*args, **kwargs))

        with hk.intercept_methods(interceptor):
            return hk.Linear(3)(x)

    return forward


add("hk.intercept_methods", _intercept, floats(2, 3))


def _getter():
    def forward(x):
        def bf16(next_getter, value, context):
            return next_getter(value.astype(jnp.bfloat16))

        with hk.custom_getter(bf16):
            return hk.nets.MLP([4, 2])(x.astype(jnp.bfloat16)).astype(jnp.float32)

    return forward


add("hk.custom_getter bf16", _getter, floats(2, 3), sample=True)


def _with_empty_state():
    return hk.with_empty_state(hk.transform(lambda x: hk.Linear(2)(x)))


add("hk.with_empty_state", _with_empty_state, floats(2, 3))
add(
    "hk.without_state",
    lambda: hk.without_state(hk.transform_with_state(lambda x: hk.Linear(2)(x))),
    floats(2, 3),
)


# ---- multi_transform ------------------------------------------------------------------
class AutoEncoderFns(NamedTuple):
    encode: Any
    decode: Any


def _multi():
    @hk.multi_transform
    def model():
        enc = hk.nets.MLP([8, 3], name="encoder")
        dec = hk.nets.MLP([8, 5], name="decoder")

        def full(x):
            return dec(enc(x))

        return full, AutoEncoderFns(enc, dec)

    return model


add("hk.multi_transform(autoencoder).encode", _multi, floats(2, 5), method="encode", sample=True)
add("hk.multi_transform(autoencoder).decode", _multi, floats(2, 3), method="decode")


def _multi_state():
    def model():
        net = hk.Linear(4)
        bn = hk.BatchNorm(True, True, 0.9)

        def init(x, is_training=True):
            return bn(net(x), is_training)

        def predict(x):
            return bn(net(x), is_training=False)

        return init, {"train_step": init, "predict": predict}

    return hk.multi_transform_with_state(model)


add(
    "hk.multi_transform_with_state(dict).train_step",
    _multi_state,
    floats(4, 3),
    method="train_step",
    **IS_TRAINING,
    sample=True,
)
add("hk.multi_transform_with_state(dict).predict", _multi_state, floats(4, 3), method="predict")


# ---- in the style of haiku's examples ---------------------------------------------------
def _layer_norm(x, name=None):
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, name=name)(x)


@dataclasses.dataclass
class Transformer(hk.Module):
    """examples/transformer/model.py: a dataclass hk.Module."""

    num_heads: int
    num_layers: int
    key_size: int
    dropout_rate: float
    widening_factor: int = 4
    name: str | None = None

    def __call__(self, embeddings, mask, *, is_training=True):
        initializer = hk.initializers.VarianceScaling(2 / self.num_layers)
        dropout_rate = self.dropout_rate if is_training else 0.0
        _, seq_len, model_size = embeddings.shape
        mask = mask[:, None, None, :]
        mask = mask * np.tril(np.ones((1, 1, seq_len, seq_len)))
        h = embeddings
        for _ in range(self.num_layers):
            attn = hk.MultiHeadAttention(
                self.num_heads, self.key_size, model_size=model_size, w_init=initializer
            )
            h_norm = _layer_norm(h)
            h = h + hk.dropout(
                hk.next_rng_key(), dropout_rate, attn(h_norm, h_norm, h_norm, mask=mask)
            )
            dense = hk.Sequential(
                [
                    hk.Linear(self.widening_factor * model_size, w_init=initializer),
                    jax.nn.gelu,
                    hk.Linear(model_size, w_init=initializer),
                ]
            )
            h = h + hk.dropout(hk.next_rng_key(), dropout_rate, dense(_layer_norm(h)))
        return _layer_norm(h)


@dataclasses.dataclass
class LanguageModel(hk.Module):
    transformer: Transformer
    model_size: int
    vocab_size: int
    pad_token: int
    name: str | None = None

    def __call__(self, tokens, *, is_training=True):
        mask = tokens != self.pad_token
        seq_len = tokens.shape[1]
        init = hk.initializers.TruncatedNormal(stddev=0.02)
        emb = hk.Embed(self.vocab_size, self.model_size, w_init=init)(tokens)
        pos = hk.get_parameter("positional_embeddings", [seq_len, self.model_size], init=init)
        h = self.transformer(emb + pos, mask, is_training=is_training)
        return hk.Linear(self.vocab_size)(h)


def _lm():
    def forward(tokens, *, is_training=True):
        lm = LanguageModel(Transformer(2, 2, 4, 0.1), 8, 13, pad_token=0)
        return lm(tokens, is_training=is_training)

    return hk.transform(forward)


add("hk example: transformer LM", _lm, given(ids(2, 6, n=13)), **IS_TRAINING)


def _lm_loss():
    """examples/transformer/train.py: the transformed function is the loss over a batch dict."""

    def loss_fn(data, is_training=True):
        lm = LanguageModel(Transformer(2, 1, 4, 0.1), 8, 13, pad_token=0)
        logits = lm(data["obs"], is_training=is_training)
        targets = jax.nn.one_hot(data["target"], 13)
        mask = jnp.not_equal(data["obs"], 0)
        nll = -jnp.sum(targets * jax.nn.log_softmax(logits), -1)
        return jnp.sum(nll * mask) / (jnp.sum(mask) + 1e-6), {"n": jnp.sum(mask)}

    return hk.transform_with_state(loss_fn)


add(
    "hk example: loss over a dict batch",
    _lm_loss,
    given({"obs": ids(2, 6, n=13), "target": ids(2, 6, n=13, seed=1)}),
    **IS_TRAINING,
)


class VAEOutput(NamedTuple):
    image: Any
    mean: Any
    variance: Any
    logits: Any


@dataclasses.dataclass
class VAE(hk.Module):
    """examples/vae.py"""

    latent: int = 3
    hidden: int = 12
    shape: tuple = (4, 4, 1)
    name: str | None = None

    def __call__(self, x):
        x = x.astype(jnp.float32)
        h = jax.nn.relu(hk.Linear(self.hidden)(hk.Flatten()(x)))
        mean, var = hk.Linear(self.latent)(h), jnp.exp(hk.Linear(self.latent)(h))
        z = mean + jnp.sqrt(var) * jax.random.normal(hk.next_rng_key(), mean.shape)
        logits = hk.nets.MLP([self.hidden, int(np.prod(self.shape))])(z).reshape(-1, *self.shape)
        p = jax.nn.sigmoid(logits)
        image = jax.random.bernoulli(hk.next_rng_key(), p)
        return VAEOutput(image, mean, var, logits)


add(
    "hk example: VAE (NamedTuple out, bool leaf)",
    lambda: hk.transform(lambda x: VAE()(x)),
    given(ids(2, 4, 4, 1, n=2, dtype="uint8")),
)


class AgentOutput(NamedTuple):
    policy_logits: Any
    value: Any


class TimeStep(NamedTuple):
    step_type: Any
    reward: Any
    discount: Any
    observation: Any


class ImpalaNet(hk.RNNCore):
    """examples/impala: an RNNCore over timesteps, NamedTuple outputs."""

    def __init__(self, num_actions=3, name=None):
        super().__init__(name=name)
        self._num_actions = num_actions
        self._core = hk.ResetCore(hk.LSTM(6))

    def initial_state(self, batch_size):
        return self._core.initial_state(batch_size)

    def __call__(self, x: TimeStep, state):
        torso = hk.Sequential(
            [lambda o: o / 255.0, hk.Conv2D(4, 3, 2), jax.nn.relu, hk.Flatten(), hk.Linear(6)]
        )
        h = torso(x.observation["pixels"].astype(jnp.float32))
        first = x.step_type == 0
        out, state = self._core((h, first), state)
        return AgentOutput(
            hk.Linear(self._num_actions)(out), jnp.squeeze(hk.Linear(1)(out), -1)
        ), state

    def unroll(self, xs, state):
        return hk.static_unroll(self, xs, state)


def _impala_inputs():
    ts = TimeStep(
        ids(3, 2, n=2), f32(3, 2), None, {"pixels": ids(3, 2, 6, 6, 1, n=255, dtype="uint8")}
    )
    return (ts, hk.LSTMState(np.zeros((2, 6), "float32"), np.zeros((2, 6), "float32"))), {}


add(
    "hk example: impala unroll (NamedTuple with None in, state)",
    lambda: hk.transform(lambda ts, s: ImpalaNet().unroll(ts, s)),
    _impala_inputs,
    batched=False,
)


def _imagenet_jmp():
    """examples/imagenet: mixed precision policy set on a module class."""

    def forward(batch, is_training):
        images = batch["images"]
        net = hk.nets.ResNet(
            (1, 1, 1, 1),
            4,
            resnet_v2=True,
            bottleneck=False,
            channels_per_group=(4, 4, 8, 8),
            bn_config={"decay_rate": 0.9},
        )
        return net(images.astype(jnp.bfloat16).astype(jnp.float32), is_training=is_training)

    return hk.transform_with_state(forward)


add(
    "hk example: imagenet batch dict",
    _imagenet_jmp,
    given({"images": f32(2, 16, 16, 3), "labels": ids(2, n=4)}),
    **IS_TRAINING,
)


class GAN(hk.Module):
    """Methods on a module, sharing parameters through name scopes."""

    def generator(self, z):
        return hk.Sequential(
            [
                hk.Linear(16),
                jax.nn.relu,
                hk.Reshape((2, 2, 4)),
                hk.Conv2DTranspose(1, 3, 2),
                jnp.tanh,
            ]
        )(z)

    def discriminator(self, x):
        return hk.Sequential([hk.Conv2D(4, 3, 2), jax.nn.leaky_relu, hk.Flatten(), hk.Linear(1)])(x)

    def __call__(self, z, real):
        return self.discriminator(self.generator(z)), self.discriminator(real)


add(
    "hk example: GAN methods",
    lambda: lambda z, real: GAN()(z, real),
    given(f32(2, 3), f32(2, 4, 4, 1)),
)


def _polarity_deterministic():
    """The other polarity, keyword-only, with a default."""

    def forward(x, *, deterministic: bool = True):
        x = jax.nn.relu(hk.Linear(8)(x))
        if not deterministic:
            x = hk.dropout(hk.next_rng_key(), 0.5, x)
        return hk.Linear(2)(x)

    return hk.transform(forward)


add(
    "hk deterministic= keyword",
    _polarity_deterministic,
    floats(4, 3),
    train={"deterministic": False},
    eval={"deterministic": True},
    sample=True,
)
add(
    "hk dropout_rate= as the flag",
    lambda: (
        lambda x, dropout_rate=0.0: hk.dropout(hk.next_rng_key(), dropout_rate, hk.Linear(4)(x))
    ),
    floats(4, 3),
    train={"dropout_rate": 0.5},
    eval={"dropout_rate": 0.0},
    explicit=True,
)
add(
    "hk mode= string flag",
    lambda: (
        lambda x, mode: (lambda h: hk.dropout(hk.next_rng_key(), 0.5, h) if mode == "train" else h)(
            hk.Linear(4)(x)
        )
    ),
    floats(4, 3),
    train={"mode": "train"},
    eval={"mode": "eval"},
    explicit=True,
    sample=True,
)
