"""Models of PyPI packages, as they are; a package that is missing skips its own cases.

`requires` is what to type after `pip install`. Packages whose own requirements pin another
JAX, or bring PyTorch, are installed with `--no-deps`, and then everything is listed that
the model needs.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from .cases import (
    DETERMINISTIC,
    TRAIN,
    TRAINING,
    Cases,
    booleans,
    by_attribute,
    f32,
    floats,
    given,
    ids,
    onehots,
    positions,
)

haiku = Cases("haiku")
linen = Cases("linen")
DROPOUT = ("dropout",)
NO_SYMBOLS = {"output_spec": "distrax asks JAX for the type of each leaf, so it holds no symbols"}
TFP = ("jax.core.pytype_aval_mappings is deprecated:DeprecationWarning",)


def attribute(path: str, **kwargs: Any) -> Callable[[], Any]:
    """Makes `package.module.Class(**kwargs)`, importing the package when it is called."""

    def make() -> Any:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)(**kwargs)

    return make


# ---- graphs: jraph, jeometric -----------------------------------------------------------


def _graph(features: int | None = 2, global_features: int | None = None):
    """Inputs: two graphs of five nodes and seven edges together."""

    def inputs():
        import jraph

        graph = jraph.GraphsTuple(
            nodes=f32(5, 3),
            edges=None if features is None else f32(7, features),
            receivers=ids(7, n=2, seed=1),
            senders=ids(7, n=2, seed=2),
            globals=None if global_features is None else f32(2, global_features),
            n_node=np.array([2, 3], "int32"),
            n_edge=np.array([7, 0], "int32"),
        )
        return (graph,), {}

    return inputs


def _graph_network():
    import jraph

    def mlp(width):
        return jraph.concatenated_args(lambda x: hk.nets.MLP([8, width])(x))

    def net(graph):
        embed = jraph.GraphMapFeatures(hk.Linear(8), hk.Linear(8), hk.Linear(8))
        return jraph.GraphNetwork(mlp(8), mlp(8), mlp(3))(embed(graph))

    return hk.without_apply_rng(hk.transform(net))


def _interaction_network():
    import jraph

    mlp = jraph.concatenated_args(lambda x: hk.nets.MLP([6])(x))
    return lambda graph: jraph.InteractionNetwork(mlp, mlp)(graph)


def _graph_attention():
    import jraph

    def logits(sent, received, edges):
        x = jnp.concatenate([sent, received], -1)
        return jax.nn.leaky_relu(hk.Linear(1, name="a")(x))

    def net(graph):
        return jraph.GAT(lambda n: hk.Linear(4, name="q")(n), logits, jax.nn.relu)(graph).nodes

    return hk.transform(net)


class JraphNet(nn.Module):
    """jraph's own ogbg example in flax."""

    deterministic: bool = True

    @nn.compact
    def __call__(self, graphs):
        import jraph

        @jraph.concatenated_args
        def update(x):
            x = nn.LayerNorm()(nn.relu(nn.Dense(8)(x)))
            return nn.Dropout(0.1, deterministic=self.deterministic)(x)

        graphs = jraph.GraphMapFeatures(nn.Dense(8), nn.Dense(8))(graphs)
        graphs = jraph.GraphNetwork(update, update, update)(graphs)
        return graphs._replace(globals=nn.Dense(3)(graphs.globals))


class GCN(nn.Module):
    @nn.compact
    def __call__(self, graph):
        import jraph

        for features in (8, 3):
            graph = jraph.GraphConvolution(nn.Dense(features), add_self_edges=True)(graph)
        return graph.nodes


_JRAPH = {"requires": "jraph", "batched": False}
haiku.add("jraph.GraphNetwork (GraphsTuple in, out)", _graph_network, _graph(2, 3), **_JRAPH)
haiku.add("jraph.InteractionNetwork (globals=None)", _interaction_network, _graph(), **_JRAPH)
haiku.add("jraph.GAT (edges=None)", _graph_attention, _graph(None), **_JRAPH)
linen.add(
    "jraph.GraphNetwork (attribute flag)",
    JraphNet,
    _graph(2, 3),
    rngs=DROPOUT,
    **_JRAPH,
    **by_attribute(DETERMINISTIC),
)
linen.add("jraph.GraphConvolution", GCN, _graph(None), **_JRAPH)
linen.add(
    "jeometric GCNLayer",
    attribute("jeometric.gnn.GCNLayer", input_dim=3, output_dim=4, add_self_edges=True),
    given(f32(5, 3), ids(6, n=5), ids(6, n=5, seed=1)),
    requires="--no-deps jeometric",
    batched=False,
)

