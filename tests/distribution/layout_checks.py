"""What holds on eight devices: values, layouts, training. Run by test_layouts.py."""

import tempfile
import warnings

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from keras import distribution as kd

from jaxlayer import (
    EquinoxLayer,
    FlaxLayer,
    HaikuLayer,
    check_layout_map,
    layout_map_from,
    scan_steps,
)
from jaxlayer_core import key_from_seed

X = np.random.default_rng(0).normal(size=(32, 16)).astype("float32")
Y = np.random.default_rng(1).normal(size=(32, 8)).astype("float32")
LECUN = nn.initializers.lecun_normal()


class Split(nn.Module):
    """Annotated with axes of the mesh; constrains what it computes; has state and draws."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(16, kernel_init=nn.with_partitioning(LECUN, (None, "model")))(x)
        x = jax.lax.with_sharding_constraint(x, P("batch", "model"))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(8, kernel_init=nn.with_partitioning(LECUN, ("model", None)))(x)


class Named(nn.Module):
    """Annotated with names of its own."""

    @nn.compact
    def __call__(self, x):
        split = nn.with_logical_partitioning
        x = nn.Dense(
            16,
            kernel_init=split(LECUN, ("embed", "mlp")),
            bias_init=split(nn.initializers.zeros, ("mlp",)),
        )(x)
        x = nn.with_logical_constraint(nn.relu(x), ("batch", "mlp"))
        return nn.Dense(8, kernel_init=split(LECUN, ("mlp", "embed")))(x)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(16)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(8)(x)


def haiku_plain(x, is_training):
    x = hk.Linear(16)(x)
    x = hk.BatchNorm(True, True, 0.9)(x, is_training)
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(8)(jax.nn.relu(x))


class NnxPlain(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.Linear(16, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


def equinox_plain(key):
    """Each example is called by itself; the batch is an axis with a name."""
    one, two = jax.random.split(key)
    return eqx.nn.Sequential(
        [
            eqx.nn.Linear(16, 16, key=one),
            eqx.nn.BatchNorm(16, "batch", momentum=0.9, mode="batch"),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Dropout(0.5),
            eqx.nn.Linear(16, 8, key=two),
        ]
    )


PLAIN = {
    "linen": lambda: FlaxLayer(Plain(), seed=1),
    "haiku": lambda: HaikuLayer(haiku_plain, seed=1),
    "nnx": lambda: FlaxLayer(NnxPlain, seed=1),
    "equinox": lambda: EquinoxLayer(equinox_plain, seed=1),
}


def mesh_of(shape=(2, 4), axes=("batch", "model")):
    return kd.DeviceMesh(shape, axes)


def model_parallel(layout_map=None, mesh=None):
    layout_map = kd.LayoutMap(mesh or mesh_of()) if layout_map is None else layout_map
    kd.set_distribution(kd.ModelParallel(layout_map=layout_map, batch_dim_name="batch"))


def in_fit(layer, steps=5, optimizer="adam"):
    model = keras.Sequential([keras.Input((16,)), layer], name="model")
    model.compile(optimizer, "mse")
    losses = [model.train_on_batch(X, Y) for _ in range(steps)]
    return model, [float(loss) for loss in losses]


def specs(variables):
    return {v.path.split("/", 1)[1]: v.value.sharding.spec for v in variables}


# Data parallel.


def check_data_parallel_losses():
    for kind, make in PLAIN.items():
        _, alone = in_fit(make())
        kd.set_distribution(kd.DataParallel(devices=kd.list_devices()))
        layer = make()
        _, together = in_fit(layer)
        assert layer.weights[0].value.sharding.num_devices == 8
        np.testing.assert_allclose(together, alone, rtol=2e-6, err_msg=kind)
        kd.set_distribution(None)


def check_data_parallel_batch_statistics():
    """Those of the whole batch, not of one device's part."""
    kd.set_distribution(kd.DataParallel(devices=kd.list_devices()))
    linen = nn.BatchNorm(use_running_average=None, momentum=0.0)
    for layer in (
        FlaxLayer(linen, seed=1, training_arg="not use_running_average"),
        FlaxLayer(nnx.BatchNorm(16, momentum=0.0, rngs=nnx.Rngs(0))),
        EquinoxLayer(eqx.nn.BatchNorm(16, "batch", momentum=0.0, mode="batch")),
    ):
        model = keras.Sequential([keras.Input((16,)), layer])
        model.compile("sgd", "mse")
        model.train_on_batch(X, X)
        mean, var = (v.value for v in layer.non_trainable_weights if v.shape == (16,))
        np.testing.assert_allclose(mean, X.mean(0), atol=1e-6, err_msg=layer.name)
        np.testing.assert_allclose(var, X.var(0), rtol=1e-5, err_msg=layer.name)


