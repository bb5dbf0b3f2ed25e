"""Any pytree is params, state, input and output without a bit or a name lost."""

import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from hypothesis import strategies as st

from jaxlayer import JaxLayer
from jaxlayer_core.patterns import exactly

from .searching import as_arrays, assert_bits, is_key, is_number, searched, values
from .strategies import FLOATS, INTEGERS, arrays, keys, numbers, pytrees, statics

X = np.ones((2, 3), "float32")
TREES = {"params": pytrees(), "state": pytrees()}


def arrays_of(tree: Any) -> list[Any]:
    """The leaves that are arrays, as JAX holds them."""
    return [leaf for leaf in jax.tree.leaves(as_arrays(tree)) if is_number(leaf) or is_key(leaf)]


def update(leaf: Any) -> Any:
    """Another value of the same shape and dtype for an array."""
    if is_key(leaf):
        return jax.vmap(lambda key: jax.random.fold_in(key, 1))(leaf.ravel()).reshape(leaf.shape)
    if not isinstance(leaf, jax.Array):
        return leaf
    if leaf.dtype == bool:
        return ~leaf
    integer = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}") if leaf.dtype != "complex64" else None
    if integer is None:
        return leaf.conj()
    return jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(leaf, integer) ^ integer.type(1), leaf.dtype
    )


class Watched:
    """A layer whose function returns all arrays of params, state and inputs.

    Attributes:
        seen: what the function got when it was last traced.
    """

    def __init__(self, params: Any, state: Any, **options: Any) -> None:
        def call_fn(params: Any, state: Any, inputs: Any, training: bool) -> Any:
            self.seen = params, state
            outputs = arrays_of((params, state, inputs))
            return outputs, (jax.tree.map(update, state) if training else state)

        self.layer = JaxLayer(call_fn, params=params, state=state, name="watched", **options)

    def check(self, params: Any, state: Any) -> None:
        """Asserts that an inference call gets just these trees."""
        got = self.layer(X, training=False)
        for seen, given in zip(self.seen, (params, state), strict=True):
            seen_leaves, treedef = jax.tree.flatten(seen)
            assert treedef == jax.tree.structure(given)
            for one, other in zip(seen_leaves, jax.tree.leaves(as_arrays(given)), strict=True):
                if isinstance(other, jax.Array):
                    assert (one.shape, one.dtype) == (other.shape, other.dtype)
                else:
                    assert one is other
        assert_bits(got, arrays_of((params, state, X)))


def either_given(params: Any, state: Any) -> bool:
    """None is how a user leaves a tree out."""
    return params is not None or state is not None


@searched(few=12, many=1500, **TREES)
def test_call_fn_gets_the_tree(params, state):
    """`call_fn` gets the structures, dtypes, key types and bits that were given."""
    if either_given(params, state):
        Watched(params, state).check(params, state)


@searched(few=8, many=1000, **TREES)
def test_the_layer_shows_the_trees(params, state):
    """`layer.params` and `layer.state` are the trees, a key in them as its data; paths differ."""
    if not either_given(params, state):
        return
    layer = Watched(params, state).layer

    def shown(leaf: Any) -> Any:
        return jax.random.key_data(leaf) if is_key(leaf) else leaf

    assert_bits(values(layer.params), jax.tree.map(shown, as_arrays(params)))
    assert_bits(values(layer.state), jax.tree.map(shown, as_arrays(state)))
    paths = [variable.path for variable in layer.variables]
    assert len(set(paths)) == len(paths)
    assert all(path.startswith(("watched/params", "watched/state", "seed")) for path in paths)


def emptied(tree: Any) -> Any:
    """A tree with other bits in all arrays."""

    def other(leaf: Any) -> Any:
        if is_key(leaf):
            impl = jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(jnp.zeros_like(jax.random.key_data(leaf)), impl=impl)
        return jnp.zeros_like(leaf) if is_number(leaf) else leaf

    return jax.tree.map(other, as_arrays(tree))


def as_model(layer: Any) -> keras.Model:
    """A model with nothing but the layer in it."""
    model = keras.Sequential([layer])
    model.built = True
    return model


# h5py knows no float8, so Keras cannot save a variable of its own that has it either.
STORED = pytrees(arrays(dtypes=[*FLOATS, *INTEGERS]) | keys() | numbers() | statics())


@searched(few=8, many=800, params=STORED, state=STORED)
def test_weights_files(params, state):
    """A weights file brings every bit of every leaf into a fresh layer."""
    if not either_given(params, state):
        return
    saved, fresh = Watched(params, state), Watched(emptied(params), emptied(state))
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.weights.h5"
        as_model(saved.layer).save_weights(file)
        as_model(fresh.layer).load_weights(file)
    fresh.check(params, state)


@searched(few=8, many=800, **TREES)
def test_state_updates(params, state):
    """What a training call returns as state is, bit for bit, the state of the next."""
    if not either_given(params, state):
        return
    watched = Watched(params, state)
    outputs = watched.layer(X, training=True)
    assert_bits(outputs, arrays_of((params, state, X)))
    watched.check(params, jax.tree.map(update, as_arrays(state)))


