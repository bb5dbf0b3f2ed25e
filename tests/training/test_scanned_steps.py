"""Steps in one program are the steps one by one, bit for bit."""

import flax
import flax.linen as nn
import haiku as hk
import jax
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, scan_steps
from jaxlayer_core.errors import JaxLayerError

pytestmark = pytest.mark.without("KERAS_NNX_ENABLED=true")

SIZE = 50
X = np.random.default_rng(0).normal(size=(SIZE, 8)).astype("float32")
Y = np.random.default_rng(1).integers(0, 4, SIZE)
WEIGHTS = {0: 1.0, 1: 2.0, 2: 1.0, 3: 0.5}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.3, deterministic=not train)(nn.gelu(x))
        return nn.Dense(4)(x)


def haiku_net(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training)
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.3, x)
    return hk.Linear(4)(jax.nn.relu(x))


def keras_net():
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dropout(0.2)]
    return keras.Sequential([*layers, keras.layers.Dense(4)])


NETS = {
    "flax": lambda: FlaxLayer(Net(), seed=1),
    "haiku": lambda: HaikuLayer(haiku_net, seed=1),
    "keras": keras_net,
}
# Keras' own Dense promotes ranks.
OF_KERAS = pytest.mark.without("JAX_NUMPY_RANK_PROMOTION=raise")
OPTIMIZERS = {
    "adam": lambda: "adam",
    "accumulating": lambda: keras.optimizers.AdamW(
        1e-3, clipnorm=1.0, gradient_accumulation_steps=2
    ),
}


class Counting(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.batches = []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append((batch, float(logs["loss"])))


def made(net, steps, optimizer="adam", scanned=True, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8,)), net()])
    if scanned:
        scan_steps(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], steps_per_execution=steps, **options)
    return model


def fit(model, x=X, y=Y, **options):
    keras.utils.set_random_seed(2)  # Keras shuffles by it
    return model.fit(x, y, verbose=0, **{"batch_size": 4} | options)


def everything(model):
    return [np.asarray(v.value) for v in (*model.variables, *model.optimizer.variables)]


def assert_equal(model, other):
    for ours, theirs in zip(everything(model), everything(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("net", ["flax", "haiku", pytest.param("keras", marks=OF_KERAS)])
@pytest.mark.parametrize(
    "optimizer", ["adam", pytest.param("accumulating", marks=pytest.mark.slow)]
)
def test_bits_of_the_steps_one_by_one(net, optimizer):
    """12 full batches and a smaller one: groups of 5, 5 and 3."""
    model, other = (
        made(NETS[net], steps, OPTIMIZERS[optimizer](), scanned=steps > 1) for steps in (5, 1)
    )
    histories = [
        fit(
            m,
            epochs=2,
            class_weight=WEIGHTS,
            validation_data=(X, Y, np.linspace(0, 1, SIZE)),
        ).history
        for m in (model, other)
    ]
    assert_equal(model, other)
    assert histories[0] == histories[1]
    predictions = [m.predict(X, batch_size=4, verbose=0) for m in (model, other)]
    np.testing.assert_array_equal(*predictions)
    evaluations = [m.evaluate(X, Y, batch_size=4, verbose=0) for m in (model, other)]
    assert evaluations[0] == evaluations[1]


@pytest.fixture
def unrolled(monkeypatch):
    """What `jax.lax.scan` is told of loops."""
    seen, scan = [], jax.lax.scan

    def watched(body, state, batches, *, unroll):
        seen.append(unroll)
        return scan(body, state, batches, unroll=unroll)

    monkeypatch.setattr(jax.lax, "scan", watched)
    return seen


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(4, (3, 3))(x.reshape(-1, 4, 4, 1)))
        return nn.Dense(4)(nn.Dropout(0.3, deterministic=not train)(x.reshape(len(x), -1)))


def test_convolutions_without_a_loop(unrolled):
    """XLA on the CPU rounds the gradients of kernels otherwise in a loop."""
    x = np.tile(X, 2)
    found = []
    for steps in (5, 1):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((16,)), FlaxLayer(Convolution(), seed=1)])
        if steps > 1:
            scan_steps(scan_steps(model, unroll=1))  # the later call counts
        model.compile("adam", "sparse_categorical_crossentropy", steps_per_execution=steps)
        history = fit(model, x, Y, epochs=2).history
        found.append((everything(model), history, model.predict(x, batch_size=4, verbose=0)))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert set(unrolled) == {True}


@pytest.mark.parametrize(("given", "used"), [(None, False), (2, 2)])
def test_loops_where_nothing_is_convolved(unrolled, given, used):
    model = scan_steps(made(NETS["flax"], 5, scanned=False), unroll=given)
    model.fit(X, Y, batch_size=4, verbose=0)
    assert set(unrolled) == {used}


