"""Random models are as layers what their framework makes of them."""

import functools
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
from hypothesis import strategies as st

from jaxlayer import FlaxLayer, HaikuLayer
from jaxlayer_core import key_from_seed, stream_key
from jaxlayer_core.signature import FLAGS

from .searching import assert_bits, searched, values
from .strategies import haiku_functions, linen_modules

SEED = 7


class Native(NamedTuple):
    """A model in the hands of its framework.

    Attributes:
        init: key and input to params and state.
        apply: params, state, key, input and mode to output and state.
    """

    init: Any
    apply: Any


def native_linen(module: nn.Module, flag: str) -> Native:
    def init(key: Any, x: Any) -> tuple[Any, Any]:
        made = flax.core.unfreeze(nn.meta.unbox(module.init(key, x, **{flag: FLAGS[flag]})))
        return {k: made.pop(k) for k in ("params",) if k in made}, made

    def apply(params: Any, state: Any, key: Any, x: Any, training: bool) -> tuple[Any, Any]:
        rngs = {name: stream_key(key, name) for name in ("dropout", "noise")}
        outputs, written = module.apply(
            {**params, **state},
            x,
            **{flag: training is FLAGS[flag]},
            rngs=rngs,
            mutable=list(state) if training else [],
        )
        return outputs, {**state, **flax.core.unfreeze(written)}

    return Native(init, apply)


def native_haiku(function: Any, flag: str) -> Native:
    transformed = hk.transform_with_state(function)

    def init(key: Any, x: Any) -> tuple[Any, Any]:
        return transformed.init(key, x, **{flag: FLAGS[flag]})

    def apply(params: Any, state: Any, key: Any, x: Any, training: bool) -> tuple[Any, Any]:
        mode = {flag: training is FLAGS[flag]}
        outputs, written = transformed.apply(params, state, key, x, **mode)
        return outputs, written if training else state

    return Native(init, apply)


def loss_of(output: Any) -> Any:
    return jnp.mean(jnp.square(output - 1))


def variables_of(layer: Any) -> tuple[Any, Any]:
    """Params and state as the framework has them."""
    return values(layer.params) or {}, values(layer.state) or {}


def check(layer: Any, native: Native, x: np.ndarray) -> None:
    """Compares a new layer with its model: values, outputs, state, gradients, shapes."""
    inference = jax.jit(functools.partial(native.apply, training=False))
    training = jax.jit(functools.partial(native.apply, training=True))

    quiet = layer(x)
    params, state = native.init(key_from_seed([SEED, 0]), jnp.asarray(x))
    assert_bits(variables_of(layer), (params, state))

    def key() -> Any:
        return key_from_seed(layer.seed_generator.state.value)

    assert_bits(quiet, inference(params, state, key(), x)[0])
    assert_bits(variables_of(layer), (params, state))

    check_gradients(layer, native, x, params, state)
    for _ in range(2):  # the second with what the first has written
        outputs, written = training(params, state, key(), x)
        assert_bits(layer(x, training=True), outputs)
        assert_bits(variables_of(layer), (params, written))
        state = written
    assert_bits(layer(x, training=False), inference(params, state, key(), x)[0])
    assert_bits(variables_of(layer), (params, state))

    symbol = layer(keras.KerasTensor((None, *x.shape[1:]), "float32"))
    assert tuple(symbol.shape) == (None, *quiet.shape[1:])
    assert symbol.dtype == quiet.dtype.name


def check_gradients(layer: Any, native: Native, x: Any, params: Any, state: Any) -> None:
    """Compares the gradients of a step, and the state beside them."""
    seed = np.asarray(layer.seed_generator.state.value)

    @jax.jit
    def expected(params: Any, state: Any, seed: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            outputs, written = native.apply(params, state, key_from_seed(seed), x, True)
            return loss_of(outputs), written

        return jax.grad(loss, has_aux=True)(params)

    @jax.jit
    def got(own: Any, others: Any, x: Any) -> Any:
        def loss(own: Any) -> Any:
            outputs, others_after = layer.stateless_call(own, others, x, training=True)
            return loss_of(outputs), others_after

        return jax.grad(loss, has_aux=True)(own)

    own = [v.value for v in layer.trainable_variables]
    others = [v.value for v in layer.non_trainable_variables]
    gradients, others_after = got(own, others, x)
    native_gradients, written = expected(params, state, seed, x)
    assert_bits(gradients, jax.tree.leaves(native_gradients))
    after = dict(zip((v.path for v in layer.non_trainable_variables), others_after, strict=True))
    kept = [after[v.path] for v in layer._state_variables]
    assert_bits(kept, jax.tree.leaves(written))


X = st.builds(
    lambda batch, time, seed: np.random.default_rng(seed).normal(size=(batch, time, 4)),
    st.integers(1, 3),
    st.integers(2, 4),
    st.integers(0, 9),
).map(lambda x: x.astype("float32"))


@searched(few=2, many=300, drawn=linen_modules(), x=X)
def test_linen(drawn, x):
    """A random linen module gives the bits of `module.init` and `module.apply`."""
    module, flag = drawn
    check(FlaxLayer(module, seed=SEED), native_linen(module, flag), x)


@searched(few=2, many=300, drawn=haiku_functions(), x=X)
def test_haiku(drawn, x):
    """A random Haiku function gives the bits of `transform_with_state`."""
    function = drawn.make()
    check(HaikuLayer(function, seed=SEED), native_haiku(function, drawn.flag), x)
