"""Eager calls that skip Keras: the same results, and only where Keras adds nothing."""

import flax.linen as nn
import jax
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer
from jaxlayer_core.eager import EagerCalls

x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


@pytest.fixture
def skips(monkeypatch):
    """Counts calls that skip Keras."""
    taken = []
    find = EagerCalls.find

    def counting(self, *arguments):
        call = find(self, *arguments)
        taken.append(call is not None)
        return call

    monkeypatch.setattr(EagerCalls, "find", counting)
    return lambda: taken[-1]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = x["x"] if isinstance(x, dict) else x
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_second_inference_call_skips_keras_and_gives_the_same(skips):
    layer = FlaxLayer(Net())
    first = layer(x)
    assert not skips()
    np.testing.assert_array_equal(layer(x), first)
    assert skips()


def test_new_weights_are_seen(skips):
    layer = FlaxLayer(nn.Dense(2))
    layer(x)
    layer.set_weights([2 * w + 1 for w in layer.get_weights()])
    result = layer(x)
    assert skips()
    np.testing.assert_array_equal(
        result,
        jax.jit(nn.Dense(2).apply)({"params": jax.tree.map(np.asarray, layer.params["params"])}, x),
    )


def test_training_other_shapes_and_other_structures_do_not_skip(skips):
    layer = FlaxLayer(Net())
    layer(x)
    layer(x)
    layer(x, training=True)
    assert not skips()
    layer(x[:2])
    assert not skips()
    layer({"x": x})
    np.testing.assert_array_equal(layer({"x": x}), layer(x))


def test_a_single_array_in_a_dict_is_not_taken_for_the_array(skips):
    layer = FlaxLayer(Net())
    layer({"x": x})
    layer({"x": x})
    expected = layer(x)
    assert not skips()
    np.testing.assert_array_equal(layer(x), expected)


def test_inside_another_layers_call_nothing_is_skipped(skips):
    layer = FlaxLayer(nn.Dense(2))
    layer(x)
    layer(x)
    assert skips()
    keras.Sequential([layer])(x)
    assert not skips()


def test_freezing_changes_the_mode_at_once(skips):
    layer = FlaxLayer(Net())
    layer(x, training=False)
    layer(x, training=False)
    assert skips()
    layer.trainable = False
    layer(x, training=False)
    assert not skips()


class Penalised(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        if train:
            self.sow("losses", "size", (x**2).sum())
        return nn.Dense(2)(x)


def test_losses_of_the_last_call_go_with_the_next(skips):
    layer = FlaxLayer(Penalised())
    layer(x, training=False)
    layer(x, training=True)
    assert len(layer.losses) == 1
    layer(x, training=False)
    assert skips()
    assert layer.losses == []


def test_nothing_of_a_trace_is_left_after_the_next_call(skips):
    layer = FlaxLayer(Penalised())
    layer(x, training=False)
    jax.jit(lambda x: layer(x, training=True))(x)
    layer(x, training=False)
    assert skips()
    assert layer.losses == []
