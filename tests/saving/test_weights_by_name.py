"""Weights in Keras' files are stored under their names, with an index, and checked against it."""

import collections
import json
import weakref

import h5py
import jax
import jax.numpy as jnp
import keras
import ml_dtypes
import numpy as np
import pytest
from keras.src.saving import saving_lib

from jaxlayer import JaxLayer
from jaxlayer_core import StructureError, matching, weight_index
from jaxlayer_core.weight_index import ENTRY, Record, UnreadableError, pack, unpack

from .kinds import LAYERS, LEAVES, X, model_of, trained

FILES = ["model.weights.h5", "model.keras"]


def save(model, path):
    (model.save if path.suffix == ".keras" else model.save_weights)(path)


def bits(tree):
    """Names, dtypes and bytes of a tree of variables."""
    return [
        (jax.tree_util.keystr(path), v.dtype, v.shape, np.asarray(v.value).tobytes())
        for path, v in jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda leaf: isinstance(leaf, keras.Variable)
        )
    ]


# Every value that a variable can hold, bit for bit.

DTYPES = [
    "bool",
    *("int8", "int16", "int32", "uint8", "uint16", "uint32"),
    *("float16", "float32", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"),
]


def noise(dtype, shape, seed):
    """All patterns of bits alike: NaN with payloads, -0.0 and denormal numbers among them."""
    dtype = np.dtype(dtype)
    generator = np.random.default_rng(seed)
    if dtype.kind == "b":
        return generator.integers(2, size=shape).astype(bool)
    size = int(np.prod(shape)) * dtype.itemsize
    return generator.integers(256, size=size, dtype=np.uint8).view(dtype).reshape(shape)


def special():
    """Single values that arithmetic, or a conversion of dtypes, would change."""
    words = np.array([0x7FC00001, 0xFFA00005, 0x80000000, 0x00000001, 0x807FFFFF], np.uint32)
    return {
        "float32": words.view(np.float32),
        "bfloat16": (words >> 16).astype(np.uint16).view(ml_dtypes.bfloat16),
        "float16": np.array([0x7E01, 0xFD05, 0x8000, 0x0001], np.uint16).view(np.float16),
        "float8_e5m2": np.array([0x7D, 0xFE, 0x80, 0x01], np.uint8).view(ml_dtypes.float8_e5m2),
        "complex64": words[[0, 2]].view(np.float32).view(np.complex64),
    }


def zoo(seed):
    leaves = {d: noise(d, (40, 3), seed) for d in DTYPES}
    scalars = {d: noise(d, (), seed) for d in DTYPES}
    empty = {d: noise(d, (0, 3), seed) for d in DTYPES}
    return {
        "dotted.name": leaves,
        "scalars": scalars,
        "empty": empty,
        "special": special() if seed == 0 else jax.tree.map(np.zeros_like, special()),
        "key": jax.random.key(seed),
        "keys": jax.random.split(jax.random.key(seed), 2),
    }


@keras.saving.register_keras_serializable("by_name")
def zoo_call(params, state, inputs):
    return inputs * params, state


def zoo_model(seed):
    layer = JaxLayer(zoo_call, params=jnp.float32(seed), state=zoo(seed))
    return keras.Sequential([keras.Input((4,)), layer])


@pytest.mark.parametrize("file", [*FILES, "model.weights.json"])
def test_all_dtypes_survive_bit_for_bit(file, tmp_path):
    saved, loaded = zoo_model(0), zoo_model(1)
    expected = bits(saved.layers[0].state)
    assert len(expected) == 3 * len(DTYPES) + len(special()) + 2
    assert bits(loaded.layers[0].state) != expected
    if file.endswith("json"):
        saved.save_weights(tmp_path / file, max_shard_size=6000 / 2**30)
        assert len(list(tmp_path.glob("*.weights.h5"))) > 1
    else:
        save(saved, tmp_path / file)
    loaded.load_weights(tmp_path / file)
    assert bits(loaded.layers[0].state) == expected


def test_all_dtypes_survive_in_npz(tmp_path):
    """The entries are arrays that npz files hold without pickling.

    Keras' `NpzIOStore` itself writes dicts, as pickles, and refuses to read them again (3.13 to
    3.15.1), so a file of such entries is made here.
    """
    saved, loaded = zoo_model(0), zoo_model(1)
    store = saving_lib.NpzIOStore(tmp_path / "unused.npz", mode="w")
    entries = store.make("layers/jax_layer")
    saved.layers[0].save_own_variables(entries)
    np.savez(tmp_path / "model.npz", **entries)
    with np.load(tmp_path / "model.npz", allow_pickle=False) as file:
        loaded.layers[0].load_own_variables(file)
    assert bits(loaded.layers[0].state) == bits(saved.layers[0].state)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in dir(ml_dtypes)
        # JAX 0.6 does not know all of them.
        if name.startswith(("float", "int", "ui")) and matching.is_number(np.dtype(name))
    ],
)
def test_dtypes_that_keras_has_no_variables_of_are_stored_all_the_same(name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    for shape in [(), (3,), (0, 2), (2, 3)]:
        value = np.asarray(np.arange(6)[: int(np.prod(shape))] % 2, dtype).reshape(shape)
        record = Record.of(value)
        (decoded,) = weight_index.decode("net", weight_index.encode({"a": record})).values()
        assert decoded == record
        again = unpack(pack(value), decoded)
        assert (again.dtype, again.shape, again.tobytes()) == (dtype, shape, value.tobytes())


def test_the_file_is_plain_where_hdf5_has_the_dtype(tmp_path):
    model = model_of(LAYERS["flax"]())
    model.save_weights(tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5") as file:
        entries = file["layers/flax_layer/vars"]
        kernel = entries["params.first.kernel"]
        assert (kernel.shape, kernel.dtype) == ((4, 4), "float32")
        np.testing.assert_array_equal(kernel, model.layers[2].params["params"]["first"]["kernel"])
        index = json.loads(bytes(entries[ENTRY]))
    assert set(index["leaves"]) == {
        *(
            f"params/{part}/{leaf}"
            for part in ("first", "second", "out")
            for leaf in ("bias", "kernel")
        ),
        *("params/norm/bias", "params/norm/scale"),
        *("batch_stats/norm/mean", "batch_stats/norm/var"),
        "seed_generator",
    }


# Names decide, and nothing else.


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", LAYERS)
def test_models_come_back_exactly(kind, file, tmp_path, assert_same):
    saved = trained(model_of(LAYERS[kind](seed=1)))
    loaded = model_of(LAYERS[kind](seed=2))
    save(saved, tmp_path / file)
    loaded.load_weights(tmp_path / file)
    for one, other in zip(loaded.layers, saved.layers, strict=True):
        assert_same(one.weights, other.weights)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), saved.predict(X, verbose=0))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_renamed_part_is_an_error_that_names_both(kind, file, tmp_path, values, assert_same):
    """D6b: `first` and `second` have equal shapes; the module now says `body` and `first`.

    By position, `first` would be loaded into `body`, and `second` into `first`.
    """
    save(model_of(LAYERS[kind]()), tmp_path / file)
    loaded = model_of(LAYERS[kind](names=("body", "first")))
    before = values(loaded.layers[2].variables)
    with pytest.raises(ValueError, match="does not hold the variables of the layer") as caught:
        loaded.load_weights(tmp_path / file)
    for leaf in LEAVES[kind]:
        assert (
            f"  {leaf.format('second')} -> {leaf.format('body')}" in str(caught.value).splitlines()
        )
    assert_same(loaded.layers[2].variables, before)


