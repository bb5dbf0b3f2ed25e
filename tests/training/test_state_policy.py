"""What becomes of each collection and each leaf of the state."""

import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax.linen import partitioning
from flax.training.train_state import TrainState

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer
from jaxlayer_core import ModuleError, ModuleLayer, PatternError, key_from_seed
from jaxlayer_core.roles import Role

from .models import Rich
from .test_freezing import Net

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def test_a_collection_of_any_name_can_be_a_loss(values):
    layer = FlaxLayer(Rich(), state_policy={"aux": "loss"}, seed=0)
    layer(X, training=True)
    _, sown = Rich().apply(values(layer.params), X, mutable=["aux"])
    np.testing.assert_allclose(layer.losses[0], sown["aux"]["penalty"][0], rtol=1e-6)


def test_an_output_is_returned_beside_the_output(values):
    layer = FlaxLayer(Rich(), state_policy={"attention": "output"}, seed=0)
    for training in (False, True):
        _, beside = layer(X, training=training)
        _, sown = Rich().apply(values(layer.params), X, mutable=["attention"])
        ((name, (weights,)),) = beside.items()
        assert name == "attention/weights"
        np.testing.assert_allclose(weights, sown["attention"]["weights"][0], rtol=1e-6)


@pytest.mark.parametrize("pattern", ["intermediates", "intermediates/feature", "intermediates/.*"])
def test_one_of_the_intermediates_is_an_output(values, pattern):
    layer = FlaxLayer(Rich(), state_policy={pattern: "output"}, seed=0)
    _, beside = layer(X)
    _, sown = Rich().apply(values(layer.params), X, mutable=["intermediates"])
    ((name, (feature,)),) = beside.items()
    assert name == "intermediates/feature"
    np.testing.assert_allclose(feature, sown["intermediates"]["feature"][0], rtol=1e-6)


class Averaged(hk.Module):
    """State as Haiku models keep it: an average, and a figure to look at."""

    def __call__(self, x, is_training):
        mean = hk.get_state("mean", (), init=jnp.zeros)
        if is_training:
            hk.set_state("mean", 0.9 * mean + 0.1 * jnp.mean(x))
        hk.set_state("spread", jnp.std(x))
        return x - mean


def test_haiku_state_by_path(values):
    """A leaf of the state is a metric, a loss or an output beside being state."""
    policy = {r"averaged/spread": "metric", r"averaged/mean": "output"}
    layer = HaikuLayer(Averaged, state_policy=policy)
    _, beside = layer(X, training=True)
    assert list(beside) == ["averaged/mean"]
    np.testing.assert_allclose(beside["averaged/mean"], 0.1 * X.mean(), rtol=1e-5)
    np.testing.assert_allclose(layer.metrics[0].result(), X.std(), rtol=1e-5)
    loss = HaikuLayer(Averaged, state_policy={".*/spread": "loss"})
    loss(X, training=True)
    np.testing.assert_allclose(loss.losses[0], X.std(), rtol=1e-5)


def test_state_that_is_dropped_or_written_in_inference(values):
    def call(state, inputs, training):
        return inputs + state["n"], {"n": state["n"] + 1}

    def run(**options):
        layer = JaxLayer(call, state={"n": 0.0}, **options)
        layer(X, training=True)
        layer(X, training=False)
        return values(layer.state["n"])

    assert run() == 2, "a function that is told the mode decides itself what it writes"
    assert run(state_policy={"n": "state"}) == 1
    assert run(state_policy={"n": "drop"}) == 0


class Decoder(nn.Module):
    """Autoregressive attention, as in flax's language model example."""

    @nn.compact
    def __call__(self, x, decode: bool = False):
        attention = nn.MultiHeadDotProductAttention(num_heads=2, decode=True)
        return attention(nn.Embed(11, 8)(x))


