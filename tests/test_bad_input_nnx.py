"""What a user of NNX may get wrong, and what is said then."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlayer import FlaxLayer, as_layer
from jaxlayer_core import AdapterError, ModuleError, SignatureError, StructureError

X = np.ones((2, 3), "float32")
requires_data = pytest.mark.skipif(
    not hasattr(nnx, "data"), reason="needs nnx.data and get_value, of Flax 0.11 and 0.12"
)


class Net(nnx.Module):
    def __init__(self, width, *, rngs):
        self.dense = nnx.Linear(3, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.dense(x))

    def encode(self, x):
        return self.dense(x)


def test_a_module_of_another_trace_level():
    @jax.jit
    def make(key):
        module = Net(4, rngs=nnx.Rngs(key))
        leaked.append(module)
        return 0

    leaked = []
    make(jax.random.key(0))
    with pytest.raises(
        AdapterError, match=r"made or changed inside a JAX transformation .*"
    ) as info:
        FlaxLayer(leaked[0])
    assert "`dense/bias` is a tracer" in str(info.value)
    assert "functools.partial(Class, ...)" in str(info.value)


def test_a_module_without_values():
    module = nnx.eval_shape(lambda: Net(4, rngs=nnx.Rngs(0)))
    with pytest.raises(AdapterError, match=r"has no values: its `dense/bias` is ShapeDtypeStruct"):
        FlaxLayer(module)


def test_a_shared_stream_in_a_partial():
    with pytest.raises(AdapterError, match=r"partial of Net holds `rngs`, .* Leave rngs out"):
        FlaxLayer(functools.partial(Net, 4, rngs=nnx.Rngs(0)))


def test_a_shared_stream_in_a_function():
    rngs = nnx.Rngs(0)
    with pytest.raises(AdapterError, match=r"draws from an nnx.Rngs that it does not own: take `r"):
        FlaxLayer(lambda: Net(4, rngs=rngs))
    Net(4, rngs=rngs)  # it still works


def test_streams_that_two_modules_share_are_left_alone():
    """It is nobody's mistake: each layer starts copies of them anew."""
    rngs = nnx.Rngs(0)
    layers = [FlaxLayer(Net(4, rngs=rngs), seed=seed) for seed in (0, 0)]
    before = [int(stream.count[...]) for stream in [rngs.default]]
    one, two = (layer(X, training=True) for layer in layers)
    assert (np.asarray(one) == 0).tolist() == (np.asarray(two) == 0).tolist()
    assert [int(stream.count[...]) for stream in [rngs.default]] == before


def test_rngs_in_a_call():
    with pytest.raises(SignatureError, match=r"does not take 'rngs'. Its arguments are: x"):
        FlaxLayer(functools.partial(Net, 4))(X, rngs=jnp.zeros(2))


def test_arguments_of_a_class():
    with pytest.raises(AdapterError, match=r"Net did not make an NNX module: TypeError: .*'width'"):
        FlaxLayer(Net)


def test_a_function_that_makes_something_else():
    with pytest.raises(AdapterError, match=r"<lambda> was called to make an NNX module, and retur"):
        FlaxLayer(lambda rngs: 3)


def test_a_function_does_not_tell_its_framework():
    with pytest.raises(AdapterError, match=r"A plain function does not tell its framework"):
        as_layer(lambda rngs: Net(4, rngs=rngs))


def test_functions_of_a_framework_are_no_models():
    """A config could have them called."""
    for function in (jax.numpy.ones, functools.partial(jax.numpy.ones, 10**12), nnx.split):
        with pytest.raises(AdapterError, match=r"FlaxLayer takes an instance of flax.linen.Modul"):
            FlaxLayer(function)


def test_methods():
    with pytest.raises(SignatureError, match=r"no method 'decode'. Its methods are: encode"):
        FlaxLayer(functools.partial(Net, 4), method="decode")


