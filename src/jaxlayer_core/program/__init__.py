"""Models as serialised programs, for those that no config can express."""

from jaxlayer_core.program.kinds import CallKind
from jaxlayer_core.program.program import Program
from jaxlayer_core.program.recording import export_program

__all__ = ["CallKind", "Program", "export_program"]