# ---- atoms: e3x, e3nn-jax, jax-md, jaxfvld, ablanx --------------------------------------


class MessagePassing(nn.Module):
    """e3x' own potential example: integers, segment ids and a static batch size."""

    features: int = 4

    @nn.compact
    def __call__(self, numbers, positions, dst_idx, src_idx, segments=None, batch_size=None):
        import e3x

        if segments is None:
            segments, batch_size = jnp.zeros_like(numbers), 1
        basis = e3x.nn.basis(
            positions[src_idx] - positions[dst_idx],
            num=4,
            max_degree=1,
            radial_fn=e3x.nn.reciprocal_bernstein,
            cutoff_fn=functools.partial(e3x.nn.smooth_cutoff, cutoff=5.0),
        )
        x = e3x.nn.Embed(num_embeddings=10, features=self.features)(numbers)
        y = e3x.nn.MessagePass()(x, basis, dst_idx=dst_idx, src_idx=src_idx)
        y = e3x.nn.silu(e3x.nn.Dense(self.features)(e3x.nn.add(x, y)))
        x = e3x.nn.add(x, e3x.nn.TensorDense(max_degree=0)(y))
        energy = nn.Dense(1, use_bias=False)(x)
        return jax.ops.segment_sum(jnp.squeeze(energy, (-1, -2, -3)), segments, batch_size)


def _pairs(number: int) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.nonzero(~np.eye(number, dtype=bool))
    return one.astype("int32"), other.astype("int32")


_ATOMS = (ids(4, n=9) + 1, f32(4, 3), *_pairs(4))
_E3X = {"requires": "e3x", "batched": False}
linen.add(
    "e3x message passing (static int)",
    MessagePassing,
    given(*_ATOMS, np.array([0, 0, 1, 1], "int32"), 2),
    **_E3X,
)
linen.add("e3x message passing (defaults None)", MessagePassing, given(*_ATOMS), **_E3X)
linen.add(
    "e3x.nn.Tensor",
    attribute("e3x.nn.Tensor", max_degree=2),
    given(f32(3, 1, 4, 2), f32(3, 1, 4, 2, seed=1)),
    requires="e3x",
)
linen.add(
    "e3x.nn.SelfAttention",
    attribute("e3x.nn.SelfAttention", max_degree=1, num_heads=2),
    given(
        f32(3, 1, 4, 4),
        f32(6, 1, 4, 3, seed=1),
        dst_idx=np.array([0, 0, 1, 1, 2, 2]),
        src_idx=np.array([1, 2, 0, 2, 0, 1]),
        num_segments=3,
    ),
    **_E3X,
)


def _e3nn_gate():
    import e3nn_jax as e3nn
    import e3nn_jax.haiku as layers

    def forward(x):
        x = e3nn.gate(layers.Linear("4x0e + 2x0e + 2x1o")(x))
        y = layers.MultiLayerPerceptron([6], jax.nn.silu)(x.filter("0e").array)
        return layers.Linear("0e + 1o")(x), y

    return forward


def _e3nn_linear():
    import e3nn_jax.flax

    return e3nn_jax.flax.Linear("3x0e + 2x1o")


def _irreps():
    import e3nn_jax as e3nn

    return (e3nn.IrrepsArray("2x0e + 1o", f32(3, 5)),), {}


haiku.add("e3nn-jax gate (IrrepsArray in, out)", _e3nn_gate, _irreps, requires="e3nn-jax")
linen.add("e3nn-jax Linear (IrrepsArray in, out)", _e3nn_linear, _irreps, requires="e3nn-jax")


def _nequip():
    from jax_md._nn import nequip

    config = nequip.default_config()
    config.graph_net_steps, config.n_elements = 1, 4
    config.hidden_irreps, config.sh_irreps = "4x0e + 2x1e", "1x0e + 1x1e"
    config.radial_net_n_hidden, config.num_basis = 8, 4
    config.shift, config.scale = 0.0, 1.0
    return nequip.model_from_config(config)


def _molecule():
    import jraph

    receivers, senders = _pairs(4)
    graph = jraph.GraphsTuple(
        nodes=np.eye(4, dtype="float32"),
        edges=f32(12, 3),
        receivers=receivers,
        senders=senders,
        globals=np.zeros((1,), "float32"),
        n_node=np.array([4], "int32"),
        n_edge=np.array([12], "int32"),
    )
    return (graph,), {}


linen.add(
    "jax-md NequIP energy",
    _nequip,
    _molecule,
    ignores=(
        "IrrepsArray.remove_nones is deprecated:DeprecationWarning",
        "e3nn.index_add is deprecated:DeprecationWarning",
    ),
    requires="--no-deps jax-md e3nn-jax jraph ml-collections sympy mpmath attrs",
    batched=False,
)


