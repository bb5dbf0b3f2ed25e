"""What a user sees of the model inside."""

import flax.linen as nn
import haiku as hk
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer
from jaxlayer_core import BuildError

X = np.ones((2, 4), "float32")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True, name="norm")(nn.Dense(8, name="encoder")(x))
        return nn.Dense(1234, name="head")(x)


def test_summary_shows_modules_shapes_and_counts():
    layer = FlaxLayer(Net(), name="net")
    layer(X)
    layer.freeze("encoder")
    lines = []
    layer.summary(print_fn=lines.append)
    rows = {
        cells[0]: cells[1:]
        for line in "\n".join(lines).splitlines()
        if "/" in line
        for cells in [[cell.strip() for cell in line.strip("│ ").split("│")]]
    }
    assert rows == {
        "params/encoder/bias": ["(8,)", "float32", "8", "frozen"],
        "params/encoder/kernel": ["(4, 8)", "float32", "32", "frozen"],
        "params/head/bias": ["(1234,)", "float32", "1,234", "trained"],
        "params/head/kernel": ["(8, 1234)", "float32", "9,872", "trained"],
        "params/norm/bias": ["(8,)", "float32", "8", "trained"],
        "params/norm/scale": ["(8,)", "float32", "8", "trained"],
        "batch_stats/norm/mean": ["(8,)", "float32", "8", "not trained"],
        "batch_stats/norm/var": ["(8,)", "float32", "8", "not trained"],
    }
    assert "11,178 values, 11,122 of them trained" in "\n".join(lines)


def test_summary_goes_to_the_terminal(capsys):
    layer = HaikuLayer(lambda x: hk.nets.MLP([3])(x))
    layer(X)
    layer.summary()
    assert "params/mlp/~/linear_0/w" in capsys.readouterr().out


def test_summary_needs_a_built_layer():
    with pytest.raises(BuildError, match="has no variables to show before it is built"):
        FlaxLayer(Net()).summary()


def test_model_summary_and_plot():
    """Keras' own pictures of a model that holds such layers."""
    pytest.importorskip("pydot")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, FlaxLayer(Net(), name="net")(inputs))
    lines = []
    model.summary(expand_nested=True, print_fn=lines.append)
    assert "net (FlaxLayer)" in "\n".join(lines)
    dot = keras.utils.model_to_dot(
        model, show_shapes=True, show_layer_names=True, show_dtype=True, expand_nested=True
    ).to_string()
    assert "FlaxLayer" in dot
    assert "1234" in dot


def test_histograms_get_the_leaves_own_names():
    """`keras.callbacks.TensorBoard` names histograms by `weight.path`."""
    layer = FlaxLayer(Net(), name="net")
    model = keras.Sequential([keras.Input((4,)), layer], name="model")
    paths = [weight.path for weight in model.weights]
    assert "model/net/params/encoder/kernel" in paths
    assert len(set(paths)) == len(paths)
