"""`save_variables` and `load_variables`: every format, every kind of layer, every complaint."""

import contextlib
import importlib.metadata
import os
import sys

import flax
import flax.linen as nn
import flax.serialization
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer
from jaxlayer_core import BuildError, JaxLayerError, PatternError, StructureError
from jaxlayer_core.checkpoints import Contents, Format, Source, installed
from jaxlayer_core.checkpoints.npz import NpzFormat
from jaxlayer_core.checkpoints.orbax import OrbaxFormat
from jaxlayer_core.checkpoints.safetensors import SafetensorsFormat
from jaxlayer_core.errors import AdapterError, CheckpointError, MissingDependencyError
from jaxlayer_core.specs import ArraySpec

from .checkpointing import MAKERS, Net, X, haiku_net, holder, make, own_variables, snapshot

FORMATS = ("msgpack", "flax", "safetensors", "npz", "orbax")
FILES = FORMATS[:-1]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_round_trip_is_exact(tmp_path, kind, suffix):
    one, other = make(kind, 1), make(kind, 2)
    assert snapshot(one) != snapshot(other)
    path = tmp_path / f"model.{suffix}"
    assert one.save_variables(path) is None
    result = other.load_variables(path)
    assert snapshot(other) == snapshot(one)
    assert set(result.loaded) == set(own_variables(one))
    assert result[1:] == ({}, {}, {})
    np.testing.assert_array_equal(other(X), one(X))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", FORMATS)
