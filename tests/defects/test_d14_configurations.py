"""D14: with `KERAS_NNX_ENABLED`, Keras' own layer maps over its variables as if they were leaves.

`.ci/run` runs the tests of the core under this and under settings of JAX, one after another;
this is the part that a newcomer runs.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    "tests/defects/test_d03_train_flags.py",
    "tests/defects/test_d04_building_inside_traces.py",
]


def test_layers_build_train_and_predict_with_nnx_enabled():
    """The user works with NNX, and has switched it on for Keras.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (AttributeError).
    """
    environment = {**os.environ, "KERAS_NNX_ENABLED": "true"}
    keras = subprocess.run([sys.executable, "-c", "import keras"], env=environment, check=False)
    if keras.returncode:
        pytest.skip("this Keras cannot be imported with this Flax and NNX enabled")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
