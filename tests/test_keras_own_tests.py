"""Keras' own test file for `JaxLayer` and `FlaxLayer`, with only its imports changed.

The file comes with Keras. It imports TensorFlow, to load what it exports, so it runs only where
that is installed.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import keras
import pytest

OWN_TESTS = pathlib.Path(keras.__file__).parent / "src" / "utils" / "jax_layer_test.py"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs tensorflow-cpu")
@pytest.mark.skipif(not OWN_TESTS.exists(), reason="this Keras comes without its tests")
def test_keras_own_tests(tmp_path):
    text = OWN_TESTS.read_text()
    assert text.count("from keras.src.utils.jax_layer import") == 2
    changed = tmp_path / "jax_layer_test.py"
    changed.write_text(text.replace("keras.src.utils.jax_layer", "jaxlayer"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", changed],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
