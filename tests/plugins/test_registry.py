"""`register_adapter`: checked at once, newest first, before what is installed."""

import inspect

import flax.linen as nn
import numpy as np
import pytest

import jaxlayer
from jaxlayer import Adapter, FlaxLayer, as_layer, register_adapter
from jaxlayer_core import (
    AdapterError,
    CallSignature,
    ModuleLayer,
    Outcome,
    PureModule,
    Variables,
    registry,
    unregister_adapter,
)


class Scale:
    """A model of no framework at all."""

    def __init__(self, factor):
        self.factor = factor


def adapter_for(cls, power=1):
    """An adapter class for models of `cls`, which multiplies by `factor ** power`."""

    class ScaleAdapter(Adapter):
        framework = "scale"

        def accepts(self, obj):
            return isinstance(obj, cls)

        def purify(self, obj, *, method=None, training_arg=None):
            def init(rng, arguments):
                return Variables({}, {})

            def call(params, state, rng, arguments, training):
                factor = getattr(obj, "factor", 1.0) ** power
                return Outcome(arguments.args[0] * factor, state)

            x = inspect.Parameter("x", inspect.Parameter.POSITIONAL_OR_KEYWORD)
            return PureModule(init, call, CallSignature.read("Scale", [x]), has_modes=False)

    return ScaleAdapter


@pytest.fixture
def register():
    """Registers for one test."""
    made = []

    def use(cls):
        made.append(register_adapter(cls))
        return cls

    yield use
    for cls in made:
        unregister_adapter(cls)


X = np.ones(3, "float32")


def test_a_registered_adapter_is_used(register):
    with pytest.raises(AdapterError, match="No adapter knows"):
        as_layer(Scale(3.0))
    cls = register(adapter_for(Scale))
    layer = as_layer(Scale(3.0))
    assert type(layer) is ModuleLayer
    np.testing.assert_array_equal(layer(X), 3 * X)
    unregister_adapter(cls)
    with pytest.raises(AdapterError, match="No adapter knows"):
        as_layer(Scale(3.0))


def test_it_is_a_decorator():
    cls = adapter_for(Scale)
    try:
        assert register_adapter(cls) is cls
    finally:
        unregister_adapter(cls)


def test_the_newest_comes_first(register):
    register(adapter_for(Scale, power=1))
    newest = register(adapter_for(Scale, power=2))
    np.testing.assert_array_equal(as_layer(Scale(3.0))(X), 9 * X)
    unregister_adapter(newest)
    np.testing.assert_array_equal(as_layer(Scale(3.0))(X), 3 * X)


def test_one_that_does_not_accept_is_passed_over(register):
    register(adapter_for(Scale))
    register(adapter_for(type("Other", (), {})))
    np.testing.assert_array_equal(as_layer(Scale(3.0))(X), 3 * X)


def test_precedence_explicit_then_registered_then_installed(register):
    assert isinstance(as_layer(nn.Dense(2)), FlaxLayer)
    register(adapter_for(nn.Module))
    assert type(as_layer(nn.Dense(2))) is ModuleLayer
    assert isinstance(as_layer(nn.Dense(2), adapter="flax.linen"), FlaxLayer)
    explicit = adapter_for(nn.Module, power=2)
    for given in (explicit, explicit()):
        layer = as_layer(nn.Dense(2), adapter=given)
        assert type(registry.resolve(layer.module, given)) is explicit
        np.testing.assert_array_equal(layer(X), X)


def test_by_name(register):
    register(adapter_for(Scale))
    np.testing.assert_array_equal(as_layer(Scale(3.0), adapter="scale")(X), 3 * X)


class Incomplete(Adapter):
    framework = "scale"

    def accepts(self, obj):
        return True


class Nameless(adapter_for(Scale)):
    framework = None


class WrongPurify(adapter_for(Scale)):
    def purify(self, obj):
        return None


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Incomplete, r"\(Incomplete\) is not complete: implement purify"),
        (Nameless, r"\(Nameless\) does not say which framework.*`framework`"),
        (WrongPurify, r"\(WrongPurify\): `purify` must take \['method', 'obj', 'self', 'train"),
        (Scale, "not an adapter: expected a subclass of jaxlayer_core.Adapter"),
        (Scale(1.0), "not an adapter"),
        (None, "not an adapter"),
    ],
    ids=["incomplete", "nameless", "wrong purify", "other class", "instance", "none"],
)
def test_an_adapter_is_checked_when_it_is_registered(cls, message):
    with pytest.raises(AdapterError, match=message):
        register_adapter(cls)
    with pytest.raises(AdapterError, match="No adapter knows"):
        as_layer(Scale(3.0))


def test_an_explicit_adapter_is_checked_too():
    with pytest.raises(AdapterError, match=r"class given as `adapter`.*not complete"):
        as_layer(Scale(3.0), adapter=Incomplete)


def test_the_facade_has_the_plugin_words():
    assert jaxlayer.register_adapter is register_adapter
    assert "Adapter" in dir(jaxlayer)
