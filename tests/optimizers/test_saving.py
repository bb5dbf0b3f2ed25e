"""State and transformation in Keras' files."""

import functools
import json
import zipfile

import jax
import keras
import numpy as np
import optax
import pytest
from optax import contrib

import jaxlayer
from jaxlayer_core import ConfigError, StructureError, TrustError
from jaxlayer_optax import Labels, Matching, OptaxOptimizer, as_optimizer

from . import importable
from .models import DATA, X, made, native, result_of

KERNELS = Matching("kernel$")
RATE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 10)
inject = optax.inject_hyperparams

EXPRESSIBLE = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: optax.adamw(1e-2, mask=KERNELS, mu_dtype="bfloat16"),
    "schedule": lambda: optax.adam(RATE),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.lamb(1e-2)),
    "named_chain": lambda: optax.named_chain(("a", optax.clip(0.1)), ("b", optax.yogi(1e-2))),
    "adafactor": lambda: optax.adafactor(1e-2),
    "masked": lambda: optax.masked(optax.lion(1e-2), KERNELS),
    "tree": lambda: optax.masked(optax.lion(1e-2), {"dense": True, "flax": False}),
    "multi_transform": lambda: optax.multi_transform(
        {"slow": optax.sgd(1e-3), "fast": optax.adam(RATE)}, Labels({"flax/": "slow"}, "fast")
    ),
    "inject_hyperparams": lambda: inject(optax.adamw, static_args="b1")(
        learning_rate=RATE, mask=None, weight_decay=0.1
    ),
    "inject_partial": lambda: inject(functools.partial(optax.sgd, momentum=0.9))(1e-2),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2), 2, use_grad_mean=False),
    "plateau": lambda: optax.chain(optax.adam(1e-2), contrib.reduce_on_plateau(patience=3)),
    "schedule_free": lambda: contrib.schedule_free_adamw(1e-2),
    "finite": lambda: optax.apply_if_finite(optax.novograd(1e-2), 3),
    "polyak": lambda: optax.polyak_sgd(),
    "key": lambda: optax.add_noise(0.1, 0.5, 3),
}


def config_of(optimizer):
    return json.loads(json.dumps(keras.optimizers.serialize(optimizer)))


@pytest.mark.parametrize("make", EXPRESSIBLE.values(), ids=EXPRESSIBLE)
def test_configs(make):
    """What comes back makes the same state, and is stored alike."""
    optimizer = as_optimizer(make(), clipnorm=1.0, name="mine")
    again = keras.optimizers.deserialize(config_of(optimizer))
    assert type(again) is OptaxOptimizer
    assert (again.name, again.clipnorm) == ("mine", 1.0)
    assert config_of(again) == config_of(optimizer)


FACTORIES = {
    "of Optax": (optax.adamw, 1e-2),
    "contrib": (contrib.schedule_free_sgd, 1e-2),
    "partial": (functools.partial(optax.adamw, weight_decay=0.1, mask=KERNELS), 1e-2),
    "schedule": (optax.sgd, RATE),
    "Keras' schedule": (optax.sgd, keras.optimizers.schedules.CosineDecay(0.1, 10)),
    "lbfgs": (optax.lbfgs, None),
}


@pytest.mark.parametrize(("tx", "rate"), FACTORIES.values(), ids=FACTORIES)
def test_configs_of_factories(tx, rate):
    optimizer = OptaxOptimizer(tx, rate, use_ema=True, ema_momentum=0.5)
    again = keras.optimizers.deserialize(config_of(optimizer))
    assert config_of(again) == config_of(optimizer)
    if isinstance(rate, float):
        again.learning_rate = 0.5
        assert float(keras.optimizers.deserialize(config_of(again)).learning_rate) == 0.5


@pytest.mark.parametrize("make", [EXPRESSIBLE["adamw"], EXPRESSIBLE["MultiSteps"]])
def test_a_whole_model_trains_on(make, tmp_path, assert_same):
    """Three steps, a file, two steps: as five."""
    tx, model = make(), made()
    expected = native(model, tx)
    model.compile(as_optimizer(tx), "mse")
    rows = slice(0, 12)
    model.fit(**DATA | {"x": DATA["x"][rows], "y": DATA["y"][rows]})
    # The Flax module is of this test; a file may name it only if somebody says so.
    model.save(tmp_path / "model.keras")
    with jaxlayer.trusting(made.__module__):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    rows = slice(12, 20)
    loaded.fit(**DATA | {"x": DATA["x"][rows], "y": DATA["y"][rows]})
    assert_same(result_of(loaded.optimizer), expected)