def _residues():
    types = ids(5, n=20)
    onehot = np.eye(20, dtype="float32")[types]
    index = np.arange(5, dtype="int32")
    args = (onehot, types, ids(5, n=2), index, np.ones(5, "float32"))
    return args, {"seq_emb": None, "ab_attn": None}


for _name, _options in (("", {}), (", triangle pairs", {"tri_pair": True})):
    linen.add(
        f"jaxfvld antibody folder{_name}",
        attribute(
            "jaxfvld.model.fold.Fold", c_s=16, c_z=8, n_layer=1, n_head=2, n_recycle=1, **_options
        ),
        _residues,
        requires="jaxfvld",
        batched=False,
    )


class AbLangBlock(nn.Module):
    """One block instead of twelve, since its sizes are constants of the package."""

    @nn.compact
    def __call__(self, tokens, mask, return_attn=True):
        from ablang_jax import model

        x = nn.Embed(model.VOCAB, model.HID)(tokens.astype("int32"))
        frequencies = model._rope_freqs(model.HEAD_DIM)
        return model.Block(name="b0")(x, mask, frequencies, return_attn=return_attn)


linen.add(
    "ablanx block (attention or None out)",
    AbLangBlock,
    given(ids(1, 4, n=20), np.ones((1, 4), "float32"), return_attn=False),
    requires="ablanx",
)

# ---- distributions and flows: distrax, surjectors, ott-jax ------------------------------


def _coupling_flow():
    """distrax' flow example: log_prob of a MaskedCoupling flow."""
    import distrax

    def conditioner():
        mlp = hk.nets.MLP([8], activate_final=True)
        return hk.Sequential([mlp, hk.Linear(4 * 2), hk.Reshape((4, 2), preserve_dims=-1)])

    def bijector(params):
        return distrax.ScalarAffine(params[..., 0], log_scale=jnp.tanh(params[..., 1]))

    def log_prob(data):
        mask = jnp.arange(4) % 2 == 0
        layers = [
            distrax.MaskedCoupling(mask=m, bijector=bijector, conditioner=conditioner())
            for m in (mask, ~mask)
        ]
        base = distrax.Independent(distrax.Normal(jnp.zeros(4), jnp.ones(4)), 1)
        flow = distrax.Inverse(distrax.Chain(layers))
        return distrax.Transformed(base, flow).log_prob(data)

    return hk.without_apply_rng(hk.transform(log_prob))


class GaussianPolicy(nn.Module):
    @nn.compact
    def __call__(self, observation):
        import distrax

        h = nn.tanh(nn.Dense(8)(observation))
        log_std = self.param("log_std", nn.initializers.zeros, (2,))
        policy = distrax.MultivariateNormalDiag(nn.Dense(2)(h), jnp.exp(log_std))
        return policy, jnp.squeeze(nn.Dense(1)(h), -1)


haiku.add(
    "distrax MaskedCoupling flow",
    _coupling_flow,
    floats(3, 4),
    requires="distrax",
    ignores=TFP,
)
linen.add(
    "distrax policy (Distribution out)",
    GaussianPolicy,
    floats(3, 4),
    requires="distrax",
    ignores=TFP,
    lacks=NO_SYMBOLS,
)


def _funnel():
    """The README of surjectors."""
    import distrax
    from surjectors import Chain, LULinear, Slice, TransformedDistribution

    def decoder(z):
        mean, log_std = jnp.split(hk.nets.MLP([8, 6])(z), 2, -1)
        return distrax.Independent(distrax.Normal(mean, jnp.exp(log_std)), 1)

    def log_prob(y):
        base = distrax.Independent(distrax.Normal(jnp.zeros(3), jnp.ones(3)), 1)
        transform = Chain([LULinear(6), Slice(3, decoder), LULinear(3)])
        return TransformedDistribution(base, transform).log_prob(y)

    return hk.without_apply_rng(hk.transform(log_prob))


def _autoregressive_flow():
    """surjectors' examples pass the method's name, a string, first."""
    import distrax
    from surjectors import Chain, MaskedAutoregressive, Permutation, TransformedDistribution
    from surjectors.nn import MADE

    def bijector(params):
        return distrax.ScalarAffine(params[..., 0], log_scale=jnp.tanh(params[..., 1]))

    def call(method, **kwargs):
        order = jnp.arange(4)
        layers = []
        for _ in range(2):
            made = MADE(4, [8, 8], 2)
            layers.append(MaskedAutoregressive(bijector_fn=bijector, conditioner=made))
            order = order[::-1]
            layers.append(Permutation(order, 1))
        base = distrax.Independent(distrax.Normal(jnp.zeros(4), jnp.ones(4)), 1)
        return TransformedDistribution(base, Chain(layers))(method, **kwargs)

    return hk.transform(call)


