"""Whether this machine could hold what is about to be made, and making it in one go."""

from __future__ import annotations

import contextlib
import gc
import math
import os
from collections.abc import Iterable, Iterator

import keras

from jaxlayer_core.errors import BuildError
from jaxlayer_core.specs import ArraySpec


def check_fits(what: str, specs: Iterable[ArraySpec]) -> None:
    """Refuses to make more than the machine has, which a broken file may ask for.

    Under a `keras.distribution`, where other machines hold their share, everything fits.

    Args:
        what: the arrays, for the error.
        specs: theirs, all dimensions known.

    Raises:
        BuildError: they need more memory than there is.
    """
    known = getattr(os, "sysconf_names", {})
    if keras.distribution.distribution() is not None or "SC_PHYS_PAGES" not in known:
        return
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = sum(math.prod(s.filled(()).shape) * s.dtype.itemsize for s in specs)
    if needed > present:
        raise BuildError(
            f"{what} would need {needed / 2**30:,.1f} GiB of memory, and this machine has "
            f"{present / 2**30:,.1f} GiB. If the sizes are meant, spread them over devices with "
            "keras.distribution.set_distribution(...)."
        )


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Python's cyclic garbage collector waits, if it is on.

    For making many objects that stay: the collector would look through all of them over and
    over, so that one of thousands costs half as much again as one of a hundred. What is not part
    of a cycle, such as an array, is freed as ever.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