# Annotations and rules.


def check_annotations():
    model_parallel()
    layer = FlaxLayer(Split(), seed=3)
    model, _ = in_fit(layer)
    found = specs(layer.weights)
    assert found["flax_layer/params/Dense_0/kernel"] == P(None, "model")
    assert found["flax_layer/params/Dense_1/kernel"] == P("model", None)
    slots = {v.path: v.value.sharding.spec for v in model.optimizer.variables}
    for slot in ("momentum", "velocity"):
        assert slots[f"adam/model_flax_layer_params_Dense_0_kernel_{slot}"] == P(None, "model")
    kd.set_distribution(None)


def check_losses_are_those_of_one_device():
    model_parallel()
    _, split = in_fit(FlaxLayer(Split(), seed=3))
    kd.set_distribution(None)
    _, alone = in_fit(FlaxLayer(Plain(), seed=3))
    np.testing.assert_allclose(split, alone, rtol=5e-6)  # sums over the axis are in parts


def check_constraints_inside_count():
    """In `fit`, in `predict` and eagerly, a constraint splits what it is for."""
    splits(lambda x: jax.lax.with_sharding_constraint(x, P(None, "model")))
    with nn.logical_axis_rules([("mlp", "model")]):
        splits(lambda x: nn.with_logical_constraint(x, (None, "mlp")))


