"""The conformance kit: what an adapter has to keep, as tests to inherit.

Subclass `AdapterConformance`, give it an adapter and cases, and run pytest. The kit itself needs
no pytest, and no framework.
"""

from jaxlayer_core.testing.cases import ConformanceCase, NativeApply, NativeInit
from jaxlayer_core.testing.conformance import AdapterConformance

__all__ = ["AdapterConformance", "ConformanceCase", "NativeApply", "NativeInit"]
