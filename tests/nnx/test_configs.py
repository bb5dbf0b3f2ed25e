"""NNX modules as data: what comes back of them, and what is refused."""

import contextlib
import json
import re

import jax
import keras
import numpy as np
import pytest
from flax import nnx

import jaxlayer_flax  # noqa: F401  # brings the rules for NNX
from jaxlayer import FlaxLayer
from jaxlayer_core import BuildError, ConfigError, serialization
from jaxlayer_core.serialization.trust import trusting

from .importable import Arrays, Block, Derived, Own


class Shared(nnx.Module):
    """A submodule in two places; names of axes; a key that is no stream's."""

    def __init__(self, *, rngs):
        init = nnx.with_partitioning(nnx.initializers.normal(), ("in", "out"))
        with_axes = getattr(nnx, "use_eager_sharding", None)
        if with_axes is not None:
            with with_axes(False):
                self.one = nnx.Linear(3, 3, kernel_init=init, rngs=rngs)
        else:
            self.one = nnx.Linear(3, 3, kernel_init=init, rngs=rngs)
        self.two = self.one
        self.rngs = rngs


def again(module):
    data = json.loads(json.dumps(serialization.encode(module).data))
    return serialization.decode(data, safe=False)


def kinds(module):
    """What is where."""
    return [
        (path, type(node))
        for path, node in nnx.iter_graph(module)
        if isinstance(node, nnx.Module | nnx.Rngs | nnx.Variable)
    ]


MODULES = {
    "block": lambda: Block(3, rngs=nnx.Rngs(0)),
    "own": lambda: Own(rngs=nnx.Rngs(0)),
    "arrays": Arrays,
    "derived": Derived,
    "shared": lambda: Shared(rngs=nnx.Rngs(params=0, dropout=1)),
    "attention": lambda: nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0)),
    "sequence": lambda: nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), jax.nn.relu),
}


@pytest.mark.parametrize("name", MODULES)
def test_all_but_the_values_comes_back(name):
    module = MODULES[name]()
    copy = again(module)
    assert type(copy) is type(module)
    (_, values), (structure, others) = (nnx.split(m) for m in (module, copy))
    one, two = ([(v.shape, v.dtype) for v in jax.tree.leaves(state)] for state in (values, others))
    assert one == two
    assert kinds(copy) == kinds(module)
    weights = jax.tree.leaves(nnx.state(copy, nnx.Param))
    assert not any(np.any(np.asarray(leaf)) for leaf in weights)
    nnx.merge(structure, values)  # the structures fit


def test_what_is_shared_stays_shared():
    copy = again(Shared(rngs=nnx.Rngs(0)))
    assert copy.one is copy.two
    metadata = copy.one.kernel.get_metadata()
    assert ("in", "out") in metadata.values()


def changed(old, new):
    """The data of a module with another text in it."""
    text = json.dumps(serialization.encode(nnx.Linear(3, 4, rngs=nnx.Rngs(0))).data)
    assert old in text
    return json.loads(text.replace(old, new, 1))


HOSTILE = {
    "class": (
        '"use_bias"',
        '"__class__"',
        ConfigError,
        "attribute '__class__', which is Pyt",
    ),
    "state": ('"use_bias"', '"_pytree__state"', ConfigError, "which is Python's or Flax's"),
    "shape": ('"shape": [3, 4]', '"shape": [3, -4]', ConfigError, r"[3, -4] for a shape"),
    "dtype": ('"dtype": "float32"', '"dtype": "nonsense"', ConfigError, "'nonsense' for a dtype"),
    "size": ('"shape": [3, 4]', f'"shape": [{2**40}, 4]', BuildError, "GiB of memory"),
    "kind": ('"name": "Param"', '"name": "Linear"', ConfigError, "which is not a variable of NNX"),
    "object": ('"name": "Linear"', '"name": "Param"', ConfigError, "which is not a class of NNX"),
}


def test_a_key_of_a_size_that_nobody_has():
    """Streams are no weights, but a file says what their keys are like."""
    text = json.dumps(serialization.encode(nnx.Dropout(0.5, rngs=nnx.Rngs(0))).data)
    old = '"shape": [], "dtype": "key"'
    assert old in text
    for size, outcome in ((3, contextlib.nullcontext()), (2**40, pytest.raises(BuildError))):
        data = json.loads(text.replace(old, old.replace("[]", f"[{size}]")))
        with outcome:
            (key,) = jax.tree.leaves(nnx.state(serialization.decode(data), nnx.RngKey))
            assert key.shape == (size,)


@pytest.mark.parametrize("case", HOSTILE)
def test_broken_data_are_refused(case):
    old, new, kind, message = HOSTILE[case]
    with pytest.raises(kind, match=re.escape(message)):
        serialization.decode(changed(old, new))


def test_a_files_classes_have_to_be_trusted():
    data = serialization.encode(Block(3, rngs=nnx.Rngs(0))).data
    module = Block.__module__.partition(".")[0]
    with trusting(module):
        assert type(serialization.decode(data)) is Block


def test_layers_of_flax_that_hold_its_private_functions(tmp_path):
    cells = [nnx.SimpleCell(3, 2, rngs=nnx.Rngs(seed)) for seed in range(2)]
    module = nnx.Bidirectional(*map(nnx.RNN, cells), rngs=nnx.Rngs(0))
    model = keras.Sequential([keras.Input((4, 3)), FlaxLayer(module)])
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")  # in safe mode, trusting nobody
    x = np.ones((2, 4, 3), "float32")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