_SURJECTORS = {"requires": "surjectors distrax", "ignores": TFP}
haiku.add("surjectors funnel flow", _funnel, floats(4, 6), **_SURJECTORS)
haiku.add(
    "surjectors MAF, the method a string argument",
    _autoregressive_flow,
    given("log_prob", y=f32(3, 4)),
    **_SURJECTORS,
)


def _ott(path: str, **kwargs: Any) -> Callable[[], Any]:
    return attribute(f"ott.neural.networks.{path}", **kwargs)


_OTT = {
    "requires": "--no-deps ott-jax jaxopt lineax equinox diffrax optimistix jaxtyping "
    "wadler-lindig tqdm",
    "ignores": ("JAXopt is no longer maintained:DeprecationWarning",),
}
_ICNN = {"dim_data": 2, "dim_hidden": [4, 4], "pos_weights": True}
linen.add("ott ICNN", _ott("icnn.ICNN", **_ICNN), floats(3, 2), **_OTT)
for _name, _shape, _potential in (("one point", (2,), True), ("vector field", (3, 2), False)):
    linen.add(
        f"ott PotentialMLP ({_name})",
        _ott("potentials.PotentialMLP", dim_hidden=[4], is_potential=_potential),
        floats(*_shape),
        batched=not _potential,
        **_OTT,
    )

# ---- agents: rlax, dopamax, pgx, evojax -------------------------------------------------


def _recurrent_q():
    """An R2D2-like network: LSTM core, resets, a transformed value, a sampled action."""
    import rlax

    def net(observation, action, resets, state):
        h = jnp.concatenate([hk.nets.MLP([8])(observation), jax.nn.one_hot(action, 3)], -1)
        h, state = hk.dynamic_unroll(hk.ResetCore(hk.LSTM(6)), (h, resets), state)
        advantage = hk.Linear(3)(h)
        q = hk.Linear(1)(h) + advantage - advantage.mean(-1, keepdims=True)
        sampled = rlax.epsilon_greedy(0.1).sample(hk.next_rng_key(), q)
        return {"q": rlax.SIGNED_HYPERBOLIC_PAIR.apply_inv(q), "action": sampled}, state

    return hk.transform(net)


haiku.add(
    "rlax recurrent Q network",
    _recurrent_q,
    given(
        f32(4, 2, 5),
        ids(4, 2, n=3),
        booleans(4, 2),
        hk.LSTMState(hidden=f32(2, 6), cell=f32(2, 6, seed=2)),
    ),
    requires="rlax",
    ignores=(*TFP, "Rlax epsilon_greedy will be deprecated:PendingDeprecationWarning"),
    batched=False,
)


def _dopamax(value_network: str | None) -> Callable[[], Any]:
    def make():
        from dopamax.networks import get_actor_critic_model_fn, get_mlp_build_fn
        from dopamax.spaces import Discrete

        build = get_mlp_build_fn((8, 8))
        model = get_actor_critic_model_fn(Discrete(3), build, value_network=value_network)
        return hk.transform(model)

    return make


_DOPAMAX = {
    "requires": "--no-deps dopamax distrax tfp-nightly brax gymnax pgx flashbax",
    "ignores": TFP,
    "lacks": NO_SYMBOLS,
}
haiku.add("dopamax actor-critic", _dopamax("shared"), floats(2, 5), **_DOPAMAX)
haiku.add("dopamax policy (Distribution out)", _dopamax(None), floats(2, 5), **_DOPAMAX)


def _alpha_zero():
    from pgx._src.baseline import _create_az_model_v0

    def forward(x, is_eval=False):
        net = _create_az_model_v0(4, num_channels=4, num_layers=1)
        return net(x, is_training=not is_eval, test_local_stats=False)

    return hk.without_apply_rng(hk.transform_with_state(forward))


haiku.add(
    "pgx AlphaZero (is_eval=, boolean planes)",
    _alpha_zero,
    given(booleans(2, 4, 4, 3)),
    requires="pgx",
    train={"is_eval": False},
    eval={"is_eval": True},
)


def _neuron():
    from evojax.policy.mlp_pi import AttentionNeuronMLP

    return AttentionNeuronMLP(act_dim=2, msg_dim=4, hidden_dim=5, pos_em_dim=4, pos_em=f32(5, 3))


def _addition():
    from evojax.policy.seq2seq import char_table

    size = char_table.vocab_size
    return (onehots(2, 5, size), onehots(2, 4, size, 1)), {}


