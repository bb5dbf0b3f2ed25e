"""D6, D6c: variables have the paths of the model's own leaves, at creation."""

import flax.linen as nn
import haiku as hk
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer

X = np.linspace(-1, 1, 24, dtype="float32").reshape(6, 4)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(3)(x))
        return nn.Dense(2, name="head")(x)


def test_flax_paths():
    """The user looks at `variable.path`.

    Keras' own layer calls them `variable_12`, numbered over the whole process.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (no path has a leaf's name).
    """
    layer = FlaxLayer(Net(), name="backbone")
    layer.build((None, 4))
    assert sorted(v.path for v in layer.weights) == [
        "backbone/batch_stats/norm/mean",
        "backbone/batch_stats/norm/var",
        "backbone/params/Dense_0/bias",
        "backbone/params/Dense_0/kernel",
        "backbone/params/head/bias",
        "backbone/params/head/kernel",
        "backbone/params/norm/bias",
        "backbone/params/norm/scale",
    ]
    assert {v.name for v in layer.trainable_weights} == {"bias", "kernel", "scale"}


def test_haiku_paths():
    """The same with Haiku, whose module names have slashes.

    Keras' own layer calls them `variable_12`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (JaxLayer: no path has a leaf's name).
    """
    layer = HaikuLayer(lambda x: hk.nets.MLP([3, 2])(x))
    layer.build((None, 4))
    assert sorted(v.path for v in layer.weights) == [
        f"haiku_layer/params/mlp/~/linear_{i}/{leaf}" for i in (0, 1) for leaf in "bw"
    ]


class Inner(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.core = FlaxLayer(nn.Dense(2), name="core")

    def call(self, x):
        return self.core(x)


def test_paths_include_the_layers_around():
    """The user's own layer holds ours.

    Keras' own layer calls them `inner/core/variable_12`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (the last name is a number).
    """
    inner = Inner(name="inner")
    inner(X)
    assert sorted(v.path for v in inner.weights) == [
        "inner/core/params/bias",
        "inner/core/params/kernel",
    ]


def test_given_variables_have_the_same_paths():
    """The user brings a checkpoint.

    Keras' own layer calls them `variable_12`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes.
    """
    given = {"params": {"kernel": np.ones((4, 2)), "bias": np.ones(2)}}
    layer = FlaxLayer(nn.Dense(2), variables=given)
    assert sorted(v.path for v in layer.weights) == [
        "flax_layer/params/bias",
        "flax_layer/params/kernel",
    ]


def test_exclude_from_weight_decay(values):
    """The user keeps biases out of weight decay by name.

    Keras' own layer has no variable called bias, so everything decays, without a word.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (the bias decays too).
    """
    ones = {"params": {"kernel": np.ones((4, 2), "float32"), "bias": np.ones(2, "float32")}}
    layer = FlaxLayer(nn.Dense(2), variables=ones)
    model = keras.Sequential([keras.Input((4,)), layer])
    optimizer = keras.optimizers.SGD(0.5, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, lambda y, prediction: 0 * prediction)
    model.fit(X, np.ones((6, 2)), batch_size=6, verbose=0)
    after = values(layer.params)["params"]
    np.testing.assert_array_equal(after["bias"], np.ones(2))
    np.testing.assert_allclose(after["kernel"], np.full((4, 2), 0.75))


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import flax.linen as nn, keras, numpy as np
from jaxlayer import FlaxLayer

mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"], keras.distribution.list_devices())
rules = keras.distribution.LayoutMap(mesh)
{rules}
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=rules, batch_dim_name="batch")
)
def annotated(names):
    return nn.with_partitioning(nn.initializers.lecun_normal(), names)

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(8, name="hidden"{hidden})(x))
        return nn.Dense(4, name="head")(x)

layer = FlaxLayer(Net(), seed=0)
{build}
model = keras.Sequential([keras.Input((16,)), layer])
model.compile("sgd", "mse")
x = np.linspace(-1, 1, 128, dtype="float32").reshape(8, 16)
history = model.fit(x, np.ones((8, 4), "float32"), batch_size=8, epochs=3, verbose=0).history
print(*history["loss"])
for variable in layer.weights:
    value = variable.value
    print(variable.path.removeprefix("sequential/"), tuple(value.sharding.shard_shape(value.shape)))
