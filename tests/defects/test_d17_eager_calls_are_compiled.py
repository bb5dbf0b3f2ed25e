"""D17: an eager call is one compiled program, traced once."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxlayer import FlaxLayer

X = np.linspace(-1, 1, 24, dtype="float32").reshape(6, 4)


class Log:
    """What a module writes down while Python runs through it."""

    def __init__(self):
        self.traces = []
        self.kinds = []


class Counted(nn.Module):
    """Counts how often Python runs through it, and notes what it computes with."""

    log: Log

    @nn.compact
    def __call__(self, x, scale=1.0, train=False):
        self.log.traces.append(x.shape)
        self.log.kinds.append(isinstance(x, jax.core.Tracer))
        for _ in range(3):
            x = nn.Dense(4)(x)
        return scale * nn.Dropout(0.5, deterministic=not train)(x)


@pytest.fixture
def layer():
    layer = FlaxLayer(Counted(Log()))
    layer(X)
    layer(X, training=True)
    layer.module.log.traces.clear()
    layer.module.log.kinds.clear()
    return layer


def test_eager_calls_do_not_trace_again(layer):
    """The user calls the layer in a Python loop.

    Keras' own layer runs the module's Python code, and each operation by itself, every time.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (one run of the module per call).
    """
    for _ in range(3):
        layer(X)
        layer(X, training=True)
        layer(X + 1, training=False)
    assert layer.module.log.traces == []


def test_a_new_shape_traces_and_only_once(layer):
    """The user calls it with another batch size, then again.

    Keras' own layer runs the module's code each time.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes.
    """
    layer(X[:3])
    traced = list(layer.module.log.traces)
    assert set(traced) == {(3, 4)}
    layer(X[:3])
    layer(X)
    assert layer.module.log.traces == traced


def test_a_new_static_value_traces_and_only_once(layer):
    """The user passes another Python number, then the same again.

    Keras' own layer takes no such argument.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (TypeError).
    """
    doubled = layer(X, scale=2.0)
    assert layer.module.log.traces
    layer.module.log.traces.clear()
    np.testing.assert_array_equal(layer(X, scale=2.0), doubled)
    np.testing.assert_allclose(doubled, 2 * np.asarray(layer(X)), rtol=1e-6)
    assert layer.module.log.traces == []


def test_the_module_never_sees_concrete_arrays(layer):
    """The same seen from inside: the module runs under `jit`, not operation by operation.

    Keras' own layer calls it with the arrays.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes.
    """
    layer(X[:2])
    assert layer.module.log.kinds
    assert all(layer.module.log.kinds)


def test_an_eager_call_is_one_program(layer):
    """The user reads the number of compilations in JAX's log.

    Keras' own layer compiles each operation of the module by itself.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (several compilations).
    """
    events = []

    def listen(name, *args, **kwargs):
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(name)

    x = jax.numpy.asarray(X[:5])
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        layer(x).block_until_ready()
        compiled = len(events)
        layer(x).block_until_ready()
    finally:
        # Missing before JAX 0.10; the listener then stays and fills a list that nobody reads.
        getattr(jax.monitoring, "unregister_event_duration_listener", lambda listener: None)(listen)
    assert compiled == 1
    assert len(events) == compiled


def test_weights_are_inputs_of_the_program(layer):
    """The user assigns new weights: the compiled program must not hold the old.

    Keras' own layer compiles nothing, and runs the module's code again.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes.
    """
    for variable in layer.weights:
        variable.assign(np.zeros(variable.shape))
    np.testing.assert_array_equal(layer(X), np.zeros((6, 4)))
    assert layer.module.log.traces == []
