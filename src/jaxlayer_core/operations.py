"""What a traced program consists of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax


def names(jaxpr: Any) -> Iterator[str]:
    """Names of the operations of a jaxpr, also of those inside of others."""
    for operation in jaxpr.eqns:
        yield operation.primitive.name
        for value in jax.tree.leaves(list(operation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from names(inner)