def test_half_precision():
    """What lies around a step is not fused with it: that would spare it a rounding."""

    class Mean(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(8)((x + nn.Dense(64)(x)).mean(1))

    x = np.random.default_rng(0).normal(size=(64, 16, 64)).astype("float32")
    found = []
    for steps in (4, 1):
        layer = FlaxLayer(Mean(), seed=1, dtype="mixed_bfloat16")
        model = keras.Sequential([keras.Input((16, 64)), layer])
        if steps > 1:
            scan_steps(model)
        model.compile("sgd", "mse", steps_per_execution=steps)
        found.append(model.predict(x, batch_size=8, verbose=0))
    np.testing.assert_array_equal(*found)


def test_the_model_is_traced_for_a_group_once():
    traces = []

    class Traced(nn.Module):
        @nn.compact
        def __call__(self, x):
            traces.append(x.shape)
            return nn.Dense(4)(x)

    model = made(lambda: FlaxLayer(Traced(), seed=1), 4)
    model.fit(X[:48], Y[:48], batch_size=4, verbose=0)
    count = len(traces)
    model.fit(X[:48], Y[:48], batch_size=4, epochs=3, verbose=0)
    assert len(traces) == count


@OF_KERAS
def test_steps_are_in_one_program(monkeypatch):
    """Each group that is full is one scan over its batches; the rest is none."""
    groups, scan = [], jax.lax.scan

    def watched(body, state, batches, **options):
        groups.append(jax.tree.leaves(batches)[0].shape)
        return scan(body, state, batches, **options)

    model = made(NETS["keras"], 4)
    monkeypatch.setattr(jax.lax, "scan", watched)
    fit(model, X[:40], Y[:40])
    assert groups == [(4, 4, 8)]  # traced once, run twice; two steps are left


def test_callbacks_are_those_of_steps_per_execution():
    seen = []
    for scanned in (True, False):
        counting = Counting()
        model = made(NETS["flax"], 5, scanned=scanned)
        fit(model, callbacks=[counting])
        seen.append(counting.batches)
    assert seen[0] == seen[1]
    assert [batch for batch, _ in seen[0]] == [4, 9, 14]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras says it of any generator
def test_data_that_run_out_within_a_group():
    def batches():
        for start in range(0, 28, 4):
            yield X[start : start + 4], Y[start : start + 4]

    model, other = (made(NETS["flax"], 5, scanned=s) for s in (True, False))
    for m in (model, other):
        fit(m, batches(), None, batch_size=None, shuffle=False)
    assert_equal(model, other)
    assert int(model.optimizer.iterations) == 7


@OF_KERAS
def test_dicts_and_several_outputs():
    def build():
        inputs = {"a": keras.Input((8,), name="a"), "b": keras.Input((8,), name="b")}
        hidden = FlaxLayer(nn.Dense(4), seed=1)(inputs["a"])
        return keras.Model(inputs, {"one": hidden, "two": keras.layers.Dense(2)(inputs["b"])})

    data, targets = {"a": X, "b": X}, {"one": X[:, :4], "two": X[:, :2]}
    found = []
    for scanned in (True, False):
        keras.utils.set_random_seed(1)
        model = build()
        if scanned:
            scan_steps(model)
        model.compile("adam", "mse", steps_per_execution=3)
        fit(model, data, targets)
        found.append((everything(model), model.predict(data, batch_size=4, verbose=0)))
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize(
    "options", [{"run_eagerly": True}, {"jit_compile": False}, {"steps_per_execution": 1}], ids=str
)
def test_what_keras_does_not_compile_stays(options):
    model, other = (made(NETS["flax"], 3, scanned=s) for s in (True, False))
    for m in (model, other):
        m.compile("sgd", "sparse_categorical_crossentropy", **{"steps_per_execution": 3} | options)
        fit(m, X[:24], Y[:24])
    assert_equal(model, other)


def test_compiled_again_and_a_batch_alone():
    model = made(NETS["flax"], 3)
    model.fit(X, Y, batch_size=4, verbose=0)
    first = model.train_function
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, steps_per_execution=2)
    model.fit(X, Y, batch_size=4, verbose=0)
    assert model.train_function is not first
    model.train_on_batch(X[:4], Y[:4])
    assert int(model.optimizer.iterations) == 13 + 1


def test_saving_and_copying(tmp_path):
    model = made(lambda: FlaxLayer(nn.Dense(4)), 3)
    model.fit(X, Y, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_equal(model, loaded)
    keras.models.clone_model(model)


def test_not_a_model():
    with pytest.raises(JaxLayerError, match=r"takes a keras.Model, got .* of type Dense"):
        scan_steps(keras.layers.Dense(2))


@pytest.mark.parametrize("unroll", [0, -1, 2.0, "all"])
def test_not_a_number_of_steps(unroll):
    with pytest.raises(JaxLayerError, match=r"unroll=.* is not a number of steps. Use unroll=True"):
        scan_steps(keras.Sequential(), unroll=unroll)


@pytest.mark.skipif(
    tuple(map(int, flax.__version__.split(".")[:2])) < (0, 12),
    reason="Keras' NNX needs a newer Flax",
)
def test_with_nnx(run_python):
    code = """
    import keras
    from jaxlayer import scan_steps
    try:
        scan_steps(keras.Sequential())
    except ValueError as error:
        print(error)
    """
    text = run_python(code, env={"KERAS_NNX_ENABLED": "true"})
    assert "KERAS_NNX_ENABLED" in text
    assert "steps_per_execution" in text