def test_training_goes_on_after_loading(tmp_path, suffix):
    layers = make("flax", 1), make("flax", 2)
    layers[0].save_variables(tmp_path / f"model.{suffix}")
    layers[1].load_variables(tmp_path / f"model.{suffix}")
    for layer in layers:
        model = keras.Sequential([keras.Input((4,)), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(X, X[:, :1], epochs=2, shuffle=False, verbose=0)
    assert snapshot(layers[0]) == snapshot(layers[1])


DTYPES = ["bool", "int8", "uint16", "int32", "uint32", "float16", "float32", "complex64"]
DTYPES += ["bfloat16", "float8_e4m3fn", "float8_e5m2"]  # all that Keras has, in 32-bit JAX


def all_bits(dtype):
    """Values that a conversion would change: NaN payloads, -0, denormals, extremes."""
    if dtype == "bool":
        return np.array([True, False, True])
    size = jnp.dtype(dtype).itemsize
    if size == 1:
        return np.arange(256, dtype="uint8").view(dtype)
    return np.frombuffer(np.random.default_rng(0).bytes(24 * size), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("suffix", ["msgpack", "safetensors", "npz", "orbax"])
def test_every_dtype_bit_for_bit(tmp_path, suffix, dtype):
    values = jnp.asarray(all_bits(dtype))
    shapes = {"a": values, "scalar": values[0], "matrix": values.reshape(1, -1)}
    if suffix != "orbax":
        shapes["empty"] = values.reshape(-1, 1)[:0]
    one, other = holder(**shapes), holder(**jax.tree.map(jnp.zeros_like, shapes))
    one.save_variables(tmp_path / f"all.{suffix}")
    other.load_variables(tmp_path / f"all.{suffix}")
    assert snapshot(other) == snapshot(one)
    assert snapshot(one)["params/a"][2] == all_bits(dtype).tobytes()


def test_what_a_format_cannot_hold(tmp_path):
    with pytest.raises(CheckpointError, match=r"Orbax cannot hold `params/empty`, of shape \(0, 3"):
        holder(empty=np.zeros((0, 3))).save_variables(tmp_path / "model.orbax")
    small = {"head": jnp.ones(2, "int4")}
    with pytest.raises(CheckpointError, match=r"cannot hold the dtype int4 of `head`\. npz can"):
        SafetensorsFormat().write(tmp_path / "small.safetensors", Contents(small, small))
    with pytest.raises(CheckpointError, match=r"cannot hold a variable called `__dtypes__`"):
        NpzFormat().write(tmp_path / "file", Contents({"__dtypes__": small["head"]}, small))
    NpzFormat().write(tmp_path / "small.npz", Contents(small, small))
    with NpzFormat().open(tmp_path / "small.npz") as source:
        ((name, value),) = source.read(source.specs)
    assert (name, value.dtype) == ("head", "int4")


def native_tree(layer):
    """What the framework's functions take, keys as their data."""
    tree = layer.variables_tree()
    tree = tree._asdict() if hasattr(tree, "_asdict") else tree
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


@pytest.mark.parametrize("kind", ["flax", "haiku"])
def test_flax_reads_our_msgpack(tmp_path, kind, assert_same):
    layer = make(kind, 1)
    layer.save_variables(tmp_path / "model.msgpack")
    written = (tmp_path / "model.msgpack").read_bytes()
    assert_same(flax.serialization.msgpack_restore(written), native_tree(layer))
    assert len(written) == len(flax.serialization.to_bytes(native_tree(layer)))


def test_what_flax_reads_is_what_apply_takes(tmp_path):
    layer = make("flax", 1)
    layer.save_variables(tmp_path / "model.flax")
    variables = flax.serialization.msgpack_restore((tmp_path / "model.flax").read_bytes())
    np.testing.assert_allclose(Net().apply(variables, X), layer(X), rtol=1e-6)


@pytest.mark.parametrize("kind", ["flax", "haiku"])
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_orbax_reads_our_folder(tmp_path, kind, assert_same):
    layer = make(kind, 1)
    layer.save_variables(tmp_path / "model.orbax")
    tree = native_tree(layer)
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(tmp_path / "model.orbax", tree), tree)


@pytest.mark.parametrize("kind", MAKERS)
def test_numpy_and_safetensors_read_our_files(tmp_path, kind):
    layer = make(kind, 1)
    layer.save_variables(tmp_path / "model.npz")
    layer.save_variables(tmp_path / "model.safetensors")
    with np.load(tmp_path / "model.npz") as file:
        stored = dict(file)
    for name, dtype in stored.pop("__dtypes__", ()):
        stored[name] = stored[name].view(dtype)
    for found in (stored, safetensors.numpy.load_file(tmp_path / "model.safetensors")):
        assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in found.items()} == snapshot(layer)


def test_no_dtypes_are_noted_where_numpy_knows_them(tmp_path):
    make("haiku", 1).save_variables(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as file:
        assert "__dtypes__" not in file


@pytest.mark.parametrize("suffix", FORMATS)
def test_saving_in_the_background(tmp_path, suffix):
    """Training meanwhile changes nothing of what is saved; the newest of two stays."""
    layer, other = make("flax", 1), make("flax", 2)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("sgd", "mse")
    model.fit(X, X[:, :1], verbose=0)
    path = tmp_path / f"model.{suffix}"
    first = layer.save_variables(path, wait=False)
    model.fit(X, X[:, :1], verbose=0)
    expected = snapshot(layer)
    second = layer.save_variables(path, wait=False)
    model.fit(X, X[:, :1], epochs=3, verbose=0)
    assert [first.result(), second.result()] == [None, None]
    assert snapshot(layer) != expected
    other.load_variables(path)
    assert snapshot(other) == expected


def test_what_goes_wrong_in_the_background(tmp_path):
    future = holder(empty=np.zeros((0, 3))).save_variables(tmp_path / "model.orbax", wait=False)
    with pytest.raises(CheckpointError, match=r"Orbax cannot hold `params/empty`"):
        future.result()
    assert list(tmp_path.iterdir()) == []


# Which format.


def test_the_format_can_be_said(tmp_path):
    one, other = make("flax", 1), make("flax", 2)
    for number, name in enumerate(("npz", ".safetensors", "msgpack", OrbaxFormat, OrbaxFormat())):
        one.save_variables(tmp_path / f"weights{number}.bin", name)
        other.load_variables(tmp_path / f"weights{number}.bin", format=name)
        assert snapshot(one) == snapshot(other)
        one.load_variables(make("flax", number).variables_tree())
    one.save_variables(tmp_path / "step_1", format="orbax")
    other.load_variables(tmp_path / "step_1")  # a folder without a suffix is Orbax's
    one.save_variables(str(tmp_path / "UPPER.NPZ"))
    other.load_variables(str(tmp_path / "UPPER.NPZ"))
    assert snapshot(one) == snapshot(other)


def test_unknown_formats(tmp_path):
    layer = make("flax", 1)
    bad, known = (
        r"suffix '\.bin' of .*model\.bin tells no",
        "Choose one with format=: flax, msgpack, npy, npz, orbax, pickle, pkl, safetensors",
    )
    with pytest.raises(CheckpointError, match=rf"{bad} .*{known}"):
        layer.save_variables(tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=rf"model has no suffix .*{known}"):
        layer.load_variables(tmp_path / "model")
    with pytest.raises(CheckpointError, match=rf"There is no format 'hdf'\. {known}"):
        layer.load_variables(tmp_path / "model", format="hdf")
    with pytest.raises(CheckpointError, match=r"format= takes the name of a format, .* got 3"):
        layer.load_variables(tmp_path / "model", format=3)


@pytest.mark.parametrize("name", ["safetensors", "orbax"])
@pytest.mark.parametrize("action", ["save_variables", "load_variables"])
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, name, action):
    (tmp_path / "model.orbax").mkdir()
    (tmp_path / "model.safetensors").touch()
    layer = make("flax", 1)
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'jaxlayer\[{name}\]'"):
        getattr(layer, action)(tmp_path / f"model.{name}")


def test_flax_that_is_not_installed(tmp_path, run_python):
    printed = run_python(
        f"""
        import sys, pathlib
        sys.modules["flax"] = None
        from jaxlayer import JaxLayer
        layer = JaxLayer(lambda params, inputs: inputs, params={{"w": 1.0}})
        layer.build((None, 1))
        try:
            layer.save_variables(pathlib.Path({str(tmp_path)!r}) / "model.msgpack")
        except ImportError as error:
            print(error)
        layer.save_variables(pathlib.Path({str(tmp_path)!r}) / "model.npz")
        """
    )
    assert "pip install 'jaxlayer[flax]'" in printed
    assert (tmp_path / "model.npz").exists()


class LinesFormat(Format):
    """A format of somebody else's: a line for each variable."""

    label = "lines"

    @contextlib.contextmanager
    def open(self, path):
        yield LinesSource(dict(line.split() for line in path.read_text().splitlines()))

    def write(self, path, contents):
        path.write_text("".join(f"{n} {float(v)}\n" for n, v in contents.named.items()))


class LinesSource(Source):
    def __init__(self, lines):
        self._lines = lines

    @property
    def specs(self):
        return {name: ArraySpec((), np.dtype("float64")) for name in self._lines}

    def read(self, wanted):
        for name in wanted:
            yield name, np.float64(self._lines[name])


@pytest.fixture
def install(monkeypatch):
    """Adds an entry point for a format."""
    real = importlib.metadata.entry_points

    def add(name, value):
        entry = importlib.metadata.EntryPoint(name, value, installed.GROUP)
        monkeypatch.setattr(
            importlib.metadata,
            "entry_points",
            lambda group: [*real(group=group), *[entry] * (group == installed.GROUP)],
        )

    return add


def test_a_format_of_another_package(tmp_path, install):
    install("lines", f"{__name__}:LinesFormat")
    sys.modules[__name__] = sys.modules.get(__name__) or sys.modules[LinesFormat.__module__]
    one, other = holder(a=1.5, b=2.0), holder(a=0.0, b=0.0)
    one.save_variables(tmp_path / "model.lines")
    other.load_variables(tmp_path / "model.lines")
    assert snapshot(one) == snapshot(other)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("no_such_package.formats:Format", MissingDependencyError, "pip install no_such_package"),
        ("builtins:no_such_thing", AdapterError, "The format 'mine' .*failed to load: Attribute"),
        ("builtins:dict", AdapterError, "is not a format: expected a subclass of .*Format, got"),
        ("jaxlayer_core.checkpoints:Format", AdapterError, "not complete: implement open, write"),
    ],
)
def test_a_broken_format_of_another_package(tmp_path, install, value, error, message):
    install("mine", value)
    with pytest.raises(error, match=message):
        holder(a=1.0).save_variables(tmp_path / "model.mine")


