"""What the adapters' tests need: the toy adapter registered."""

import pytest

from jaxlayer_core import register_adapter, unregister_adapter

from .toy import ToyAdapter


@pytest.fixture(autouse=True)
def registered_toy():
    """The toy framework has no distribution, hence no entry point."""
    register_adapter(ToyAdapter)
    yield
    unregister_adapter(ToyAdapter)