_EVOJAX = {"requires": "--no-deps evojax pillow"}
linen.add(
    "evojax MLP (string attribute)",
    attribute("evojax.policy.mlp.MLP", feat_dims=[6], out_dim=2, out_fn="softmax"),
    floats(3, 4),
    **_EVOJAX,
)
linen.add(
    "evojax AttentionNeuron (ndarray attribute)",
    _neuron,
    given(f32(3), f32(2), (f32(3, 4), f32(3, 4))),
    batched=False,
    **_EVOJAX,
)
linen.add(
    "evojax Seq2seq (attribute teacher_force)",
    attribute("evojax.policy.seq2seq.Seq2seq", teacher_force=False, hidden_size=6),
    _addition,
    train_attrs={"teacher_force": True},
    eval_attrs={"teacher_force": False},
    layer={"training_arg": "teacher_force"},
    **_EVOJAX,
)

# ---- images: bottleneck-transformer-flax, TNT, flaxmodels, jax-models, flaxdiff, vidax --


def _botnet():
    from bottleneck_transformer_flax import BoTNet, BoTNetConfig

    config = BoTNetConfig(
        stage_sizes=[1, 1, 1, 1],
        num_classes=5,
        num_heads=2,
        head_dim=4,
        initial_filters=4,
        projection_factor=2,
    )
    return BoTNet(config)


def _tnt():
    from transformer_in_transformer_flax import TNTConfig, TransformerInTransformer

    config = TNTConfig(
        num_classes=5,
        depth=1,
        image_size=32,
        patch_size=16,
        transformed_patch_size=4,
        inner_dim=4,
        inner_heads=2,
        inner_dim_head=2,
        outer_dim=8,
        outer_heads=2,
        outer_dim_head=4,
    )
    return TransformerInTransformer(config)


linen.add(
    "bottleneck-transformer-flax BoTNet",
    _botnet,
    floats(1, 32, 32, 3),
    requires="bottleneck-transformer-flax",
    **TRAIN,
)
linen.add(
    "transformer-in-transformer-flax",
    _tnt,
    floats(1, 32, 32, 3),
    requires="transformer-in-transformer-flax",
    ignores=("SelfAttention will be deprecated:DeprecationWarning",),
)
linen.add(
    "local-attention-flax (unbatched)",
    attribute("local_attention_flax.LocalAttention", dim=8, window_size=4, heads=2, dim_head=4),
    floats(8, 8),
    requires="local-attention-flax",
    batched=False,
)
_FLAXMODELS = {"requires": "--no-deps flaxmodels tqdm requests regex pillow"}
linen.add(
    "flaxmodels.ResNet18",
    attribute(
        "flaxmodels.ResNet18", output="logits", pretrained=None, normalize=False, num_classes=5
    ),
    floats(1, 32, 32, 3),
    **_FLAXMODELS,
    **TRAIN,
)


def _jax_models(path: str, **kwargs: Any) -> Callable[[], Any]:
    return attribute(f"jax_models.models.{path}", **kwargs)


_MIXER = {
    "patch_size": 4,
    "num_mixers_layers": 1,
    "hidden_size": 8,
    "channels_dim": 8,
    "tokens_dim": 4,
}
_JAX_MODELS = {"requires": "jax-models requests"}
linen.add(
    "jax-models MLPMixer (deterministic=None)",
    _jax_models("mlp_mixer.MLPMixer", attach_head=True, num_classes=3, **_MIXER),
    floats(2, 8, 8, 3),
    rngs=DROPOUT,
    **_JAX_MODELS,
    **DETERMINISTIC,
)
linen.add(
    "jax-models MLPMixer by attribute",
    _jax_models("mlp_mixer.MLPMixer", **_MIXER),
    floats(2, 8, 8, 3),
    rngs=DROPOUT,
    **_JAX_MODELS,
    **by_attribute(DETERMINISTIC),
)
linen.add(
    "jax-models ConvMixer",
    _jax_models(
        "conv_mixer.ConvMixer",
        features=6,
        patch_size=2,
        num_mixer_layers=1,
        filter_size=3,
        num_classes=3,
    ),
    floats(2, 8, 8, 3),
    **_JAX_MODELS,
    **DETERMINISTIC,
)
linen.add(
    "jax-models CaiT",
    _jax_models(
        "cait.CaiT",
        patch_size=8,
        embed_dim=8,
        depth=1,
        num_heads=2,
        drop=0.1,
        drop_path=0.2,
        attach_head=True,
        num_classes=3,
    ),
    floats(2, 16, 16, 3),
    rngs=("dropout", "drop_path"),
    **_JAX_MODELS,
    **DETERMINISTIC,
)
linen.add(
    "jax-models MAE (a stream in inference)",
    _jax_models(
        "masked_autoencoder.MaskedAutoencoderViT",
        patch_size=4,
        emb_dim=8,
        dec_emb_dim=8,
        depth=1,
        dec_depth=1,
        drop=0.1,
        drop_path=0.1,
        num_heads=2,
        dec_num_heads=2,
    ),
    floats(2, 8, 8, 3),
    rngs=("dropout", "drop_path", "noise"),
    **_JAX_MODELS,
    **DETERMINISTIC,
)