Ordered = collections.namedtuple("Ordered", ["one", "two"])
Reordered = collections.namedtuple("Reordered", ["two", "one"])


@keras.saving.register_keras_serializable("by_name")
def pair_call(params, inputs):
    return inputs @ params.one - inputs @ params.two


@pytest.mark.parametrize("file", FILES)
def test_order_decides_nothing(file, tmp_path, values):
    """D6c: the fields of a container, of equal shape, have changed places."""
    one, two = np.ones((4, 2), "float32"), np.full((4, 2), 2, "float32")
    models = [
        keras.Sequential([keras.Input((4,)), JaxLayer(pair_call, params=params)])
        for params in (Ordered(one=one, two=two), Reordered(one=0 * one, two=0 * two))
    ]
    for model in models:
        model(X)
    save(models[0], tmp_path / file)
    models[1].load_weights(tmp_path / file)
    params = models[1].layers[0].params
    np.testing.assert_array_equal(values(params.one), one)
    np.testing.assert_array_equal(values(params.two), two)


def changed(layer, change):
    """The store of a layer after `change` to it."""
    store = {}
    layer.save_own_variables(store)
    change(store)
    return store


def refused(layer, store, values, assert_same):
    """The message with which a layer refuses a store, leaving everything as it was."""
    before = values(layer.variables)
    with pytest.raises(StructureError) as caught:
        layer.load_own_variables(store)
    assert_same(layer.variables, before)
    return str(caught.value)


@pytest.fixture
def layers():
    made = [LAYERS["flax"](name="net", seed=seed) for seed in (1, 2)]
    for layer in made:
        layer(X)
    return made


