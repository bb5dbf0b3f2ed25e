"""What makes many small compilations affordable."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def quick_compilation():
    """Lets XLA optimise less: a third less time, and the same for both sides.

    What is compiled so rounds otherwise. One side must not find in JAX's caches what another
    test left there, so they are cleared before and after.
    """
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