# What load_variables takes.


def variables():
    return Net().init(jax.random.key(5), X)


def test_native_trees_of_flax():
    expected = FlaxLayer(Net(), variables=variables())
    expected(X)
    for given in (variables(), flax.core.freeze(variables()), expected.params | expected.state):
        layer = make("flax", 1)
        layer.load_variables(given)
        assert snapshot(layer) == snapshot(expected)
    layer = make("flax", 1)
    result = layer.load_variables(variables()["params"], strict=False)
    assert set(result.loaded) == set(layer._params.names)
    assert set(result.missing) == set(layer._state.names)
    assert result.loaded["params/Dense_0/kernel"] == "Dense_0/kernel"


def test_native_trees_of_haiku():
    net = hk.transform_with_state(haiku_net)
    params, state = net.init(jax.random.key(5), X, True)
    expected = HaikuLayer(net, params=params, state=state)
    expected(X)
    immutable = hk.data_structures.to_immutable_dict
    for given in (
        (params, state),
        (immutable(params), immutable(state)),
        [params, state],
        {"params": params, "state": state},
        expected.variables_tree(),
    ):
        layer = make("haiku", 1)
        layer.load_variables(given)
        assert snapshot(layer) == snapshot(expected)
    for given in (params, immutable(params)):
        layer = make("haiku", 1)
        assert len(layer.load_variables(given, strict=False).loaded) == len(layer._params.names)