def test_all_differences_are_told_together(values, assert_same):
    made = [
        LAYERS["flax"](names=("first", "middle"), name="net"),
        LAYERS["flax"](names=("first", "second", "third"), units=7, name="net"),
    ]
    for layer in made:
        layer(X)
    message = refused(made[1], changed(made[0], lambda store: None), values, assert_same)
    assert message.splitlines() == [
        "The file does not hold the variables of the layer 'net'. Nothing was loaded.",
        "Missing from the file (4):",
        *(
            f"  params/{p}: float32[{s}]"
            for p, s in [("second/bias", "4"), ("second/kernel", "4,4")]
        ),
        *(f"  params/{p}: float32[{s}]" for p, s in [("third/bias", "4"), ("third/kernel", "4,4")]),
        "In the file, but not in the layer (2):",
        *(
            f"  params/{p}: float32[{s}]"
            for p, s in [("middle/bias", "4"), ("middle/kernel", "4,4")]
        ),
        "Of another shape or kind of dtype (2):",
        "  params/out/bias: expected float32[7], got float32[3]",
        "  params/out/kernel: expected float32[4,7], got float32[4,3]",
        "Perhaps renamed:",
        *(f"  params/middle/{leaf} -> params/third/{leaf}" for leaf in ("bias", "kernel")),
        "Load it into the model that saved it, or load only what fits with skip_mismatch=True.",
    ]


def test_another_width_is_converted_and_another_kind_refused(values, assert_same):
    def layer(dtype):
        state = {"a": jnp.array([1, 2.5], dtype)}
        return JaxLayer(zoo_call, params=jnp.float32(0), state=state)

    half, full, whole = map(layer, ("bfloat16", "float32", "int32"))
    full.load_own_variables(changed(half, lambda store: None))
    np.testing.assert_array_equal(values(full.state["a"]), np.array([1, 2.5], "float32"))
    message = refused(whole, changed(half, lambda store: None), values, assert_same)
    assert "  state/a: expected int32[2], got bfloat16[2]" in message.splitlines()


# Damage, and files made to break things.


def test_a_flipped_bit_is_found_and_its_leaf_named(tmp_path, values, assert_same):
    saved, loaded = (model_of(LAYERS["flax"](seed=seed)) for seed in range(2))
    path = tmp_path / "model.weights.h5"
    saved.save_weights(path)
    with h5py.File(path) as file:
        offset = file["layers/flax_layer/vars/params.second.kernel"].id.get_offset()
    damaged = bytearray(path.read_bytes())
    damaged[offset + 17] ^= 4
    path.write_bytes(damaged)
    before = values(loaded.layers[2].variables)
    with pytest.raises(ValueError, match="damaged") as caught:
        loaded.load_weights(path)
    told = "  params/second/kernel: its bytes are not those that were saved"
    assert told in str(caught.value).splitlines()
    assert_same(loaded.layers[2].variables, before)

    # Damage is no mismatch: it is not skipped leaf by leaf.
    with pytest.warns(UserWarning, match="could not be loaded") as warned:
        loaded.load_weights(path, skip_mismatch=True)
    assert told in str(warned[-1].message).splitlines()
    assert_same(loaded.layers[2].variables, before)


def edited(change):
    """A change to a store by a change to its index."""

    def edit(store):
        index = json.loads(bytes(store[ENTRY]))
        index = change(index) or index
        store[ENTRY] = np.frombuffer(json.dumps(index).encode(), np.uint8)

    return edit


def field(name, value, path="params/out/kernel"):
    return edited(lambda index: index["leaves"][path].update({name: value}))


