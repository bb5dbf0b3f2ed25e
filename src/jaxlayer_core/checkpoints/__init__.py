"""Variables in the files of the field: read into a layer, and written from one."""

from jaxlayer_core.checkpoints.format import Contents, Format, Source
from jaxlayer_core.checkpoints.loading import Loaded, load
from jaxlayer_core.checkpoints.saving import save

__all__ = ["Contents", "Format", "Loaded", "Source", "load", "save"]