def test_a_tuple_of_params_is_not_params_and_state():
    layer = JaxLayer(lambda params, inputs: inputs, params=(np.zeros(2), np.zeros(2)))
    layer.build((None, 1))
    layer.load_variables((np.ones(2), np.full(2, 2.0)))
    np.testing.assert_array_equal(layer.params[1], [2, 2])


def test_params_that_are_one_array():
    layer = JaxLayer(lambda params, inputs: inputs, params=np.zeros(2))
    layer.build((None, 1))
    layer.load_variables(np.ones(2))
    np.testing.assert_array_equal(layer.params, [1, 1])


def test_leaves_in_boxes():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("a", None))
            return nn.Dense(2, kernel_init=init)(x)

    given = Boxed().init(jax.random.key(3), X)
    layer = FlaxLayer(Boxed())
    layer(X)
    layer.load_variables(given)
    np.testing.assert_array_equal(layer(X), Boxed().apply(given, X))


def test_what_is_given_stays_the_callers():
    """Training the layer deletes no array of the tree, and writing into it changes no variable."""
    given = variables()
    mine = jax.tree.map(np.asarray, {name: given[name] for name in ("params", "batch_stats")})
    mine = {**given, **jax.tree.map(np.array, mine)}
    layers = make("flax", 1), make("flax", 2)
    layers[0].load_variables(given)
    layers[1].load_variables(mine)
    before = snapshot(layers[1])
    jax.tree.map(lambda a: a.fill(9), {name: mine[name] for name in ("params", "batch_stats")})
    assert snapshot(layers[1]) == before
    model = keras.Sequential([keras.Input((4,)), layers[0]])
    model.compile("sgd", "mse")
    model.fit(X, X[:, :1], verbose=0)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))


def test_arrays_that_are_deleted():
    layer = holder(a=np.ones(2), b=np.ones(2))
    given = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    given["b"].delete()
    with pytest.raises(StructureError, match="array `b` of the tree has been deleted"):
        layer.load_variables(given)
    np.testing.assert_array_equal(layer.params["a"], 1)


def test_prefix_and_rename():
    trained = {"step": 3, "net": {"enc": {"weight": np.ones((2, 3))}, "head_0": {"b": np.ones(3)}}}
    layer = holder(encoder={"kernel": np.zeros((2, 3))}, head_1={"bias": np.zeros(3)})
    result = layer.load_variables(
        trained,
        prefix="net",
        rename={"^enc/": "encoder/", "weight": "kernel", r"head_0/b$": "head_1/b", r"/b$": "/bias"},
    )
    assert result.loaded == {
        "params/encoder/kernel": "net/enc/weight",
        "params/head_1/bias": "net/head_0/b",
    }
    np.testing.assert_array_equal(layer.params["head_1"]["bias"], 1)
    with pytest.raises(StructureError, match=r"Nothing .* behind prefix='ne'\. Near it are: net"):
        layer.load_variables(trained, prefix="ne")  # whole parts only


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"(": "a"}, r"rename got '\(', which is not a regular expression"),
        ({"a": r"\1"}, r"rename: '\\\\1' cannot replace 'a': invalid group"),
        ({"a": 1}, "replacement for 'a' must be a string, got 1"),
        ([("a", "b")], "rename takes a dict of regular expression to replacement"),
    ],
)
def test_renames_that_are_none(rename, message):
    with pytest.raises(PatternError, match=message):
        holder(a=1.0).load_variables({"a": 2.0}, rename=rename)


