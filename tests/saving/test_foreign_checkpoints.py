"""Checkpoints that others have written, with the frameworks' own functions."""

import os
import pickle

import flax.linen as nn
import flax.serialization
import haiku as hk
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax.training.train_state import TrainState

from jaxlayer import FlaxLayer, HaikuLayer
from jaxlayer_core import StructureError
from jaxlayer_core.errors import CheckpointError
from jaxlayer_haiku.pickled import unpickle

from .checkpointing import Net, X, haiku_net, holder, make, snapshot

VARIABLES = Net().init(jax.random.key(5), X)


def plain(variables):
    """Without typed keys, which only JAX itself can write."""
    key = jax.random.key_data(variables["noise"]["key"])
    return {**variables, "noise": {"key": key}}


def expected(module=Net, variables=VARIABLES):
    layer = FlaxLayer(module(), variables=variables)
    layer(X)
    return snapshot(layer)


@pytest.mark.parametrize(
    "write",
    [
        flax.serialization.to_bytes,
        flax.serialization.msgpack_serialize,
        lambda variables: flax.serialization.to_bytes(flax.core.freeze(variables)),
    ],
    ids=["to_bytes", "msgpack_serialize", "frozen"],
)
def test_msgpack_of_flax(tmp_path, write):
    layer = make("flax", 1)
    (tmp_path / "model.msgpack").write_bytes(write(plain(VARIABLES)))
    layer.load_variables(tmp_path / "model.msgpack")
    assert snapshot(layer) == expected()


def test_msgpack_of_arrays_that_flax_cuts(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 8)
    one, other = make("flax", 1), make("flax", 2)
    one.save_variables(tmp_path / "ours.msgpack")
    theirs = flax.serialization.to_bytes(plain(one.variables_tree()))
    assert b"__msgpack_chunked_array__" in theirs
    assert (tmp_path / "ours.msgpack").read_bytes() == theirs
    other.load_variables(tmp_path / "ours.msgpack")
    assert snapshot(other) == snapshot(one)


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.relu(nn.Dense(3)(x)))


DENSE = Dense().init(jax.random.key(3), X)
STATE = TrainState.create(apply_fn=Dense().apply, params=DENSE["params"], tx=optax.adam(1e-3))
WHOLE = TrainState.create(apply_fn=Dense().apply, params=DENSE, tx=optax.adam(1e-3))


def write_msgpack(path, state):
    path.write_bytes(flax.serialization.to_bytes(state))


def write_orbax(path, state):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state)


def write_orbax_pytree(path, state):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, state)


def write_orbax_by_manager(path, state):
    with ocp.CheckpointManager(path.parent / "steps") as manager:
        manager.save(7, args=ocp.args.StandardSave(state))
    os.rename(path.parent / "steps" / "7", path)


@pytest.mark.parametrize("state", [STATE, WHOLE], ids=["params", "variables"])
@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".msgpack", write_msgpack),
        (".orbax", write_orbax),
        ("", write_orbax_pytree),
        ("", write_orbax_by_manager),
    ],
)
def test_a_train_state(tmp_path, suffix, write, state):
    path = tmp_path / f"state{suffix}"
    write(path, state)
    layer = FlaxLayer(Dense())
    layer(X)
    result = layer.load_variables(path, prefix="params")
    assert snapshot(layer) == expected(Dense, DENSE)
    assert not result.unexpected  # the optimizer is beside the prefix
    with pytest.raises(
        StructureError, match=r"In the source, but not in the layer \(\d+\):\n.*opt_"
    ):
        layer.load_variables(path)


def test_an_orbax_folder_of_several_items(tmp_path):
    for item in ("params", "ema"):
        write_orbax(tmp_path / "step" / item, DENSE)
    layer = FlaxLayer(Dense())
    layer(X)
    with pytest.raises(
        CheckpointError, match=r"not an Orbax checkpoint of one tree.*: ema, params"
    ):
        layer.load_variables(tmp_path / "step")
    layer.load_variables(tmp_path / "step" / "ema")
    assert snapshot(layer) == expected(Dense, DENSE)