_FLAXDIFF = {"requires": "--no-deps flaxdiff einops"}
_NOISED = given(f32(1, 8, 8, 3), f32(1), f32(1, 3, 8))
linen.add(
    "flaxdiff Unet (dict configs as attributes)",
    attribute(
        "flaxdiff.models.simple_unet.Unet",
        emb_features=8,
        feature_depths=(8, 8),
        attention_configs=(None, {"heads": 2}),
        num_res_blocks=1,
        norm_groups=2,
    ),
    _NOISED,
    **_FLAXDIFF,
)
linen.add(
    "flaxdiff UViT",
    attribute(
        "flaxdiff.models.simple_vit.UViT",
        patch_size=4,
        emb_features=8,
        num_layers=2,
        num_heads=2,
        norm_groups=2,
    ),
    _NOISED,
    **_FLAXDIFF,
)
linen.add(
    "flaxdiff SimpleDiT",
    attribute(
        "flaxdiff.models.simple_dit.SimpleDiT",
        patch_size=4,
        emb_features=8,
        num_layers=1,
        num_heads=2,
    ),
    _NOISED,
    **_FLAXDIFF,
)
linen.add(
    "vidax WanDiT video diffusion",
    attribute(
        "vidax.models.wan.wan2_1.dit.WanDiT",
        dim=24,
        ffn_dim=16,
        num_heads=2,
        num_layers=1,
        in_dim=4,
        out_dim=4,
        freq_dim=8,
        text_dim=8,
        text_len=6,
        compute_dtype=jnp.float32,
    ),
    given(
        f32(1, 2, 4, 4, 4),
        np.array([10.0], "float32"),
        (f32(8, 1, 6), f32(8, 1, 6)),
        f32(1, 6, 8),
    ),
    requires="--no-deps vidax",
    batched=False,
)

# ---- sequences --------------------------------------------------------------------------


def _state_space(layer: str, tokens: bool) -> Callable[[], Any]:
    def make():
        from long_range_models import lru, s4, s5, sequence_models

        cell = {"lru": lru.LRULayer, "s5": s5.S5Layer}[layer]
        cell = functools.partial(cell, state_dim=4)
        body = s4.S4Module(dim=6, depth=1, sequence_layer=cell)
        if tokens:
            return sequence_models.SequenceModel(body, num_tokens=11)
        return sequence_models.ContinuousSequenceModel(body, out_dim=3, pool=True)

    return make


_STATE_SPACE = {"requires": "long-range-models"}
linen.add(
    "long-range-models LRU (tokens)",
    _state_space("lru", True),
    given(ids(2, 8, n=11)),
    **_STATE_SPACE,
)
linen.add(
    "long-range-models S5 (complex inside)",
    _state_space("s5", False),
    floats(2, 8, 3),
    **_STATE_SPACE,
)
linen.add(
    "jaxformers Transformer (attribute training)",
    attribute(
        "jaxformers.transformer.Transformer",
        embed_dim=64,
        max_seq_len=16,
        encoder_vocab_size=11,
        encoder_num_layers=1,
        encoder_num_heads=1,
        encoder_mlp_in_features=8,
        decoder_vocab_size=11,
        decoder_num_layers=1,
        decoder_num_heads=1,
        decoder_mlp_in_features=8,
    ),
    given(ids(2, 5, n=11), ids(2, 5, n=11, seed=1), None),
    rngs=DROPOUT,
    requires="--no-deps jaxformers",
    **by_attribute(TRAINING),
)


def _nano_moe():
    from nano_moe import NanoMoE, NanoMoEConfig

    config = NanoMoEConfig(
        vocab_size=13, n_layers=1, n_heads=2, d_model=8, d_ff=8, n_experts=2, top_k=1, block_size=8
    )
    return NanoMoE(config)


linen.add(
    "nano-moe-jax (logits, auxiliary loss)",
    _nano_moe,
    given(ids(2, 6, n=13)),
    rngs=DROPOUT,
    requires="nano-moe-jax",
    **DETERMINISTIC,
)