@pytest.mark.parametrize(
    ("given", "rename"),
    [({"a": 2.0, "b": 3.0}, {"b": "a"}), ({"a": 2.0, "params": {"a": 3.0}}, {})],
)
def test_two_leaves_that_become_one(given, rename):
    layer = holder(a=1.0)
    with pytest.raises(StructureError, match=r"Two arrays .* mean the same path `params/a`: `a`"):
        layer.load_variables(given, rename=rename)
    assert float(layer.params["a"]) == 1.0


GIVEN = {
    "fine": np.ones(2),
    "wide": np.ones((2, 1)),
    "float": np.ones(2, "float32"),
    "kernels": np.ones((3, 4)),
    "extra": np.ones(1),
}


def mixed():
    return holder(
        fine=np.zeros(2),
        wide=np.zeros((1, 2)),
        float=np.zeros(2, "int32"),
        kernel=np.zeros((3, 4)),
        other=np.zeros(5),
    )


@pytest.mark.parametrize("suffix", ["tree", *FORMATS])
def test_everything_that_does_not_fit_is_in_one_error(tmp_path, suffix):
    layer = mixed()
    source = GIVEN
    if suffix != "tree":
        source = tmp_path / f"model.{suffix}"
        holder(**GIVEN).save_variables(source)
    before = snapshot(layer)
    with pytest.raises(StructureError) as caught:
        layer.load_variables(source)
    message = str(caught.value)
    scope = "" if suffix == "tree" else "params/"
    for part in (
        "does not hold the variables of the layer 'jax_layer'. Nothing was loaded",
        "params/kernel: float32[3,4]",
        "params/other: float32[5]",
        f"{scope}extra: float32[1]",
        "params/wide: expected float32[1,2], got float32[2,1]",
        "params/float: expected int32[2], got float32[2]",
        f"{scope}kernels -> params/kernel",
        "strict=False loads what fits",
    ):
        assert part in message
    assert snapshot(layer) == before
    result = layer.load_variables(source, strict=False)
    assert set(result.loaded) == {"params/fine"}
    assert set(result.missing) == {"params/kernel", "params/other"}
    assert {p.removeprefix("params/") for p in result.unexpected} == {"extra", "kernels"}
    assert set(result.misshapen) == {"params/wide", "params/float"}
    np.testing.assert_array_equal(layer.params["fine"], 1)
    assert {k: v for k, v in snapshot(layer).items() if k != "params/fine"} == {
        k: v for k, v in before.items() if k != "params/fine"
    }


