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
        f"{layer.name}/params/mlp/~/linear_{i}/{leaf}" for i in (0, 1) for leaf in "bw"
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
        f"{layer.name}/params/bias",
        f"{layer.name}/params/kernel",
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


def test_rules_and_annotations_split_weights_over_devices(run_python):
    """The user splits kernels over eight devices by a rule on their paths (`by rule`), or the
    module's author annotated them with `nn.with_partitioning` (`by author`).

    Keras' own layer has no variable that the rule matches, ignores the annotation, and
    replicates everything, without a word.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (shards have the whole shape).
    """
    printed = run_python(
        """
        import flax.linen as nn, keras, numpy as np
        from jaxlayer import FlaxLayer

        devices = keras.distribution.list_devices()
        mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"], devices)

        class Net(nn.Module):
            axes: tuple | None = None

            @nn.compact
            def __call__(self, x):
                init = nn.initializers.lecun_normal()
                if self.axes is not None:
                    init = nn.with_partitioning(init, self.axes)
                return nn.Dense(4)(nn.tanh(nn.Dense(8, kernel_init=init, name="hidden")(x)))

        def run(title, rule=None, axes=None):
            rules = keras.distribution.LayoutMap(mesh)
            if rule is not None:
                rules[".*hidden/kernel"] = rule
            keras.distribution.set_distribution(
                keras.distribution.ModelParallel(layout_map=rules, batch_dim_name="batch")
            )
            layer = FlaxLayer(Net(axes), seed=0)
            model = keras.Sequential([keras.Input((16,)), layer])
            created = {v.path.split("params/")[-1]: v.value.sharding for v in layer.weights}
            model.compile("sgd", "mse")
            x = np.linspace(-1, 1, 128, dtype="float32").reshape(8, 16)
            fitted = model.fit(x, np.ones((8, 4), "float32"), batch_size=8, epochs=2, verbose=0)
            print(title, "loss", *fitted.history["loss"], sep=";")
            for variable in layer.weights:
                path, value = variable.path.split("params/")[-1], variable.value
                before = created[path].shard_shape(value.shape)
                assert before == value.sharding.shard_shape(value.shape), "fit changed the layout"
                print(title, path, *before, sep=";")

        run("whole")
        run("by rule", rule=(None, "model"))
        run("by author", axes=(None, "model"))
        run("by both", rule=("batch", None), axes=(None, "model"))
        """,
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    )
    seen = {}
    for line in printed.splitlines():
        title, what, *numbers = line.split(";")
        seen.setdefault(title, {})[what] = tuple(map(float, numbers))
    losses = {title: shards.pop("loss") for title, shards in seen.items()}
    whole = {
        "hidden/kernel": (16, 8),
        "hidden/bias": (8,),
        "Dense_0/kernel": (8, 4),
        "Dense_0/bias": (4,),
    }
    assert seen["whole"] == whole
    assert seen["by rule"] == {**whole, "hidden/kernel": (16, 2)}
    assert seen["by author"] == {**whole, "hidden/kernel": (16, 2)}
    assert seen["by both"] == {**whole, "hidden/kernel": (8, 8)}, "the user's rule comes first"
    for title in losses:
        np.testing.assert_allclose(losses[title], losses["whole"], rtol=1e-5, err_msg=title)


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
        (bias,) = (v for v in layer.weights if v.path == f"{layer.name}/params/Dense_{i}/bias")
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


class Branches(nn.Module):
    """Two dense layers of one shape, called as the user calls them."""

    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        for name in self.names:
            x = nn.Dense(4, name=name)(x)
        return x


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_d6b_a_renamed_submodule_is_an_error_that_names_both_paths(tmp_path, values, suffix):
    """The user renames `alpha` to `zeta` and loads the old weights.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (alpha's kernel goes into beta).
    """
    old, new = (
        keras.Sequential([keras.Input((4,)), FlaxLayer(Branches(names))])
        for names in (("alpha", "beta"), ("beta", "zeta"))
    )
    path = tmp_path / f"model{suffix}"
    (old.save if suffix == ".keras" else old.save_weights)(path)
    before = values(new.layers[0].params)
    with pytest.raises(ValueError, match="params/alpha/kernel -> params/zeta/kernel"):
        new.load_weights(path)
    after = values(new.layers[0].params)
    np.testing.assert_array_equal(
        after["params"]["beta"]["kernel"], before["params"]["beta"]["kernel"]
    )