def test_names_in_the_file(tmp_path):
    model = made()
    model.compile(OptaxOptimizer(optax.adam, 1e-2, use_ema=True), "mse")
    model.fit(**DATA)
    store = {}
    model.optimizer.save_own_variables(store)
    paths = ["flax.params.Dense_0.bias", "flax.params.Dense_0.kernel", "dense.kernel", "dense.bias"]
    roles = ["average", "state.0.mu", "state.0.nu"]
    expected = {f"{role}.{path}" for role in roles for path in paths}
    assert set(store) == expected | {"iteration", "learning_rate", "state.0.count", "%index"}


def test_layers_of_other_names(tmp_path, assert_same):
    """A model that is made again in one process."""

    def unnamed():
        return keras.Sequential([keras.Input((4,)), *map(keras.layers.Dense, (3, 1))])

    one, two = unnamed(), unnamed()
    assert one.weights[0].path != two.weights[0].path
    for model in (one, two):
        model.compile(OptaxOptimizer(optax.adam, 1e-2, use_ema=True), "mse")
    one.fit(**DATA)
    one.save_weights(tmp_path / "model.weights.h5")
    two.optimizer.build(two.trainable_variables)
    two.load_weights(tmp_path / "model.weights.h5")
    assert_same(
        [v.numpy() for v in two.optimizer.variables], [v.numpy() for v in one.optimizer.variables]
    )


def test_a_backup(tmp_path, assert_same):
    """Training that stops and is started again ends like training that did not stop."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def compiled():
        model = made()
        model.compile(as_optimizer(optax.adam(1e-2)), "mse")
        return model

    whole = compiled()
    whole.fit(**DATA, epochs=3)
    for callbacks in ([Stop()], []):
        model = compiled()
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        try:
            model.fit(**DATA, epochs=3, callbacks=[backup, *callbacks])
        except KeyboardInterrupt:
            continue
    assert len(model.history.epoch) == 1
    assert_same(
        [v.numpy() for v in model.optimizer.variables],
        [v.numpy() for v in whole.optimizer.variables],
    )


def trained(tx, **options):
    model = made()
    model.compile(as_optimizer(tx, **options), "mse")
    model.fit(**DATA)
    return model


def test_another_state(tmp_path, assert_same):
    """All that differs is told, and nothing of the optimizer is loaded."""
    trained(optax.adam(1e-2)).save_weights(tmp_path / "model.weights.h5")
    model = trained(optax.sgd(1e-2, momentum=0.9))
    before = model.optimizer.state_tree()
    with pytest.raises(ValueError, match=r"(?s)state/0/trace/dense.*state/0/mu/dense") as caught:
        model.load_weights(tmp_path / "model.weights.h5")
    assert "Nothing was loaded" in str(caught.value)
    after = model.optimizer.state_tree()
    assert_same(after, before)


def test_a_file_of_another_optimizer(tmp_path):
    model = made()
    model.compile("adam", "mse")
    model.fit(**DATA)
    model.save_weights(tmp_path / "model.weights.h5")
    model = trained(optax.adam(1e-2))
    with pytest.warns(UserWarning, match="the file has none that an OptaxOptimizer has saved"):
        model.load_weights(tmp_path / "model.weights.h5")


def test_an_optimizer_that_is_not_built(tmp_path):
    trained(optax.adam(1e-2)).save_weights(tmp_path / "model.weights.h5")
    model = made()
    model.compile(as_optimizer(optax.adam(1e-2)), "mse")
    with pytest.warns(UserWarning, match="is not loaded: the optimizer is not built"):
        model.load_weights(tmp_path / "model.weights.h5")


def test_damage(tmp_path):
    optimizer = trained(optax.adam(1e-2)).optimizer
    store = {}
    optimizer.save_own_variables(store)
    store["state.0.count"] = store["state.0.count"] + np.int32(1)
    with pytest.raises(StructureError, match="state/0/count: its bytes are not those that were"):
        optimizer.load_own_variables(store)


# What no config can express, and what a file may not name.


def test_a_lambda(tmp_path, assert_same):
    """The model is saved, with the state; who loads it has to give the transformation again."""
    tx = optax.adamw(1e-2, mask=lambda params: importable.is_kernel(params))
    model, path = trained(tx), tmp_path / "model.keras"
    with pytest.warns(UserWarning, match=r"stored without .*<lambda>.*OptaxOptimizer\(my_module"):
        model.save(path)
    with jaxlayer.trusting(made.__module__):
        with pytest.raises(ConfigError, match=r"does not hold the transf.*<lambda>.*compile=False"):
            keras.saving.load_model(path)
        loaded = keras.saving.load_model(path, compile=False)
    loaded.compile(as_optimizer(tx), "mse")
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.load_weights(path)
    assert_same(result_of(loaded.optimizer), result_of(model.optimizer))


@pytest.mark.filterwarnings("ignore:The config of")
def test_a_copy_in_one_process():
    optimizer = as_optimizer(optax.adamw(1e-2, mask=lambda params: params))
    again = OptaxOptimizer.from_config(optimizer.get_config())
    assert again._make.tx is optimizer._make.tx


@pytest.mark.parametrize(("tx", "rate"), [(importable.make_tx, None), (importable.make_rated, 0.1)])
def test_a_function_of_ones_own(tx, rate):
    """A file may have it called only if somebody says so."""
    config = config_of(OptaxOptimizer(tx, rate))
    name = tx.__name__
    with pytest.raises(TrustError, match=rf"{name}.*which is neither registered"):
        keras.optimizers.deserialize(config)
    with jaxlayer.trusting(tx.__module__):
        assert keras.optimizers.deserialize(config)._make.tx is tx
    assert keras.optimizers.deserialize(config, custom_objects={name: tx})._make.tx is tx


@pytest.mark.parametrize(
    ("tx", "error", "message"),
    [
        (functools.partial(np.zeros, 10**9), TrustError, "numpy.zeros"),
        (functools.partial(jax.tree.map, abs), TrustError, "jax.tree.map"),
        (functools.partial(jax.numpy.ones, 10**12), TrustError, "is to be made by jax.numpy.ones"),
    ],
)
def test_a_file_has_nothing_else_called(tx, error, message):
    config = config_of(as_optimizer(importable.make_tx))
    from jaxlayer_core.serialization import encode

    config["config"]["transformation"] = {"data": encode({"tx": tx}).data}
    with pytest.raises(error, match=message):
        keras.optimizers.deserialize(config)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, "has no transformation"),
        ({"data": 3}, "has 3 for what it is made of"),
        ({"data": {"tx": 3}}, "to be made by 3"),
        ({"data": {"tx": {"$": "optax.transformation", "by": 3}}}, "needs 'by'"),
    ],
)
def test_broken_configs(entry, message):
    config = config_of(as_optimizer(optax.sgd(0.1)))
    config["config"]["transformation"] = entry
    with pytest.raises(ConfigError, match=message):
        keras.optimizers.deserialize(config)


def test_a_pattern_out_of_a_file():
    config = config_of(as_optimizer(optax.masked(optax.sgd(0.1), Matching("(a+)+b"))))
    loaded = keras.optimizers.deserialize(config)
    with pytest.raises(TrustError, match="could take for ever"):
        loaded.build(made().trainable_variables)
    model = made()
    assert keras.optimizers.deserialize(config, custom_objects={}) is not None
    del model


@pytest.fixture
def saved(tmp_path):
    """Path of a model of Keras' own layers."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(as_optimizer(optax.adamw(1e-2, mask=KERNELS)), "mse")
    model.fit(**DATA)
    model.save(tmp_path / "model.keras")
    return str(tmp_path / "model.keras")