def test_a_cache_decodes_token_by_token(values):
    """The batch is fixed, so the cache has a shape; inference writes it."""
    tokens = np.arange(12).reshape(2, 6) % 11
    layer = FlaxLayer(Decoder(), seed=0)
    layer.build((2, 6))
    variables = Decoder().init(key_from_seed([0, 0]), tokens)
    params, cache = {"params": variables["params"]}, variables["cache"]
    apply = jax.jit(
        lambda cache, x: Decoder().apply({**params, "cache": cache}, x, mutable="cache")
    )
    for step in range(6):
        outputs = layer(tokens[:, step : step + 1], training=False)
        native, after = apply(cache, tokens[:, step : step + 1])
        cache = after["cache"]
        np.testing.assert_array_equal(outputs, native)
    index = layer.state["cache"]["MultiHeadDotProductAttention_0"]["cache_index"]
    assert values(index) == 6


def test_a_cache_needs_a_batch_size():
    layer = FlaxLayer(Decoder())
    with pytest.raises(ValueError, match=r"cache/.*cached_key.*depends on a dimension that is"):
        layer(keras.Input((6,), dtype="int32"))
    fixed = FlaxLayer(Decoder())
    fixed.build((2, 6))
    with pytest.raises(ModuleError, match=r"int32\[3, 1\].*[Aa]utoregressive cache shape"):
        fixed(np.zeros((3, 1), "int32"), training=False)


class Annotating(nn.Module):
    """Writes axis names beside its params, as T5X models do."""

    @nn.compact
    def __call__(self, x):
        kernel = partitioning.param_with_axes(
            "kernel", nn.initializers.ones, (x.shape[-1], 2), axes=("embed", "mlp")
        )
        return x @ kernel


def test_metadata_is_carried_and_never_a_weight(values, tmp_path):
    layer = FlaxLayer(Annotating(), seed=0)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("sgd", "mse")
    model.fit(X, X[:, :2], verbose=0)
    assert [v.name for v in layer.weights] == ["kernel"]
    native = Annotating().init(key_from_seed([0, 0]), X)["params_axes"]
    assert layer.state["params_axes"] == native
    constant = FlaxLayer(Counted(), state_policy={"counters": "constant"})
    constant(X, training=True)
    assert len(constant.weights) == 0


class Counted(nn.Module):
    @nn.compact
    def __call__(self, x):
        count = self.variable("counters", "n", lambda: jnp.array(3.0))
        return x * count.value


@pytest.mark.without("JAX_NUMPY_RANK_PROMOTION=raise")  # the model itself promotes ranks
def test_a_collection_of_the_users_own_is_trained():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.variable("adapters", "scale", jnp.ones, (4,)).value

    layer = FlaxLayer(Scaled(), state_policy={"adapters": "param"})
    layer(X)
    assert [v.name for v in layer.trainable_variables] == ["scale"]