def test_orbax_with_keys_and_lists(tmp_path):
    """A typed key that Orbax itself has written; only what is wanted is read out of the tree."""
    tree = {"opt": [jnp.ones(2), None, (jnp.ones(3), {})], "model": dict(VARIABLES), "step": 3}
    write_orbax(tmp_path / "state", tree)
    layer = make("flax", 1)
    layer.load_variables(tmp_path / "state", prefix="model")
    assert snapshot(layer) == expected()
    inner = holder(x=jnp.zeros(3))
    inner.load_variables(tmp_path / "state", prefix="opt", rename={"^2/0$": "x"}, strict=False)
    np.testing.assert_array_equal(inner.params["x"], 1)


# Haiku.

NET = hk.transform_with_state(haiku_net)
PARAMS, HAIKU_STATE = NET.init(jax.random.key(5), X, True)


def flat(tree, separator):
    return {
        f"{m}{separator}{n}": np.asarray(v) for m, leaves in tree.items() for n, v in leaves.items()
    }


def haiku_expected():
    layer = HaikuLayer(NET, params=PARAMS, state=HAIKU_STATE)
    layer(X)
    return snapshot(layer)


@pytest.mark.parametrize("separator", ["/", "//"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_haiku(tmp_path, separator, save):
    save(tmp_path / "model.npz", **flat(PARAMS, separator), **flat(HAIKU_STATE, separator))
    layer = make("haiku", 1)
    result = layer.load_variables(tmp_path / "model.npz")
    assert snapshot(layer) == haiku_expected()
    assert result.loaded["params/mlp/~/linear_0/w"] == f"mlp/~/linear_0{separator}w"


def test_npz_of_haiku_behind_a_prefix(tmp_path):
    """As AlphaFold's: one scope more, and params only."""
    named = {f"alphafold/iteration/{n}": v for n, v in flat(PARAMS, "//").items()}
    np.savez(tmp_path / "model.npz", **named, other=np.ones(2))
    layer = make("haiku", 1)
    before = snapshot(layer)
    result = layer.load_variables(
        tmp_path / "model.npz", prefix="alphafold/iteration", strict=False
    )
    assert set(result.missing) == {n for n in before if n.startswith("state/")}
    assert not result.unexpected
    own = {n: v for n, v in snapshot(layer).items() if n.startswith("params/")}
    assert own == {n: v for n, v in haiku_expected().items() if n.startswith("params/")}


@pytest.mark.parametrize("separator", [".", "/"])
def test_safetensors_of_flax(tmp_path, separator):
    named = {
        separator.join(("net", module, name)): np.asarray(value)
        for module, leaves in DENSE["params"].items()
        for name, value in leaves.items()
    }
    safetensors.numpy.save_file(named, tmp_path / "model.safetensors")
    layer = FlaxLayer(Dense())
    layer(X)
    layer.load_variables(tmp_path / "model.safetensors", prefix="net")
    assert snapshot(layer) == expected(Dense, DENSE)


def test_npz_of_bfloat16_by_numpy_itself(tmp_path):
    """NumPy writes it down as two bytes without a meaning; only one dtype of JAX has two."""
    values = np.arange(3).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "model.npz", a=values)
    layer = holder(a=np.zeros(3, "float32"))
    layer.load_variables(tmp_path / "model.npz")
    np.testing.assert_array_equal(layer.params["a"], [0, 1, 2])
    np.savez(tmp_path / "model.npz", a=values.astype(ml_dtypes.float8_e4m3fn))  # one of many
    with pytest.raises(StructureError, match=r"params/a: expected float32\[3\], got \|V1\[3\]"):
        layer.load_variables(tmp_path / "model.npz")


def test_npz_with_other_things_in_it(tmp_path):
    np.savez(tmp_path / "model.npz", a=np.ones(2), comment=np.array("text"))
    layer = holder(a=np.zeros(2))
    layer.load_variables(tmp_path / "model.npz")
    np.savez(tmp_path / "model.npz", a=np.ones(2), params=np.array({"w": 1}, dtype=object))
    with pytest.raises(CheckpointError, match=r"array `params` .* has Python objects .* would run"):
        layer.load_variables(tmp_path / "model.npz")


# Pickles.


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".npy"])
def test_a_pickle_is_never_run(tmp_path, suffix):
    path, exploded = tmp_path / f"model{suffix}", tmp_path / "exploded"
    if suffix == ".npy":
        np.save(path, np.array({"a": Bomb(str(exploded))}, dtype=object))
    else:
        path.write_bytes(pickle.dumps({"a": Bomb(str(exploded))}))
    layer = holder(a=1.0)
    with pytest.raises(CheckpointError, match=r"runs code .*\.unpickle\('.*model.*', trust=True\)"):
        layer.load_variables(path)
    for format in ("npz", "safetensors", "msgpack"):
        with pytest.raises(CheckpointError, match="cannot be read as"):
            layer.load_variables(path, format=format)
    for trust in (False, 1, "yes"):
        with pytest.raises(CheckpointError, match=r"may be a pickle, which runs code .*trust=True"):
            unpickle(path, trust=trust)
    assert not exploded.exists()
    with pytest.raises(CheckpointError, match="save_variables does not pickle"):
        layer.save_variables(tmp_path / f"other{suffix}")
    unpickle(path, trust=True)
    assert exploded.exists()  # the bomb is real