def _griffin():
    from recurrentgemma import common
    from recurrentgemma import jax as griffin

    kinds = common.TemporalBlockType
    config = common.GriffinConfig(
        vocab_size=16,
        width=16,
        mlp_expanded_width=16,
        num_heads=2,
        lru_width=16,
        block_types=(kinds.RECURRENT, kinds.ATTENTION),
        embeddings_scale_by_sqrt_dim=True,
        attention_window_size=8,
        logits_soft_cap=30.0,
        scan_type=common.ScanType.AUTO,
    )
    return griffin.Griffin(config)


_GRIFFIN = {
    "requires": "--no-deps recurrentgemma einops jaxtyping typeguard==2.13.3 sentencepiece",
}
linen.add(
    "recurrentgemma Griffin (cache out)",
    _griffin,
    given(ids(2, 6, n=16), positions(2, 6)),
    **_GRIFFIN,
)
linen.add(
    "recurrentgemma Griffin (None out)",
    _griffin,
    given(ids(2, 6, n=16), positions(2, 6), None, return_cache=False),
    **_GRIFFIN,
)
linen.add(
    "BwETAF MoE (streams dropout and noise)",
    attribute(
        "BwETAF.model.model.Model",
        num_heads=2,
        attention_dim=8,
        vocab_size=13,
        num_blocks=2,
        ff_dim=8,
        dropout_rate=0.1,
        num_experts=2,
        top_k=1,
        capacity=2.0,
    ),
    given(ids(2, 6, n=13), np.ones((2, 6), "int32"), noise_scale=0),
    rngs=("dropout", "noise"),
    requires="--no-deps BwETAF tqdm matplotlib huggingface_hub",
    ignores=("jax.experimental.pjit.pjit has been deprecated:DeprecationWarning",),
    **TRAINING,
)
_GATED_RNN = attribute(
    "flax_gated_linear_rnn.language_models.GatedLinearRNNLM",
    n_layer=2,
    d_model=8,
    d_channel_mixing=8,
    eps=1e-5,
    channel_mixing_dropout=0.1,
    time_mixing_dropout=0.1,
    input_vocab_size=13,
    output_vocab_size=13,
    max_seq_length=8,
    embedding_dropout=0.1,
    use_word_embedding=True,
    positional_encoding_mode="none",
    use_head=True,
    d_h=8,
)
for _name, _kwargs in (("", {}), (", carry given", {"carry": f32(2, 2, 8), "mask": None})):
    linen.add(
        f"flax-gated-linear-rnn (training required){_name}",
        _GATED_RNN,
        given(ids(2, 6, n=13), **_kwargs),
        rngs=DROPOUT,
        requires="flax-gated-linear-rnn",
        batched=not _kwargs,
        **TRAINING,
    )

# ---- small ones -------------------------------------------------------------------------


def _tiling():
    from fta.jax import FTA

    fta = FTA(bound=1.0, spillover_base=1.0, spillover_mode="raw", num_tiles=4)
    return nn.Sequential([nn.Dense(4), fta, nn.Dense(2)])


linen.add(
    "fuzzy-tiling-activation in nn.Sequential",
    _tiling,
    floats(3, 2),
    requires="fuzzy-tiling-activation",
)
linen.add(
    "rationalnets RationalMLP",
    attribute("rationalnets.RationalMLP", features=[8, 2]),
    floats(3, 2),
    requires="rationalnets",
)
linen.add(
    "underpinn GatedMLP (list attribute)",
    attribute("underPINN.nn.mlp.GatedMLP", layers=[2, 8, 8, 3]),
    floats(3, 2),
    requires="--no-deps underpinn matplotlib",
)

# ---- transformers 4 and diffusers: the modules, without PyTorch -------------------------


def _transformers(path: str, config: str, **options: Any) -> Callable[[], Any]:
    """Makes a module of transformers from a config."""

    def make():
        import transformers

        folder, _, name = path.rpartition(".")
        module = importlib.import_module(f"transformers.models.{folder}")
        return getattr(module, name)(getattr(transformers, config)(**options))

    return make


_TRANSFORMERS = {"requires": "transformers==4.53.3", "rngs": DROPOUT}
_SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
_TEXT = {"vocab_size": 13, "max_position_embeddings": 8, **_SMALL}
_IMAGE = {"image_size": 8, "patch_size": 4, **_SMALL}
_TOKENS = (ids(2, 5, n=13), np.ones((2, 5), "int32"))
_BERT_CALL = (*_TOKENS, np.zeros((2, 5), "int32"), positions(2, 5), None)


def _bert(name: str) -> Callable[[], Any]:
    return _transformers(f"bert.modeling_flax_bert.{name}", "BertConfig", **_TEXT)