def test_fp8_collections_train_as_in_flax(values):
    """Their gradient is their new value; Flax's `TrainState` is the referee."""

    class Fp8(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(16, dot_general_cls=nn.Fp8DirectDotGeneralOp)(x)

    x = np.random.default_rng(0).normal(size=(16, 16)).astype("float32")
    y = np.roll(x, 1, axis=0)
    layer = FlaxLayer(Fp8(), seed=0)
    model = keras.Sequential([keras.Input((16,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    state = TrainState.create(apply_fn=None, params=values(layer.params), tx=optax.sgd(0.1))

    @jax.jit
    def step(state):
        def loss(params):
            return jnp.mean(jnp.square(Fp8().apply(params, x) - y))

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(5):
        state = step(state)
    model.fit(x, y, batch_size=16, epochs=5, verbose=0)
    got = values(layer.params)
    name = "_overwrite_with_gradient"
    jax.tree.map(np.testing.assert_array_equal, got[name], state.params[name])
    # Keras' step holds the update, too, so XLA may round once where the native step does twice.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        got["params"],
        state.params["params"],
    )


def test_a_word_that_is_no_role():
    with pytest.raises(PatternError, match=r"'stats' has 'metrics', which is no role. Roles are"):
        FlaxLayer(Rich(), state_policy={"stats": "metrics"})
    with pytest.raises(PatternError, match=r"'\(' is not a regular expression"):
        HaikuLayer(Averaged, state_policy={"(": "loss"})


def test_a_leaf_of_the_state_cannot_be_trained():
    layer = FlaxLayer(Counted(), state_policy={"counters/n": "param"})
    with pytest.raises(PatternError, match=r"`counters/n` has the role 'param'.*whole collection"):
        layer(X)


def test_options_are_saved(tmp_path):
    layer = FlaxLayer(
        Net(), state_policy={"batch_stats": "cache"}, capture="encoder", remat="dots_saveable"
    )
    inputs = keras.Input((4,))
    outputs, features = layer(inputs)
    model = keras.Model(inputs, [outputs, features["encoder"]])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(again(X), model(X), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.layers[1].get_config() == layer.get_config()


class Stateful(nn.Module):
    """Variables of several collections, and batch norm."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        draw = lambda: jax.random.normal(self.make_rng("params"), (4,))  # noqa: E731
        table = self.variable("tables", "rotary", draw)
        calls = self.variable("seen", "calls", lambda: jnp.zeros((), "int32"))
        last = self.variable("seen", "last", jnp.zeros, (4,))
        if self.is_mutable_collection("seen") and not self.is_initializing():
            calls.value = calls.value + 1
            last.value = x[0]
        return nn.BatchNorm(use_running_average=not train)(x) + table.value[None]


def test_constants_are_saved_and_are_no_weights(values, tmp_path):
    def model(seed):
        layer = FlaxLayer(Stateful(), state_policy={"tables": "constant"}, seed=seed)
        return keras.Sequential([keras.Input((4,)), layer])

    saved, other = model(0), model(1)
    other.predict(X, verbose=0)  # compiled before it is loaded
    saved.compile("sgd", "mse")
    saved.fit(X, X, verbose=0)
    saved.save_weights(tmp_path / "it.weights.h5")
    other.load_weights(tmp_path / "it.weights.h5")
    np.testing.assert_array_equal(other.predict(X, verbose=0), saved.predict(X, verbose=0))
    (layer,) = saved.layers
    assert "tables/rotary" not in {"/".join(v.path.split("/")[1:]) for v in layer.weights}
    native = Stateful().apply({**values(layer.params), **values(layer.state)}, X)
    np.testing.assert_allclose(layer(X), native, rtol=1e-6, atol=1e-6)


def test_batch_norm_with_constant_statistics(values):
    layer = FlaxLayer(Net(), state_policy={"batch_stats": "constant"})
    layer(X, training=True)
    state = values(layer.state)["batch_stats"]
    np.testing.assert_array_equal(state["norm"]["mean"], np.zeros(4))
    native = Net().apply({**values(layer.params), "batch_stats": state}, X)
    np.testing.assert_allclose(layer(X), native, rtol=1e-6)


class Puts(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.put_variable("stats", "mean", jnp.mean(x))
        return nn.Dense(1)(x)


def test_what_is_put_anew_in_each_call_is_shown():
    for training in (False, True):
        layer = FlaxLayer(Puts(), state_policy={"stats": "output"})
        np.testing.assert_allclose(
            layer(X, training=training)[1]["stats/mean"], X.mean(), rtol=1e-6
        )


def test_a_leaf_of_a_flax_collection_that_is_written_in_inference():
    layer = FlaxLayer(Stateful(), state_policy={"seen/calls": "cache"})
    for _ in range(3):
        layer(X, training=False)
    assert layer.state["seen"]["calls"].value == 3
    np.testing.assert_array_equal(layer.state["seen"]["last"].value, np.zeros(4))
    layer(X, training=True)
    np.testing.assert_array_equal(layer.state["seen"]["last"].value, X[0])


def test_leaves_of_a_flax_collection_that_are_shown_are_kept(values):
    layer = FlaxLayer(Stateful(), state_policy={"batch_stats/.*": "output", "seen/calls": "metric"})
    layer.build((8, 4))
    native = {**values(layer.params), **values(layer.state)}
    for _ in range(2):
        _, beside = layer(X, training=True)
        _, mutated = Stateful().apply(native, X, True, mutable=["batch_stats", "seen"])
        native |= mutated
    mean = native["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(beside["batch_stats/BatchNorm_0/mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(
        layer.state["batch_stats"]["BatchNorm_0"]["mean"].value, mean, rtol=1e-6
    )
    assert layer.metrics[0].result() == 1.5  # calls: 1, then 2


@pytest.mark.parametrize("role", ["output", "metric", "loss"])
def test_a_collection_of_variables_is_not_made_anew_in_each_call(role):
    layer = FlaxLayer(Stateful(), state_policy={"batch_stats": role})
    with pytest.raises(
        PatternError, match=rf"'batch_stats' is a coll.*'batch_stats/\.\*': '{role}'"
    ):
        layer(X)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"batch_stat": "cache"}, r"'batch_stat' matches no path of the state.*near.*batch_stats/"),
        ({"seen/call": "cache"}, r"'seen/call' matches no.*seen/calls"),
        ({"params/.*": "metric"}, r"matches no.*but params, which cannot have the role 'metric"),
        ({"params/.*": "constant"}, r"matches no.*but params, which cannot have the role 'const"),
        ({"ema": "param"}, r"'ema' matches no path of params"),
    ],
)
def test_entries_that_mean_nothing(policy, message):
    with pytest.raises(PatternError, match=rf"(?i)state_policy: .*{message}"):
        FlaxLayer(Stateful(), state_policy=policy)(X)


def test_entries_for_what_only_one_mode_makes_mean_something():
    FlaxLayer(Rich(), state_policy={"aux/penalty": "loss", "nothing": "drop"})(X)


def test_a_layer_over_the_adapter_splits_collections_alike():
    layer = ModuleLayer(Stateful(), adapter="flax.linen", state_policy={"tables": "param"})
    layer(X)
    assert [v.name for v in layer.trainable_variables] == ["bias", "scale", "rotary"]


def test_roles_and_frozen_dicts_in_a_config():
    policy = flax.core.freeze({"batch_stats": Role.CACHE})
    layer = FlaxLayer(Net(), state_policy=policy)
    assert layer.get_config()["state_policy"] == {"batch_stats": "cache"}


class Sows(nn.Module):
    def setup(self):
        self.dense = nn.Dense(4)

    def __call__(self, x):
        return self.dense(x)

    def encode(self, x):
        self.sow("stats", "mean", jnp.mean(x))
        return self.dense(x)


def test_what_another_method_sows_is_made_anew(values):
    """Also where the user's variables hold it, from an init with that method."""
    module = Sows()
    variables = module.init(jax.random.key(0), X, method="encode")
    assert "stats" in variables
    layer = FlaxLayer(module, variables=variables)
    for _ in range(2):
        outputs = layer(X, method="encode", training=True)
        native = module.apply(variables, X, method="encode", mutable=["stats"])[0]
        np.testing.assert_array_equal(outputs, native)
        layer(X, training=True)


class HidesItsFlag(nn.Module):
    @nn.compact
    def __call__(self, x, **options):
        x = nn.BatchNorm(use_running_average=not options["train"])(x)
        self.sow("stats", "mean", jnp.mean(x))
        return x


def hides_its_flag(x, **options):
    x = hk.BatchNorm(True, True, 0.9)(x, options["is_training"])
    hk.set_state("mean", jnp.mean(x))
    return x


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlaxLayer(HidesItsFlag(), state_policy={"stats": "metric"}),
        lambda: HaikuLayer(hides_its_flag, state_policy={"~/mean": "metric"}),
    ],
)
def test_a_model_that_hides_its_flag_has_roles(make):
    layer = make()
    layer(X, training=True)
    assert abs(layer.metrics[0].result()) < 1e-6
    assert layer.trainable_variables