"""


def run_sharded(run_python, rules="", hidden="", build=""):
    printed = run_python(SHARDED.format(rules=rules, hidden=hidden, build=build))
    losses, *lines = printed.splitlines()
    return [float(loss) for loss in losses.split()], dict(line.split(" ", 1) for line in lines)


@pytest.fixture(scope="module")
def unsharded(run_python):
    return run_sharded(run_python)


WHOLE = {
    "flax_layer/params/hidden/kernel": "(16, 8)",
    "flax_layer/params/hidden/bias": "(8,)",
    "flax_layer/params/head/kernel": "(8, 4)",
    "flax_layer/params/head/bias": "(4,)",
}


def test_without_rules_nothing_is_split(unsharded):
    assert unsharded[1] == WHOLE


def test_layout_map_splits_by_path(run_python, unsharded):
    """The user splits kernels over eight devices by a rule on their paths.

    Keras' own layer has no variable that the rule matches, and replicates them all.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (shards have the whole shape).
    """
    losses, shards = run_sharded(run_python, rules='rules[".*hidden/kernel"] = (None, "model")')
    assert shards == {**WHOLE, "flax_layer/params/hidden/kernel": "(16, 2)"}
    np.testing.assert_allclose(losses, unsharded[0], rtol=1e-5)


def test_the_modules_own_annotation_splits(run_python, unsharded):
    """The module's author annotated the kernel with `nn.with_partitioning`.

    Keras' own layer ignores the annotation.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (shards have the whole shape).
    """
    losses, shards = run_sharded(
        run_python, hidden=', kernel_init=annotated((None, "model"))', build="layer.build((8, 16))"
    )
    assert shards == {**WHOLE, "flax_layer/params/hidden/kernel": "(16, 2)"}
    np.testing.assert_allclose(losses, unsharded[0], rtol=1e-5)


def test_a_rule_of_the_user_comes_before_the_annotation(run_python):
    """The user overrides the author's annotation.

    Keras' own layer sees neither.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (shards have the whole shape).
    """
    _, shards = run_sharded(
        run_python,
        rules='rules[".*hidden/kernel"] = ("batch", None)',
        hidden=', kernel_init=annotated((None, "model"))',
    )
    assert shards["flax_layer/params/hidden/kernel"] == "(8, 8)"


class Eleven(nn.Module):
    """`Dense_10` sorts before `Dense_2`."""

    @nn.compact
    def __call__(self, x):
        for _ in range(11):
            x = nn.Dense(4)(x)
        return x


def distinct():
    return {
        "params": {
            f"Dense_{i}": {
                "kernel": np.full((4, 4), i / 10, "float32"),
                "bias": np.full(4, i, "float32"),
            }
            for i in range(11)
        }
    }


def test_order_never_decides_what_loads_where(values, assert_same):
    """The user's module has eleven Dense layers, and a tool stores the entries in another order.

    Keras' own layer sorts Dense_0, Dense_1, Dense_10, Dense_2 and stores by position.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (entries are called 0, 1, 2, …).
    """
    layer = FlaxLayer(Eleven(), variables=distinct())
    layer.build((None, 4))
    for i in range(11):
        (bias,) = (v for v in layer.weights if v.path == f"flax_layer/params/Dense_{i}/bias")
        np.testing.assert_array_equal(values(bias), np.full(4, i))
    store = {}
    layer.save_own_variables(store)
    named = [name for name in store if "Dense_10" in name]
    assert len(named) == 2

    other = FlaxLayer(Eleven(), seed=1)
    other.build((None, 4))
    other.load_own_variables(dict(reversed(values(store).items())))
    assert_same(other.params, distinct())


def test_eleven_layers_through_a_weights_file(tmp_path, assert_same):
    """The user saves and loads the weights of eleven Dense layers.

    Keras' own layer manages this, as both sides sort alike.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: no.
    """
    saved, loaded = (
        keras.Sequential([keras.Input((4,)), FlaxLayer(Eleven(), variables=given)])
        for given in (distinct(), None)
    )
    saved.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    assert_same(loaded.layers[0].params, distinct())
