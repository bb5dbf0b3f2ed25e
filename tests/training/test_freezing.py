"""`freeze` and `unfreeze`: leaves chosen by path."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

from jaxlayer import FlaxLayer, HaikuLayer
from jaxlayer_core import PatternError

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


@keras.saving.register_keras_serializable("test_freezing")
class Net(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.relu(nn.Dense(self.width, name="encoder")(x))
        return nn.Dense(1, name="head")(x)

    def get_config(self):
        return {"width": self.width}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def built(**options):
    layer = FlaxLayer(Net(), seed=0, **options)
    layer.build((None, 4))
    return layer


def trained(layer):
    return sorted(v.path.partition("/params/")[2] for v in layer.trainable_variables)


ALL = ["encoder/bias", "encoder/kernel", "head/bias", "head/kernel", "norm/bias", "norm/scale"]


@pytest.mark.parametrize(
    ("pattern", "rest"),
    [
        ("encoder", ["head/bias", "head/kernel", "norm/bias", "norm/scale"]),
        (r"params/(encoder|norm)/", ["head/bias", "head/kernel"]),
        (["kernel$", "norm"], ["encoder/bias", "head/bias"]),
        (lambda path: not path.endswith("bias"), ["encoder/bias", "head/bias", "norm/bias"]),
    ],
)
def test_patterns(pattern, rest):
    layer = built()
    assert trained(layer) == ALL
    layer.freeze(pattern)
    assert trained(layer) == rest
    layer.unfreeze(pattern)
    assert trained(layer) == ALL


def test_before_the_layer_is_built():
    layer = FlaxLayer(Net())
    layer.freeze("encoder")
    layer.unfreeze("encoder/bias")
    layer(X)
    assert trained(layer) == ["encoder/bias", *ALL[2:]]


def test_haiku_paths():
    layer = HaikuLayer(lambda x: hk.nets.MLP([4, 1])(x), seed=0)
    layer.build((None, 4))
    layer.freeze("linear_0/w")
    assert [v.path for v in layer.non_trainable_variables[:1]] == [
        f"{layer.name}/params/mlp/~/linear_0/w"
    ]


def test_five_steps_equal_optax_with_the_same_leaves_frozen(values):
    layer = built()
    layer.freeze("encoder")
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    variables = {**values(layer.params), **values(layer.state)}
    model.fit(X, X[:, :1], batch_size=8, epochs=5, shuffle=False, verbose=0)

    params, stats = variables["params"], variables["batch_stats"]
    frozen = jax.tree_util.tree_map_with_path(
        lambda path, _: "frozen" if path[0].key == "encoder" else "trained", params
    )
    optimizer = optax.multi_transform(
        {"trained": optax.sgd(0.1), "frozen": optax.set_to_zero()}, frozen
    )
    moments = optimizer.init(params)

    @jax.jit
    def step(params, stats, moments):
        def loss(params):
            outputs, after = Net().apply(
                {"params": params, "batch_stats": stats}, X, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(jnp.square(outputs - X[:, :1])), after["batch_stats"]

        gradients, stats = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), stats, moments

    for _ in range(5):
        params, stats, moments = step(params, stats, moments)
    got = values(layer.params)["params"]
    for leaf in ("kernel", "bias"):
        np.testing.assert_array_equal(
            got["encoder"][leaf], variables["params"]["encoder"][leaf], err_msg="it moved"
        )
    # Keras' step holds the update, too: XLA may round once where the native step rounds twice.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        values(layer.state)["batch_stats"],
        stats,
    )


def test_frozen_state_is_not_written(values, assert_same):
    """The statistics of a frozen part stay, also where only they are frozen."""
    layer = built()
    layer.freeze("batch_stats/norm/mean")
    before = values(layer.state)["batch_stats"]["norm"]
    layer(X, training=True)
    after = values(layer.state)["batch_stats"]["norm"]
    np.testing.assert_array_equal(after["mean"], before["mean"])
    assert np.all(after["var"] != before["var"])


def test_the_summary_and_the_optimizer_see_it():
    layer = built()
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.freeze("encoder")
    model.compile("adam", "mse")
    model.fit(X, X[:, :1], verbose=0)
    # Two moments for each of four variables, and a count and a learning rate.
    assert len(model.optimizer.variables) == 2 * 4 + 2
    lines = []
    model.summary(print_fn=lines.append)
    trainable = sum(int(np.prod(v.shape)) for v in layer.trainable_variables)
    assert f"Trainable params: {trainable} " in "\n".join(lines)


def test_it_survives_saving_cloning_and_set_weights(tmp_path, assert_same, values):
    layer = built()
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.freeze(lambda path: "encoder" in path)
    names = trained(layer)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    cloned = keras.models.clone_model(model)
    for again in (loaded, cloned):
        assert trained(again.layers[0]) == names
    assert_same(loaded.layers[0].params, layer.params)
    cloned.set_weights(model.get_weights())
    assert_same(cloned.layers[0].params, layer.params)
    assert trained(cloned.layers[0]) == names
    loaded.layers[0].unfreeze("encoder")
    assert trained(loaded.layers[0]) == ALL


def test_thawing_the_layer_leaves_the_frozen_leaves_frozen():
    layer = built()
    layer.freeze("encoder")
    names = trained(layer)
    layer.trainable = False
    assert layer.trainable_variables == []
    layer.trainable = True
    assert trained(layer) == names


def test_a_pattern_that_matches_nothing_lists_near_misses():
    layer = built()
    layer.freeze("head")
    before = trained(layer)
    with pytest.raises(PatternError, match=r"freeze: 'encodr/kernel' matches no path.*encoder/k"):
        layer.freeze(["norm", "encodr/kernel"])
    assert trained(layer) == before, "nothing changes if one pattern matches nothing"
    with pytest.raises(PatternError, match=r"unfreeze: .* matches no path"):
        layer.unfreeze(lambda path: False)
    late = FlaxLayer(Net())
    late.freeze("encodr")
    with pytest.raises(PatternError, match=r"'encodr' matches no path.*encoder"):
        late(X)


def test_a_pattern_must_be_one():
    layer = built()
    with pytest.raises(PatternError, match=r"freeze got '\(', which is not a regular expression"):
        layer.freeze("(")
    with pytest.raises(PatternError, match=r"freeze takes .* got 3 of type int"):
        layer.freeze([3])


def test_a_function_cannot_be_saved_before_its_paths_are_known():
    layer = FlaxLayer(Net())
    layer.freeze(lambda path: True)
    with pytest.raises(PatternError, match="cannot be saved before it is built"):
        layer.get_config()
