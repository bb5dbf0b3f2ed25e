"""What goes wrong with a transformation."""

from jaxlayer_core.errors import JaxLayerError


class OptaxError(JaxLayerError):
    """A transformation cannot be used so, or raised; its own exception is the `__cause__`."""