@pytest.mark.parametrize("suffix", ["tree", "msgpack", "safetensors", "npz", "orbax"])
@pytest.mark.parametrize(("stored", "kept"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_floating_dtype_of_another_width(tmp_path, suffix, stored, kept):
    values = np.linspace(0.1, 3, 7).astype(jnp.dtype(stored))
    layer = holder(a=np.zeros(7, jnp.dtype(kept)))
    source = {"a": values}
    if suffix != "tree":
        holder(**source).save_variables(tmp_path / f"model.{suffix}")
        source = tmp_path / f"model.{suffix}"
    layer.load_variables(source)
    assert layer.params["a"].dtype == kept
    np.testing.assert_array_equal(layer.params["a"].value, values.astype(jnp.dtype(kept)))


def test_before_it_is_built(tmp_path):
    layer = FlaxLayer(Net())
    with pytest.raises(
        BuildError, match=r"no variables to load into before it is built.*as its params"
    ):
        layer.load_variables({})
    with pytest.raises(BuildError, match="has no variables to save before it is built"):
        layer.save_variables(tmp_path / "model.npz")


def test_a_compiled_model_runs_with_what_was_loaded():
    one, other = make("flax", 1), make("flax", 2)
    models = [keras.Sequential([keras.Input((4,)), layer]) for layer in (one, other)]
    before = models[1].predict(X, verbose=0)
    other.load_variables(one.variables_tree())
    after = models[1].predict(X, verbose=0)
    assert np.any(before != after)
    np.testing.assert_array_equal(after, models[0].predict(X, verbose=0))


# Damage.


def flipped(written, position):
    """The bytes with another bit at one position."""
    changed = bytearray(written)
    changed[position] ^= 1 << position % 8
    return bytes(changed)


@pytest.mark.parametrize("suffix", FILES)
def test_files_that_are_cut_off(tmp_path, suffix):
    layer = make("flax", 1)
    path = tmp_path / f"model.{suffix}"
    make("flax", 2).save_variables(path)
    written, before = path.read_bytes(), snapshot(layer)
    for position in [*range(0, len(written), len(written) // 15), len(written) - 1]:
        path.write_bytes(written[:position])
        with pytest.raises(CheckpointError, match=r"cannot be read as .*damaged, cut off"):
            layer.load_variables(path)
    assert snapshot(layer) == before


@pytest.mark.parametrize("suffix", ["msgpack", "safetensors", "npz"])
def test_bits_that_have_flipped(tmp_path, suffix):
    """Nothing is ever loaded in part, and what is loaded is what was saved.

    But for msgpack, which has no checksums: there, only what is not inside an array is found.
    """
    saved = make("flax", 2)
    path = tmp_path / f"model.{suffix}"
    saved.save_variables(path)
    written, whole = path.read_bytes(), snapshot(saved)
    layer, found = make("flax", 1), 0
    start = {name: np.asarray(v.value) for name, v in own_variables(layer).items()}
    before = snapshot(layer)
    for position in range(0, len(written), 29):
        path.write_bytes(flipped(written, position))
        try:
            layer.load_variables(path)
        except JaxLayerError:  # damaged, or other names or shapes than there were
            found += 1
            assert snapshot(layer) == before
        else:
            assert suffix == "msgpack" or snapshot(layer) == whole
            layer.load_variables(start)
    assert found > 5


def test_an_array_that_is_damaged_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    layer = holder(a=np.ones(2), b=np.ones(2))
    layer.save_variables(path)
    path.write_bytes(flipped(path.read_bytes(), path.stat().st_size - 1))
    with pytest.raises(CheckpointError, match=r"array `params/b` of .* is damaged: its checksum"):
        layer.load_variables(path)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_damage_at_the_end_of_a_large_file(tmp_path, suffix):
    """The last array is checked before the first is loaded."""
    path = tmp_path / f"model.{suffix}"
    saved = holder(**{name: np.ones((300, 1000), "float32") for name in "abc"})
    layer = holder(**{name: np.zeros((300, 1000), "float32") for name in "abc"})
    saved.save_variables(path)
    before = snapshot(layer)
    path.write_bytes(flipped(path.read_bytes(), path.stat().st_size - 5000))
    with pytest.raises(CheckpointError, match=r"Bad CRC-32|its checksum"):
        layer.load_variables(path)
    assert snapshot(layer) == before


def test_more_than_one_tree_in_a_file(tmp_path):
    path = tmp_path / "model.msgpack"
    layer = holder(a=np.ones(2))
    layer.save_variables(path)
    size = path.stat().st_size
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(CheckpointError, match=f"behind the tree, which ends at byte {size}"):
        layer.load_variables(path)


@pytest.mark.filterwarnings("ignore")
def test_damaged_orbax_folders(tmp_path):
    layer = make("flax", 1)
    path = tmp_path / "model.orbax"
    before = snapshot(layer)
    for name in ("_METADATA", "manifest.ocdbt"):
        make("flax", 2).save_variables(path)
        os.truncate(path / name, (path / name).stat().st_size // 2)
        with pytest.raises(CheckpointError, match="cannot be read as an Orbax checkpoint"):
            layer.load_variables(path)
    make("flax", 2).save_variables(path)
    (path / "_METADATA").unlink()
    with pytest.raises(CheckpointError, match=r"not an Orbax checkpoint of one tree.* Folders in"):
        layer.load_variables(path)
    assert snapshot(layer) == before


def test_a_file_that_is_not_there(tmp_path):
    for suffix in FORMATS:
        with pytest.raises(CheckpointError, match=r"There is no file or folder .*model\."):
            make("flax", 1).load_variables(tmp_path / f"model.{suffix}")
    with pytest.raises(CheckpointError, match=r"There is no folder .*nowhere to save"):
        make("flax", 1).save_variables(tmp_path / "nowhere" / "model.npz")


def test_what_is_in_the_way_is_not_removed(tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "thesis.tex").touch()
    (tmp_path / "notes.orbax").touch()
    layer = make("flax", 1)
    for format in ("orbax", "npz"):
        with pytest.raises(CheckpointError, match="is a folder with something else in it"):
            layer.save_variables(tmp_path / "project", format)
    with pytest.raises(CheckpointError, match="is a file, and an Orbax checkpoint makes a folder"):
        layer.save_variables(tmp_path / "notes.orbax")
    assert (tmp_path / "project" / "thesis.tex").exists()