def test_flags():
    with pytest.raises(SignatureError, match=r"training_arg names \['mode'\]"):
        FlaxLayer(functools.partial(Net, 4), training_arg="mode")


def test_variables_that_do_not_fit():
    given = {"params": nnx.to_pure_dict(nnx.state(Net(5, rngs=nnx.Rngs(0)), nnx.Param))}
    with pytest.raises(StructureError, match=r"`params/dense/kernel` has shape \(3, 5\)"):
        FlaxLayer(functools.partial(Net, 4), variables=given)(X)


def test_a_module_that_keeps_another():
    """A module outside of the one given cannot be changed inside a trace; Flax says so."""
    outside = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    class Leaning(nnx.Module):
        def __call__(self, x):
            return outside(x)

    with pytest.raises(ModuleError, match=r"different trace level") as info:
        FlaxLayer(Leaning())(X, training=True)
    assert "TraceContextError" in str(info.value)


def test_a_bridge_without_variables_cannot_leave():
    layer = FlaxLayer(nnx.bridge.ToNNX(nn.Dense(2), rngs=nnx.Rngs(0)))
    layer(X)
    said = r"ToNNX was given .* Call nnx.bridge.lazy_init\(module, x\) before"
    with pytest.raises(AdapterError, match=said):
        layer.to_module()


class Bridged(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.bridge.ToNNX(nn.Dense(2), rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


def test_a_class_of_bridges_without_variables_cannot_leave():
    layer = FlaxLayer(Bridged)
    layer(X)
    with pytest.raises(AdapterError, match=r"function that takes `rngs` and returns .*lazy_init"):
        layer.to_module()

    def make(rngs):
        module = Bridged(rngs=rngs)
        nnx.bridge.lazy_init(module, X)
        return module

    layer = FlaxLayer(make)
    np.testing.assert_allclose(layer(X), layer.to_module()(X), rtol=1e-6)


class Lazy(nnx.Module):
    """Makes what it needs when it is called first."""

    def __init__(self, kind, *, rngs):
        self.kind, self.rngs, self.made = kind, rngs, nnx.data(None)

    def __call__(self, x):
        if self.made is None:
            self.made = self.kind(self)
        return self.made(x) if isinstance(self.made, nnx.Module) else x + self.made[...]


@requires_data
def test_a_param_that_a_call_makes():
    def make(rngs):
        return Lazy(lambda self: nnx.Linear(3, 4, rngs=self.rngs), rngs=rngs)

    with pytest.raises(StructureError, match=r"Lazy makes the param `made/\w+` when it is called"):
        FlaxLayer(make)(X)
    called = make(nnx.Rngs(0))
    expected = called(X)
    np.testing.assert_allclose(FlaxLayer(called)(X), expected, rtol=1e-6)

    def called_by(rngs):
        module = make(rngs)
        module(X)
        return module

    layer = FlaxLayer(called_by)
    layer(X)
    assert len(layer.trainable_weights) == 2


@requires_data
def test_state_that_a_call_makes():
    made = Lazy(lambda self: nnx.BatchStat(jnp.ones(())), rngs=nnx.Rngs(0))
    with pytest.warns(UserWarning, match=r"Lazy makes the variable `made` \(batch_stats\) when"):
        FlaxLayer(made)(X)


class Clipped(nnx.Module):
    """Writes a param in a call, also inside of a scan."""

    def __init__(self, *, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, None), length=2)
        def step(x, dense):
            dense.kernel.set_value(jnp.clip(dense.kernel.get_value(), -0.1, 0.1))
            return dense(x), None

        return step(x, self.dense)[0]


@requires_data
def test_a_param_that_a_call_writes():
    layer = FlaxLayer(Clipped(rngs=nnx.Rngs(0)))
    with pytest.warns(UserWarning, match=r"Clipped writes the param `dense/kernel` .* nnx.BatchSt"):
        layer(X)
    layer(X, training=True)  # says it once
