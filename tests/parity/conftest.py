"""A lighter start for the many parity tests."""

import keras
import pytest


@pytest.fixture(autouse=True)
def fresh_keras():
    """Clears what Keras remembers, without the full garbage collection that this costs."""
    keras.backend.clear_session(free_memory=False)