@searched(few=8, many=1000, data=st.data(), **TREES)
def test_freezing_one_leaf(params, state, data):
    """Freezing a leaf by its exact path freezes it and no other; a config keeps that."""
    if not either_given(params, state):
        return
    watched = Watched(params, state)
    layer = watched.layer
    names = [*layer._params.names, *layer._state.names]
    if not names:
        return
    trained = [v.path for v in layer.trainable_variables]
    chosen = data.draw(st.sampled_from(names), label="frozen")
    before = dict(zip(names, layer._params.values() + layer._state.values(), strict=True))

    layer.freeze(exactly(chosen))
    assert [v.path for v in layer.trainable_variables] == [
        path for path in trained if path != f"watched/{chosen}"
    ]
    layer(X, training=True)
    expected = jax.tree.leaves(as_arrays(jax.tree.map(update, as_arrays(state))))
    updated = [
        jax.random.key_data(leaf) if is_key(leaf) else leaf
        for leaf in expected
        if isinstance(leaf, jax.Array)
    ]
    for name, variable, new in zip(
        layer._state.names, layer._state.variables, updated, strict=True
    ):
        assert_bits(variable.value, before[name] if name == chosen else new)

    again = Watched(params, state).layer
    again._freezing.replay(layer.get_config()["freezing"])
    assert again._freezing.frozen == {chosen}


PASSED_ON = arrays() | keys() | st.none()


@searched(few=12, many=1500, tree=pytrees(PASSED_ON))
def test_inputs_and_outputs(tree):
    """A nest of arrays and keys comes through the layer as through `jax.jit`."""
    seen = []

    def call_fn(inputs: Any) -> Any:
        seen.append(inputs)
        return jax.tree.map(update, inputs), inputs

    expected = jax.jit(call_fn)(tree)
    layer = JaxLayer(call_fn)
    assert_bits(layer(tree), expected)
    assert_bits(layer(tree), expected)
    assert all(jax.tree.structure(one) == jax.tree.structure(tree) for one in seen)
    outputs, _ = jax.jit(lambda tree: layer.stateless_call([], layer_state(layer), tree))(tree)
    assert_bits(outputs, expected)


def layer_state(layer: Any) -> list[Any]:
    """Values of the variables that are not trained."""
    return [v.value for v in layer.non_trainable_variables]


# Static leaves and Python numbers go into a call as they are: the function sees no arrays there.
SEEN = arrays() | keys() | st.none() | st.sampled_from(["text", True, 3, 2.5, -0.0, 1j, len])


@searched(few=10, many=1000, tree=pytrees(SEEN))
def test_static_inputs(tree):
    """Strings, functions and Python numbers among the inputs reach the model as they are."""
    seen = []

    def call_fn(inputs: Any) -> Any:
        seen.append(inputs)
        return [leaf for leaf in jax.tree.leaves(inputs) if isinstance(leaf, jax.Array)]

    got = JaxLayer(call_fn)(tree)
    pairs = zip(jax.tree.leaves(seen[-1]), jax.tree.leaves(tree), strict=True)
    for one, given in pairs:
        if isinstance(given, jax.Array | np.ndarray):
            assert isinstance(one, jax.Array)
        else:
            assert type(one) is type(given)
            assert repr(one) == repr(given)
    leaves = [a for a in jax.tree.leaves(tree) if isinstance(a, jax.Array | np.ndarray)]
    assert_bits(got, jax.jit(lambda arrays: arrays)(leaves))


# No keys: `KerasTensor` refuses their dtype.
SYMBOLIC = arrays(shapes=[(2,), (2, 3), (2, 0)]) | st.none()


@searched(few=8, many=600, tree=pytrees(SYMBOLIC))
def test_functional_models(tree):
    """In a functional model, a nest of any nodes goes in and comes out as it does eagerly."""
    leaves = arrays_of(tree)
    if not leaves:
        return  # a functional model needs an input

    def call_fn(inputs: Any) -> Any:
        return jax.tree.map(
            lambda leaf: leaf.ravel() if leaf.shape[1:] == (0,) else update(leaf), inputs
        )

    inputs = [keras.Input(leaf.shape[1:], dtype=leaf.dtype.name) for leaf in leaves]
    nest = jax.tree.unflatten(jax.tree.structure(tree), inputs)
    outputs = JaxLayer(call_fn)(nest)
    expected = jax.jit(call_fn)(tree)
    assert jax.tree.structure(outputs) == jax.tree.structure(expected)
    for symbol, array in zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True):
        assert symbol.dtype == array.dtype.name
        assert tuple(symbol.shape[1:]) == array.shape[1:]
    model = keras.Model(inputs, jax.tree.leaves(outputs))
    assert_bits(list(jax.tree.leaves(model(leaves))), jax.tree.leaves(expected))