def test_another_process(saved, run_python):
    code = f"""
    import jaxlayer, keras
    loaded = keras.saving.load_model({saved!r})
    print(type(loaded.optimizer).__name__, int(loaded.optimizer.state[0].count.value))
    """
    assert run_python(code).split() == ["OptaxOptimizer", "5"]


@pytest.mark.without("KERAS_NNX_ENABLED=true")  # Keras itself needs Optax then, for Flax
def test_without_optax(saved, tmp_path, run_python):
    (tmp_path / "optax.py").write_text("raise ModuleNotFoundError('no', name='optax')")
    code = f"""
    import jaxlayer, keras
    for use in (lambda: keras.saving.load_model({saved!r}), lambda: jaxlayer.OptaxOptimizer):
        try:
            use()
        except jaxlayer.JaxLayerError as error:
            print(type(error).__name__, "pip install 'jaxlayer[optax]'" in str(error))
    """
    printed = run_python(code, path=[tmp_path])
    assert printed.split() == ["MissingDependencyError", "True"] * 2


def test_the_state_as_keras_tree(assert_same):
    """What Keras' Orbax callback stores."""
    model = trained(optax.adam(1e-2))
    tree = model.get_state_tree(value_format="numpy_array")
    mu = tree["optimizer_variables"]["optax_optimizer"]["0"]["mu"]["dense"]["kernel"]
    assert_same(mu, model.optimizer.state[0].mu["dense"]["kernel"])


def test_the_archive_has_no_code(tmp_path):
    model = trained(optax.adam(1e-2))
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        config = json.loads(archive.read("config.json"))
    made_of = config["compile_config"]["optimizer"]["config"]["transformation"]["data"]["tx"]
    assert made_of["by"] == {"module": "optax", "name": "chain"}
    np.testing.assert_array_equal(model.predict(X, verbose=0).shape, (20, 1))
