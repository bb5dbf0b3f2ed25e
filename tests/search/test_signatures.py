"""A model with any signature gets what a native caller would write out."""

import zlib
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
from hypothesis import strategies as st

from jaxlayer import FlaxLayer, HaikuLayer
from jaxlayer_core.structure import is_array

from .searching import assert_bits, searched, values
from .strategies import Call, Signature, signed_calls


def digest(observed: dict[str, Any]) -> dict[str, Any]:
    """All that a model got, as arrays: its arrays as they are, checksums of the rest."""

    def one(leaf: Any) -> Any:
        if is_array(leaf):
            assert isinstance(leaf, jax.Array), "a model gets JAX arrays"
            return leaf
        return checksum((type(leaf).__name__, repr(leaf)))

    def all_of(tree: Any) -> list[Any]:
        leaves, treedef = jax.tree.flatten(tree, is_leaf=lambda leaf: leaf is None)
        return [*map(one, leaves), checksum(treedef)]

    return {name: all_of(tree) for name, tree in observed.items()}


def checksum(value: Any) -> np.ndarray:
    return np.full((), zlib.crc32(repr(value).encode()), "uint32")


NAMESPACE = {"hk": hk, "nn": nn, "jnp": jnp, "digest": digest}


def evaluate(source: str, name: str) -> Any:
    """What `source` defines as `name`."""
    namespace = dict(NAMESPACE)
    exec(source, namespace)
    return namespace[name]


HAIKU = """
def model({parameters}):
    w = hk.get_parameter("w", (), init=jnp.ones)
    return {{**digest({observed}), "w": w}}
"""
HAIKU_CLASS = """
class Model(hk.Module):
    def __call__(self, {parameters}):
        w = hk.get_parameter("w", (), init=jnp.ones)
        return {{**digest({observed}), "w": w}}
"""
LINEN = """
class Model(nn.Module):
    @nn.compact
    def __call__(self, {parameters}):
        w = self.param("w", nn.initializers.ones, ())
        return {{**digest({observed}), "w": w}}
"""


def haiku(signature: Signature) -> Any:
    return evaluate(source_of(HAIKU, signature), "model")


def source_of(template: str, signature: Signature) -> str:
    return template.format(parameters=signature.source, observed=signature.observed)


def make(kind: str, signature: Signature) -> tuple[Any, Any]:
    """A layer, and a function of its params and a call that does what native code does."""
    if kind == "linen":
        module = evaluate(source_of(LINEN, signature), "Model")()
        return FlaxLayer(module), lambda p, args, kwargs: module.apply(p, *args, **kwargs)
    if kind == "module class":
        cls = evaluate(source_of(HAIKU_CLASS, signature), "Model")
        transformed = hk.transform(lambda *args, **kwargs: cls()(*args, **kwargs))
        model = cls
    else:
        function = haiku(signature)
        transformed = hk.transform(function)
        model = {
            "function": lambda: function,
            "transform": lambda: transformed,
            "transform_with_state": lambda: hk.transform_with_state(function),
            "without_apply_rng": lambda: hk.without_apply_rng(transformed),
        }[kind]()

    def native(params: Any, args: tuple, kwargs: dict) -> Any:
        return transformed.apply(params, None, *args, **kwargs)

    return HaikuLayer(model), native


KINDS = st.sampled_from(
    ["function", "transform", "transform_with_state", "without_apply_rng", "module class", "linen"]
)
SEARCHED = {
    "kind": KINDS,
    "signed": signed_calls(),
    "training": st.sampled_from([None, True, False]),
}


def split(args: tuple, kwargs: dict) -> tuple[list[Any], Any]:
    """The arrays of a call, and a function that puts others in their place."""
    leaves, treedef = jax.tree.flatten((args, kwargs))
    cut = [isinstance(leaf, np.ndarray) for leaf in leaves]

    def fill(arrays: Any) -> tuple[tuple, dict]:
        remaining = iter(arrays)
        filled = [next(remaining) if c else leaf for c, leaf in zip(cut, leaves, strict=True)]
        return jax.tree.unflatten(treedef, filled)

    return [leaf for c, leaf in zip(cut, leaves, strict=True) if c], fill


def expected_of(native: Any, layer: Any, signature: Signature, call: Call, training: Any) -> Any:
    """What the framework gives for the call with all flags written out."""
    args, kwargs = call.native(signature, training)
    arrays, fill = split(args, kwargs)

    def run(params: Any, arrays: Any) -> Any:
        args, kwargs = fill(arrays)
        return native(params, args, kwargs)

    return jax.jit(run)(values(layer.params), arrays)


# Known defects, which have their own tests in test_found.py. To be deleted with the marks there.


@searched(few=60, many=4000, **SEARCHED)
def test_calls(kind, signed, training):
    """A random call gets what a native caller would pass; in a jit, too."""
    signature, call = signed
    layer, native = make(kind, signature)
    # A flag that is called `training` is the mode itself.
    training = call.kwargs.get("training", training)
    mode = {} if "training" in call.kwargs else {"training": training}
    got = layer(*call.args, **call.kwargs, **mode)
    expected = expected_of(native, layer, signature, call, training)
    assert_bits(got, expected)
    assert_bits(layer(*call.args, **call.kwargs, **mode), expected)

    arrays, fill = split(call.args, call.kwargs)

    @jax.jit
    def stateless(own: Any, others: Any, arrays: Any) -> Any:
        args, kwargs = fill(arrays)
        return layer.stateless_call(own, others, *args, **kwargs, **mode)[0]

    own = [v.value for v in layer.trainable_variables]
    others = [v.value for v in layer.non_trainable_variables]
    assert_bits(stateless(own, others, arrays), expected)


@searched(few=40, many=1500, **SEARCHED)
def test_functional_models(kind, signed, training):
    """In a functional model it gets the same, in the mode of the model."""
    signature, call = signed
    training = call.kwargs.get("training", training)
    arrays, fill = split(call.args, call.kwargs)
    if not arrays:
        return  # a functional model needs an input
    layer, native = make(kind, signature)
    inputs = [keras.Input(array.shape[1:], dtype=array.dtype.name) for array in arrays]
    args, kwargs = fill(inputs)
    outputs = layer(*args, **kwargs)
    model = keras.Model(inputs, outputs)
    got = model(arrays, training=training)
    assert_bits(got, expected_of(native, layer, signature, call, training))