@pytest.mark.parametrize("immutable", [False, True])
@pytest.mark.parametrize("save", ["pickle", "jnp.save", "np.save"])
def test_trusted_pickles(tmp_path, save, immutable):
    freeze = hk.data_structures.to_immutable_dict if immutable else dict
    trees = {"params": freeze(PARAMS), "state": freeze(HAIKU_STATE)}
    path = tmp_path / "model.npy"
    if save == "pickle":
        path.write_bytes(pickle.dumps((trees["params"], trees["state"])))
    elif save == "np.save":
        np.save(path, trees, allow_pickle=True)
    else:
        np.save(path, np.array(trees, dtype=object))
    found = unpickle(path, trust=True)
    for tree in found.values() if isinstance(found, dict) else found:
        assert type(tree) is dict
        assert {type(leaves) for leaves in tree.values()} == {dict}
    layer = make("haiku", 1)
    layer.load_variables(found)
    assert snapshot(layer) == haiku_expected()


def test_what_is_no_pickle(tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match=r"model\.pkl cannot be unpickled: UnpicklingError"):
        unpickle(tmp_path / "model.pkl", trust=True)


# Sharded.

SHARDED = """
import sys, warnings
import flax.linen as nn, jax, keras, numpy as np
import orbax.checkpoint as ocp
from jaxlayer import FlaxLayer

folder = sys.argv[1]
class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8)(nn.Dense(16)(x))

def make(shape, seed):
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), jax.devices())
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*Dense_0/kernel"] = (None, "model")
    layouts[".*Dense_1/kernel"] = ("model", "batch")
    layouts[".*bias"] = (None,)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    )
    layer = FlaxLayer(Net(), seed=seed)
    layer.build((None, 16))
    return layer

def values(layer):
    return [np.asarray(v.value) for v in layer.trainable_variables]

def shards(layer):
    return [(v.value.sharding, [s.data.shape for s in v.value.addressable_shards])
            for v in layer.trainable_variables]

whole = []  # arrays that are all on one device
real = jax.device_put
def watched(value, *args, **kwargs):
    result = real(value, *args, **kwargs)
    if isinstance(value, jax.Array) and len(value.sharding.device_set) == 1:
        whole.append(value.shape)
    return result

one = make((2, 4), 1)
assert len({str(s) for s, _ in shards(one)}) == 3, shards(one)
for suffix in ("orbax", "msgpack", "npz", "safetensors"):
    one.save_variables(f"{folder}/model.{suffix}")
    for mesh in ((2, 4), (4, 2), (1, 8)):
        other = make(mesh, 2)
        before = shards(other)
        jax.device_put = watched
        other.load_variables(f"{folder}/model.{suffix}")
        jax.device_put = real
        assert not whole, whole
        assert shards(other) == before
        assert all(map(np.array_equal, values(other), values(one)))
        x = np.ones((8, 16), "float32")
        np.testing.assert_allclose(other(x), one(x), rtol=1e-5)
keras.distribution.set_distribution(None)
plain = FlaxLayer(Net(), seed=3)
plain.build((None, 16))
plain.load_variables(f"{folder}/model.orbax")
assert all(map(np.array_equal, values(plain), values(one)))
print("all is well")
"""


def test_each_variable_keeps_its_sharding(tmp_path, run_python):
    code = f"import sys; sys.argv = ['', {str(tmp_path)!r}]\n" + SHARDED
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    assert "all is well" in run_python(code, env=flags)
