"""Reading programs in a process that may be lost, before this one reads them.

MLIR's reader of bytes is not made for enemies: bytes that somebody made on purpose can crash it,
or have it never end. What another process has read will do neither here. What this process has
made itself needs no trial.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Mapping

from jaxlayer_core.errors import ProgramError

SECONDS = 120
"""How long reading may take; it takes about one, most of it to import JAX."""
_MEMORY = 2**34  # bytes of address space

_READY = b"ready"

_READ = f"""
import sys
sys.path[:] = sys.argv[1:]
try:
    import resource
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = {_MEMORY} if hard == resource.RLIM_INFINITY else min(hard, {_MEMORY})
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
except ImportError:  # only POSIX has limits
    pass
from jax import export
print({_READY.decode()!r}, flush=True)
while size := sys.stdin.buffer.read(8):
    content = sys.stdin.buffer.read(int.from_bytes(size, "little"))
    try:
        exported = export.deserialize(bytearray(content))
        for one in (exported, exported.vjp()) if exported.has_vjp() else (exported,):
            one.mlir_module()
    except Exception:  # whoever reads it afterwards will see it, too, and say so
        pass
"""

_known: set[str] = set()


def remember(digest: str) -> None:
    """Notes that this process has made the bytes with this SHA-256."""
    _known.add(digest)


def is_known(digest: str) -> bool:
    """Whether bytes have been made by this process, or read on trial."""
    return digest in _known


def read(contents: Mapping[str, bytes], owner: str) -> None:
    """Reads programs elsewhere, all in one process.

    Args:
        contents: the bytes of each by their SHA-256; nothing happens if there are none.
        owner: the model's name, for errors.

    Raises:
        ProgramError: reading has ended the other process, or has not ended.

    Warns:
        UserWarning: no other process with JAX can be started here, so there was no trial.
    """
    if not contents:
        return
    sized = ((len(content).to_bytes(8, "little"), content) for content in contents.values())
    try:
        done = subprocess.run(
            [sys.executable, "-c", _READ, *sys.path],
            input=b"".join(part for pair in sized for part in pair),
            capture_output=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(owner, f"does not end within {SECONDS} s", error) from error
    except OSError as error:
        _warn(owner, f"{type(error).__name__}: {error}")
        return
    last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    if not done.stdout.startswith(_READY):
        _warn(owner, last)
    elif done.returncode:
        raise _refused(owner, f"ends the process that reads it ({done.returncode}: {last:.200})")
    else:
        _known.update(contents)


def _warn(owner: str, what: str) -> None:
    warnings.warn(
        f"The saved program of {owner} is read without a trial in another process, because "
        f"{sys.executable!r} cannot be started with JAX: {what:.200}. If the file may come from "
        "an enemy, it may crash this process.",
        stacklevel=2,
    )


def _refused(owner: str, what: str, cause: BaseException | None = None) -> ProgramError:
    return ProgramError(
        f"Reading the saved program of {owner} {what}, so it was not read in this one. It is "
        "broken, or made to do harm. Save the model again, or use another file.",
        cause=cause,
    )