def raw(data):
    return lambda store: store.update({ENTRY: np.frombuffer(data, np.uint8)})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (raw(b"\xff\xfe"), "cannot be read"),
        (raw(b"{"), "cannot be read"),
        (raw(b""), "cannot be read"),
        (raw(b"[" * 100_000), "cannot be read"),
        (
            raw(b'{"version": 1, "leaves": {"a": {"crc32": ' + b"9" * 9999 + b"}}}"),
            "cannot be read",
        ),
        (lambda s: s.update({ENTRY: np.ones(3)}), "cannot be read"),
        (lambda s: s.update({ENTRY: np.array("text")}), "cannot be read"),
        (edited(lambda index: [1]), "no version"),
        (edited(lambda index: {"leaves": {}}), "no version"),
        (edited(lambda index: {**index, "version": 2}), "saved by a newer jaxlayer"),
        (edited(lambda index: {**index, "leaves": []}), "no leaves"),
        (edited(lambda index: {"version": 1}), "no leaves"),
        (edited(lambda index: index["leaves"].update(a=None)), "`a` means nothing"),
        (edited(lambda index: index["leaves"].update(a={})), "`a` means nothing"),
        (field("dtype", "object"), "`params/out/kernel` means nothing"),
        (field("dtype", "f4,f4"), "`params/out/kernel` means nothing"),
        (field("dtype", "str"), "`params/out/kernel` means nothing"),
        (field("dtype", 4), "`params/out/kernel` means nothing"),
        (field("dtype", "float31"), "`params/out/kernel` means nothing"),
        (field("shape", 12), "`params/out/kernel` means nothing"),
        (field("shape", [4, -3]), "`params/out/kernel` means nothing"),
        (field("shape", [4, True]), "`params/out/kernel` means nothing"),
        (field("shape", [4, 3.0]), "`params/out/kernel` means nothing"),
        (field("shape", [10**30]), "`params/out/kernel` means nothing"),
        (field("crc32", "1"), "`params/out/kernel` means nothing"),
        (field("crc32", 1), "params/out/kernel: its bytes are not those that were saved"),
        (field("shape", [10**9, 10**9]), "got float32[1000000000,1000000000]"),
        (field("shape", [3, 4]), "expected float32[4,3], got float32[3,4]"),
        (field("dtype", "int32"), "expected float32[4,3], got int32[4,3]"),
        (field("dtype", "float16"), "stored as float32[4,3], expected float16[4,3]"),
        (field("dtype", "bfloat16"), "stored as float32[4,3], expected uint8[4,3,2]"),
        (edited(lambda index: index["leaves"].pop("params/out/bias") and None), "params.out.bias"),
        (edited(lambda index: index["leaves"].update(a=index["leaves"]["params/out/bias"])), " a."),
        (lambda store: store.pop("params.out.bias"), "params.out.bias"),
        (lambda store: store.update(more=np.ones(3)), "more"),
        (lambda store: store.update({"params.out.bias": np.ones(3, "O")}), "stored as object[3]"),
        (lambda store: store.update({"params.out.bias": np.ones(9, "f4")}), "stored as float32[9]"),
        (lambda store: store.clear(), "holds nothing for the layer 'net'"),
        (lambda s: [s.pop(n) for n in (ENTRY, "params.out.bias")], "Missing from the file (1)"),
    ],
)
def test_broken_stores_are_refused(change, told, layers, values, assert_same):
    saved, loaded = layers
    assert told in refused(loaded, changed(saved, change), values, assert_same)


def test_a_store_that_cannot_be_read_is_refused(layers, values, assert_same):
    class Broken(dict):
        def __getitem__(self, name):
            if name == self.broken:
                raise OSError("filter returned failure during read")
            return super().__getitem__(name)

    saved, loaded = layers
    for broken, told in [
        ("params.out.kernel", "params/out/kernel: `params/out/kernel` cannot be read"),
        (ENTRY, "damaged"),
    ]:
        store = Broken(changed(saved, lambda store: None))
        store.broken = broken
        message = refused(loaded, store, values, assert_same)
        assert told in message
        assert "filter returned failure" in message


def test_unpack_tells_damage():
    value = np.ones((2, 3), ml_dtypes.bfloat16)
    with pytest.raises(UnreadableError, match="its bytes are not"):
        unpack(pack(2 * value), Record.of(value))


def test_leaves_are_read_one_at_a_time(layers):
    """No array of a store is kept while the next is read: a model is not in memory twice."""
    saved, loaded = layers
    alive = []

    class Tracked(np.ndarray):
        """An array that can be referred to weakly."""

    class Counting(dict):
        def __getitem__(self, name):
            array = np.array(super().__getitem__(name)).view(Tracked)
            assert sum(ref() is not None for ref in alive) <= 1, "the one before, at most"
            alive.append(weakref.ref(array))
            return array

    loaded.load_own_variables(Counting(changed(saved, lambda store: None)))
    assert len(alive) > 20


# Files of earlier versions.


def test_stores_without_an_index_load(layers, assert_same):
    """Earlier versions stored the same names, and no index."""
    saved, loaded = layers
    loaded.load_own_variables(changed(saved, lambda store: store.pop(ENTRY)))
    assert_same((loaded.params, loaded.state), (saved.params, saved.state))


def test_escaped_names_of_earlier_versions_are_told_apart():
    """`a.b` with a leaf `c`, `a` with a leaf `b.c`, and names that look escaped."""
    trees = [
        {"a.b": {"c": np.float32(i)}, "a": {"b.c": np.float32(i + 1), "%2E": np.float32(i + 2)}}
        for i in (1, 5)
    ]
    saved, loaded = (JaxLayer(zoo_call, params=jnp.float32(0), state=tree) for tree in trees)
    loaded.load_own_variables(changed(saved, lambda store: store.pop(ENTRY)))
    assert [float(v) for v in jax.tree.leaves(loaded.variables_tree()[1])] == [2 + 1, 1 + 1, 1]