linen.add(
    "transformers BERT (ModelOutput)",
    _bert("FlaxBertModule"),
    given(*_BERT_CALL),
    **_TRANSFORMERS,
    **DETERMINISTIC,
)
linen.add(
    "transformers BERT (return_dict=False)",
    _bert("FlaxBertModule"),
    given(*_BERT_CALL, return_dict=False, output_attentions=True, output_hidden_states=True),
    **_TRANSFORMERS,
    **DETERMINISTIC,
)
linen.add(
    "transformers BERT classifier",
    _bert("FlaxBertForSequenceClassificationModule"),
    given(*_BERT_CALL),
    **_TRANSFORMERS,
    **DETERMINISTIC,
)
linen.add(
    "transformers GPT-2",
    _transformers(
        "gpt2.modeling_flax_gpt2.FlaxGPT2LMHeadModule",
        "GPT2Config",
        vocab_size=13,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=2,
    ),
    given(*_TOKENS, positions(2, 5)),
    **_TRANSFORMERS,
    **DETERMINISTIC,
)
linen.add(
    "transformers ViT (input by keyword)",
    _transformers("vit.modeling_flax_vit.FlaxViTModule", "ViTConfig", **_IMAGE),
    given(pixel_values=f32(2, 8, 8, 3)),
    **_TRANSFORMERS,
    **DETERMINISTIC,
)
linen.add(
    "transformers ResNet (batch_stats)",
    _transformers(
        "resnet.modeling_flax_resnet.FlaxResNetModule",
        "ResNetConfig",
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 1],
        layer_type="basic",
    ),
    floats(1, 16, 16, 3),
    **_TRANSFORMERS,
    **DETERMINISTIC,
)
linen.add(
    "transformers Llama",
    _transformers("llama.modeling_flax_llama.FlaxLlamaModule", "LlamaConfig", **_TEXT),
    given(*_TOKENS, positions(2, 5)),
    **_TRANSFORMERS,
    **DETERMINISTIC,
)
linen.add(
    "transformers Whisper (features and tokens)",
    _transformers(
        "whisper.modeling_flax_whisper.FlaxWhisperModule",
        "WhisperConfig",
        vocab_size=13,
        num_mel_bins=4,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_source_positions=4,
        max_target_positions=6,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    given(
        input_features=f32(1, 4, 8),
        decoder_input_ids=ids(1, 4, n=13),
        decoder_attention_mask=np.ones((1, 4), "int32"),
        decoder_position_ids=positions(1, 4),
    ),
    **_TRANSFORMERS,
    **DETERMINISTIC,
)
linen.add(
    "transformers CLIP (text and image)",
    _transformers(
        "clip.modeling_flax_clip.FlaxCLIPModule",
        "CLIPConfig",
        text_config={**_TEXT, "eos_token_id": 2},
        vision_config=_IMAGE,
        projection_dim=4,
    ),
    given(
        input_ids=ids(2, 4, n=13),
        pixel_values=f32(2, 8, 8, 3),
        attention_mask=np.ones((2, 4), "int32"),
        position_ids=positions(2, 4),
    ),
    **_TRANSFORMERS,
    **DETERMINISTIC,
)

_DIFFUSERS = {
    "requires": "--no-deps diffusers==0.34.0 huggingface-hub<1 safetensors regex filelock "
    "requests tqdm pillow importlib_metadata zipp",
}
_AUTOENCODER = attribute(
    "diffusers.models.vae_flax.FlaxAutoencoderKL",
    block_out_channels=(8,),
    down_block_types=("DownEncoderBlock2D",),
    up_block_types=("UpDecoderBlock2D",),
    layers_per_block=1,
    latent_channels=2,
    norm_num_groups=2,
    sample_size=8,
)
linen.add(
    "diffusers U-Net (scalar timestep)",
    attribute(
        "diffusers.models.unets.unet_2d_condition_flax.FlaxUNet2DConditionModel",
        sample_size=8,
        in_channels=3,
        out_channels=3,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 32),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=8,
        dropout=0.1,
    ),
    given(f32(1, 3, 8, 8), np.array([3], "int32"), f32(1, 4, 8)),
    rngs=DROPOUT,
    **_DIFFUSERS,
    **TRAIN,
)
linen.add(
    "diffusers autoencoder (stream gaussian)",
    _AUTOENCODER,
    floats(1, 3, 8, 8),
    train={"sample_posterior": True, "deterministic": False},
    eval={"sample_posterior": False, "deterministic": True},
    layer={"training_arg": ("sample_posterior", "not deterministic")},
    rngs=("dropout", "gaussian"),
    **_DIFFUSERS,
)

CASES = [*haiku, *linen]
