"""What becomes of each collection and each leaf of the state."""

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
from jaxlayer_core import ModuleError, PatternError, key_from_seed

from .test_freezing import Net

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


class Rich(nn.Module):
    """Sows a loss, a metric, an output and a feature, under names of its own."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(4, name="encoder")(x)
        self.sow("stats", "mean", jnp.mean(x))
        self.sow("aux", "penalty", jnp.mean(x**2))
        self.sow("attention", "weights", nn.softmax(x))
        self.sow("intermediates", "feature", x + 1)
        return nn.Dense(1, name="head")(nn.relu(x))


def test_a_metric_is_averaged_and_reported(values):
    layer = FlaxLayer(Rich(), state_policy={"stats": "metric"}, seed=0)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    params = values(layer.params)
    expected = [
        float(Rich().apply(params, X[i : i + 4], mutable=["stats"])[1]["stats"]["mean"][0])
        for i in (0, 4)
    ]
    history = model.fit(X, X[:, :1], batch_size=4, epochs=2, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["stats/mean"], [np.mean(expected)] * 2, rtol=1e-5)
    result = model.evaluate(X, X[:, :1], batch_size=4, verbose=0, return_dict=True)
    np.testing.assert_allclose(result["stats/mean"], np.mean(expected), rtol=1e-5)
    layer(X, training=True)
    (metric,) = layer.metrics
    metric.reset_state()
    assert metric.result() == 0


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


def test_captured_features_feed_other_keras_layers(values):
    """Feature extraction from a model that knows nothing of it."""
    layer = FlaxLayer(Rich(), capture=["encoder", "feature"], seed=0)
    inputs = keras.Input((4,))
    outputs, features = layer(inputs)
    model = keras.Model(
        inputs, [outputs, keras.layers.Dense(3, use_bias=False)(features["encoder"])]
    )
    model.compile("sgd", ["mse", "mse"])
    model.fit(X, [X[:, :1], X[:, :3]], verbose=0)
    outputs, features = layer(X)
    native, sown = Rich().apply(
        values(layer.params), X, capture_intermediates=True, mutable=["intermediates"]
    )
    sown = sown["intermediates"]
    assert set(features) == {"encoder", "feature"}
    np.testing.assert_allclose(outputs, native, rtol=1e-6)
    np.testing.assert_allclose(features["encoder"], sown["encoder"]["__call__"][0], rtol=1e-6)
    np.testing.assert_allclose(features["feature"], sown["feature"][0], rtol=1e-6)


def test_a_module_called_twice_gives_both_results():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(4, name="shared")
            return dense(dense(x))

    _, features = FlaxLayer(Twice(), capture="shared")(X)
    assert [f.shape for f in features["shared"]] == [(8, 4), (8, 4)]


def test_capture_in_haiku(values):
    def forward(x):
        return hk.nets.MLP([5, 2])(x)

    layer = HaikuLayer(forward, capture=r"mlp/~/linear_\d", seed=0)
    outputs, features = layer(X)
    params = values(layer.params)
    hidden = X @ params["mlp/~/linear_0"]["w"] + params["mlp/~/linear_0"]["b"]
    assert set(features) == {"mlp/~/linear_0", "mlp/~/linear_1"}
    np.testing.assert_allclose(features["mlp/~/linear_0"], hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(features["mlp/~/linear_1"], outputs)


@pytest.mark.parametrize(
    ("make", "near"),
    [
        (lambda: FlaxLayer(Rich(), capture="encodr"), "encoder"),
        (lambda: HaikuLayer(lambda x: hk.nets.MLP([2])(x), capture="mlp/linear_0"), "mlp/~/lin"),
    ],
)
def test_a_path_that_nothing_has_names_near_misses(make, near):
    with pytest.raises(PatternError, match=rf"capture: .* matches n.*Near it are: .*{near}"):
        make()(X)


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


def test_metrics_in_a_trace_of_the_users_own():
    """Nothing is reported from there, and nothing of the trace is kept."""
    layer = FlaxLayer(Rich(), state_policy={"stats": "metric"})
    layer(X, training=False)
    before = float(layer.metrics[0].result())
    jax.jit(lambda x: layer(x, training=False))(2 * X)
    assert float(layer.metrics[0].result()) == before


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