def splits(constrain):
    seen = []

    class Watching(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = constrain(nn.Dense(16)(x))
            jax.debug.inspect_array_sharding(x, callback=lambda s: seen.append(s))
            return x

    model_parallel()
    layer = FlaxLayer(Watching())
    model = keras.Sequential([keras.Input((16,)), layer])
    model.compile("sgd", "mse")
    rows = np.zeros((32, 16), "float32")
    for run in (
        lambda: layer(X),
        lambda: model.predict(X, verbose=0),
        lambda: model.train_on_batch(X, rows),
        lambda: model.evaluate(X, rows, verbose=0),
    ):
        seen.clear()
        run()
        assert seen, "nothing was constrained"
        assert all(s.shard_shape((32, 16))[1] == 4 for s in seen), seen


def check_rules_of_names():
    layer = FlaxLayer(Named(), seed=1, name="named")
    mesh = mesh_of()
    rules = {"mlp": "model", "embed": None}
    layout_map = layout_map_from(
        layer, mesh, rules, inputs=jax.ShapeDtypeStruct((8, 16), "float32")
    )
    model_parallel(layout_map)
    with nn.logical_axis_rules([("mlp", "model"), ("batch", "batch")]):
        _, losses = in_fit(layer)
    found = specs(layer.weights)
    assert found["named/params/Dense_0/kernel"] == P(None, "model")
    assert found["named/params/Dense_0/bias"] == P("model")
    assert found["named/params/Dense_1/kernel"] == P("model", None)
    native = nn.meta.unbox(Named().init(key_from_seed([1, 0]), X[:1]))
    kd.set_distribution(None)
    _, alone = in_fit(FlaxLayer(Named(), variables=native, seed=1))
    np.testing.assert_allclose(losses, alone, rtol=5e-6)


def check_several_names_at_once():
    """Keras' layouts cannot say it, so such a dimension stays whole; the others are split."""
    init = nn.with_partitioning(LECUN, (("batch", "model"), "model"))
    layer = FlaxLayer(nn.Dense(8, kernel_init=init), name="both")
    layout_map = layout_map_from(layer, mesh_of(), inputs=X)
    assert layout_map["both/params/kernel"].axes == (None, "model")
    model_parallel()
    layer.build((8, 16))
    assert specs(layer.weights)["params/kernel"] == P(None, "model")


def check_rules_of_paths():
    layer = HaikuLayer(hk.nets.MLP, [16, 8], seed=1, name="mlp")
    layout_map = layout_map_from(
        layer,
        mesh_of(),
        paths={r"linear_0/w": (None, "model"), r"linear_1/w": ("model",)},
        inputs=X,
    )
    model_parallel(layout_map)
    model, _ = in_fit(layer)
    found = specs(model.weights)
    assert found["mlp/params/mlp/~/linear_0/w"] == P(None, "model")
    assert found["mlp/params/mlp/~/linear_1/w"] == P("model", None)


def check_plans_are_what_is_made():
    """The shardings of `to_abstract`, before there are variables and after; nothing is made."""
    inputs = jax.ShapeDtypeStruct(X.shape, X.dtype)
    makers = {
        "annotated": lambda: FlaxLayer(Split(), name="split", seed=3),
        "named": lambda: FlaxLayer(Named(), name="named", seed=3),
        "haiku": lambda: HaikuLayer(haiku_plain, name="plain", seed=3),
    }
    for make in makers.values():
        layer = make()
        rules = {"mlp": "model", "embed": "batch"} if layer.name == "named" else None
        paths = {"linear/w": (None, "model")} if layer.name == "plain" else None
        model_parallel(layout_map_from(layer, mesh_of(), rules, paths=paths, inputs=inputs))
        existing = len(jax.live_arrays())
        planned = layer.to_abstract(inputs)
        assert len(jax.live_arrays()) == existing
        assert not layer.built
        in_fit(layer, steps=1)
        made = layer.to_abstract()
        assert jax.tree.structure(planned[1:]) == jax.tree.structure(made[1:])
        for before, after in zip(*map(jax.tree.leaves, (planned[1:], made[1:])), strict=True):
            assert (before.shape, before.dtype) == (after.shape, after.dtype)
            assert before.sharding.is_equivalent_to(after.sharding, before.ndim)
        assert not all(
            leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(planned.params)
        )


def check_ordinary_layout_map():
    """Regular expressions over our paths, as for Keras' own layers; they go before annotations."""
    layout_map = kd.LayoutMap(mesh_of())
    layout_map[".*Dense_0/kernel"] = ("model", None)
    layout_map["sequential/keras_dense/kernel"] = (None, "model")
    model_parallel(layout_map)
    layer = FlaxLayer(Split(), seed=3)
    model = keras.Sequential(
        [keras.Input((16,)), keras.layers.Dense(16, name="keras_dense"), layer], name="sequential"
    )
    found = specs(model.weights)
    assert found["flax_layer/params/Dense_0/kernel"] == P("model", None)
    assert found["flax_layer/params/Dense_1/kernel"] == P("model", None)
    assert found["keras_dense/kernel"] == P(None, "model")


def check_scanned_steps():
    """The same bits and the same shardings."""
    found = []
    for scanned in (True, False):
        model_parallel()
        model = keras.Sequential([keras.Input((16,)), FlaxLayer(Split(), seed=3)], name="model")
        if scanned:
            scan_steps(model)
        model.compile("adam", "mse", steps_per_execution=2)
        model.fit(X, Y, batch_size=8, epochs=2, verbose=0, shuffle=False)
        found.append({v.path: v.value for v in (*model.variables, *model.optimizer.variables)})
    ours, theirs = (list(values.values()) for values in found)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


def check_shardings_are_stable():
    """Steps neither move weights nor compile again."""
    traces = []

    class Counting(Split):
        @nn.compact
        def __call__(self, x, train: bool = False):
            traces.append(train)
            return Split.__call__(self, x, train)

    model_parallel()
    layer = FlaxLayer(Counting(), seed=3)
    model, _ = in_fit(layer, steps=2)
    before, count = specs(model.variables), len(traces)
    slots = {v.path: v.value.sharding for v in model.optimizer.variables}
    for _ in range(3):
        model.train_on_batch(X, Y)
    model.fit(X, Y, batch_size=32, epochs=2, verbose=0)
    assert len(traces) == count
    assert specs(model.variables) == before
    assert {v.path: v.value.sharding for v in model.optimizer.variables} == slots


# Creation.


class Large(nn.Module):
    """What Flax's layers initialise, with reshaped kernels, a stack and orthogonal ones."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(32)(x)
        x = nn.DenseGeneral((8, 4))(x)
        x = nn.DenseGeneral(32, axis=(-2, -1))(x)
        x = nn.Embed(16, 32)(jnp.argmax(x, -1))
        x = nn.Dense(32, kernel_init=nn.initializers.orthogonal())(x)
        x = nn.Dense(32, kernel_init=nn.initializers.truncated_normal())(x)
        stack = nn.scan(
            lambda dense, carry, _: (dense(carry), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=8,
        )
        return stack(nn.Dense(32, name="stacked"), x, None)[0]


def check_initial_values_are_the_native_ones():
    layout_map = kd.LayoutMap(mesh_of())
    layout_map[".*stacked/kernel"] = ("batch", None, "model")
    layout_map[".*Dense_[01234]/kernel"] = ("batch", "model")
    layout_map[".*DenseGeneral_0/kernel"] = (None, "model", None)
    layout_map[".*DenseGeneral_1/kernel"] = ("model", None, "batch")
    layout_map[".*embedding"] = ("model", "batch")
    model_parallel(layout_map)
    layer = FlaxLayer(Large(), seed=5)
    layer.build((8, 16))
    split = [v.path for v in layer.weights if not v.value.sharding.is_fully_replicated]
    assert len(split) == 7, split
    native = Large().init(key_from_seed([5, 0]), jnp.ones((8, 16)))
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(layer.variables_tree()),
        jax.tree.leaves(native),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs, err_msg=str(path))


def check_haiku_initial_values_are_the_native_ones():
    layout_map = kd.LayoutMap(mesh_of())
    layout_map[".*/w"] = (None, "model")
    model_parallel(layout_map)
    layer = HaikuLayer(hk.nets.MLP, [32, 16], seed=5)
    layer.build((8, 16))
    assert layer.weights[1].value.sharding.spec == P(None, "model")
    net = hk.transform(lambda x: hk.nets.MLP([32, 16])(x))
    native = net.init(key_from_seed([5, 0]), jnp.ones((8, 16)))
    for ours, theirs in zip(
        jax.tree.leaves(layer.variables_tree()[0]), jax.tree.leaves(native), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def check_given_variables_are_split():
    layout_map = kd.LayoutMap(mesh_of())
    layout_map[".*kernel"] = (None, "model")
    model_parallel(layout_map)
    values = {"params": {"kernel": np.ones((16, 8), "float32"), "bias": jnp.zeros(8)}}
    layer = FlaxLayer(nn.Dense(8), variables=values)
    layer(X)
    kernel = next(v for v in layer.weights if v.name == "kernel")
    assert kernel.value.sharding.spec == P(None, "model")
    np.testing.assert_array_equal(kernel, values["params"]["kernel"])
    jax.block_until_ready(values["params"]["bias"])


def check_given_variables_stay_the_users_own():
    """Training gives away the memory of variables, also where devices hold replicas."""
    layout_map = kd.LayoutMap(mesh_of())
    layout_map[".*kernel"] = (None, "model")
    for how in (
        kd.DataParallel(devices=kd.list_devices()),
        kd.ModelParallel(layout_map=layout_map, batch_dim_name="batch"),
    ):
        kd.set_distribution(how)
        # As JAX allocates: what is so aligned it may take over without a copy.
        space = np.zeros(16 * 8 * 4 + 64, "uint8")
        kernel = space[-space.ctypes.data % 64 :][: 16 * 8 * 4].view("float32").reshape(16, 8)
        values = {"params": {"kernel": kernel, "bias": jnp.zeros(8)}}
        layer = FlaxLayer(nn.Dense(8), variables=values)
        kernel[:] = 1
        layer.build((8, 16))
        assert not np.any(layer.variables_tree()["params"]["kernel"])
        layer.load_variables(values)
        in_fit(layer)
        np.testing.assert_array_equal(kernel, np.ones((16, 8)))
        np.testing.assert_array_equal(values["params"]["bias"], np.zeros(8))


def check_weights_of_keras_files():
    """Go from one device into shards, and are the same."""
    with tempfile.TemporaryDirectory() as folder:
        model, _ = in_fit(FlaxLayer(Plain(), seed=3, name="split"))
        model.save_weights(f"{folder}/model.weights.h5")
        values = [np.asarray(v.value) for v in model.variables]
        keras.backend.clear_session(free_memory=False)
        model_parallel()
        other, _ = in_fit(FlaxLayer(Split(), seed=4, name="split"), steps=1)
        before = [v.value.sharding for v in other.variables]
        assert not all(sharding.is_fully_replicated for sharding in before)
        other.load_weights(f"{folder}/model.weights.h5")
        for variable, sharding, value in zip(other.variables, before, values, strict=True):
            assert variable.value.sharding == sharding, variable.path
            np.testing.assert_array_equal(variable.value, value, err_msg=variable.path)


def check_a_layer_older_than_the_distribution():
    layer = FlaxLayer(Split(), seed=3)
    model_parallel()
    _, losses = in_fit(layer)
    kd.set_distribution(None)
    model_parallel()
    _, expected = in_fit(FlaxLayer(Split(), seed=3))
    assert losses == expected


def check_built_in_a_stateless_scope():
    """Where Keras defers the values of variables."""
    model_parallel()

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = FlaxLayer(Split(), seed=3)

        def call(self, x, training=False):
            return self.layer(x, training=training)

    model = Model()
    model.compile("adam", "mse")
    model.fit(X, Y, batch_size=32, verbose=0)
    kernel = next(v for v in model.layer.weights if v.path.endswith("Dense_0/kernel"))
    assert kernel.value.sharding.spec == P(None, "model")


# Checkpoints.


def check_orbax_onto_another_mesh():
    with tempfile.TemporaryDirectory() as folder:
        model_parallel()
        layer = FlaxLayer(Split(), seed=3)
        layer.build((8, 16))
        layer.save_variables(f"{folder}/sharded.orbax")
        values = jax.tree.map(np.asarray, layer.variables_tree())
        for mesh in (mesh_of((4, 2)), mesh_of((1, 8)), None):
            kd.set_distribution(None)
            if mesh is not None:
                model_parallel(mesh=mesh)
            other = FlaxLayer(Split() if mesh is not None else Plain(), seed=4)
            other.build((8, 16))
            before = [v.value.sharding for v in other.weights]
            other.load_variables(f"{folder}/sharded.orbax")
            assert [v.value.sharding for v in other.weights] == before
            jax.tree.map(np.testing.assert_array_equal, other.variables_tree(), values)


def check_whole_model_onto_another_mesh():
    """With the optimizer, by Keras' own Orbax callback."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # 2026-11: Keras 3.15 and Orbax use what is deprecated, and take such a warning, where it
        # is an error, for a file that they cannot read.
        warnings.simplefilter("ignore")
        model_parallel()
        model, _ = in_fit(FlaxLayer(Split(), seed=3, name="split"))
        saving = keras.callbacks.OrbaxCheckpoint(folder, save_on_background=False)
        model.fit(X, Y, batch_size=32, verbose=0, callbacks=[saving])
        expected = [np.asarray(v.value) for v in (*model.variables, *model.optimizer.variables)]
        expected.append(model.train_on_batch(X, Y))
        keras.backend.clear_session(free_memory=False)  # names begin anew, as in a new process
        model_parallel(mesh=mesh_of((4, 2)))
        other, _ = in_fit(FlaxLayer(Split(), seed=9, name="split"), steps=1)
        before = [v.value.sharding for v in (*other.variables, *other.optimizer.variables)]
        other.load_weights(folder)
        found = [*other.variables, *other.optimizer.variables]
        assert [v.value.sharding for v in found] == before
        assert before[3].shard_shape((16, 16)) == (16, 8)
        for ours, theirs in zip(found, expected, strict=False):
            np.testing.assert_array_equal(ours.value, theirs, err_msg=ours.path)
        np.testing.assert_allclose(other.train_on_batch(X, Y), expected[-1], rtol=5e-6)


# What is wrong.


def failing(block):
    try:
        block()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")


def check_messages():
    """Texts of errors and warnings, by what is wrong."""
    dense = FlaxLayer(nn.Dense(6), name="dense")
    x = jax.ShapeDtypeStruct((8, 16), "float32")
    mesh = mesh_of()

    def from_rules(rules=None, **options):
        return lambda: layout_map_from(dense, mesh, rules, **{"inputs": x, **options})

    found = {
        "axis": failing(from_rules({"mlp": "modle"})),
        "two axes": failing(from_rules({"mlp": ("batch", "model")})),
        "path axis": failing(from_rules(paths={"kernel": (None, "modle")})),
        "too many": failing(from_rules(paths={"bias": ("batch", "model")})),
        "a string": failing(from_rules(paths={"bias": "model"})),
        "division": failing(from_rules(paths={"kernel": (None, "model")})),
        "no expression": failing(from_rules(paths={"(": (None,)})),
        "no inputs": failing(from_rules(inputs=())),
    }
    layout_map = kd.LayoutMap(mesh)
    layout_map[".*kernel"] = (None, "model")
    layout_map["dense/params/kernl"] = (None, "model")
    layout_map["other_layer/kernl"] = (None, "model")
    model_parallel(layout_map)
    found["built"] = failing(lambda: dense.build((8, 16)))
    right = FlaxLayer(nn.Dense(8), name="dense")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        right.build((8, 16))
        check_layout_map(layout_map, right)
        layout_map_from(right, mesh, {"mlp": "model", "unused": None}, paths={"kernell": (None,)})
        named = FlaxLayer(Named(), name="named")
        layout_map_from(named, mesh, {"mpl": "model"}, inputs=x)
    own = [str(w.message) for w in caught if w.category.__name__ == "LayoutWarning"]
    assert len(own) == len(caught) == 4
    return found | dict(zip(("by itself", "asked", "rules", "names"), own, strict=True))
