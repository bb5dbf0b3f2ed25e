"""The strategies, in one place."""

from .haiku_strategies import haiku_functions
from .linen_strategies import linen_modules
from .signature_strategies import Call, Signature, signed_calls
from .tree_strategies import FLOATS, INTEGERS, arrays, keys, numbers, pytrees, statics

__all__ = [
    "FLOATS",
    "INTEGERS",
    "Call",
    "Signature",
    "arrays",
    "haiku_functions",
    "keys",
    "linen_modules",
    "numbers",
    "pytrees",
    "signed_calls",
    "statics",
]
