"""Replacing files whole: whoever reads meets the old file or the new one, never a part."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

_HOST = re.sub(r"[^\w-]", "_", socket.gethostname())
_ABANDONED = 24 * 3600  # seconds without a write, where nobody can be asked who writes
_numbers = itertools.count()


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path; what is written there replaces `path` when the block ends.

    The temporary has the name of `path`, so that code which looks at the suffix does the same as
    it would there, in a hidden folder of its own beside `path`, where a library may keep further
    temporaries. It may become a file or a folder. A file gets the permissions of the old one, or
    of any new file, whatever the library gave it. It is forced to the disk before it moves. If
    the block raises, the hidden folder is removed and `path` stays as it was; if the process is
    killed, the next `replacing` of the same path removes it.

    A file is replaced in one step. A folder cannot be: the old one steps aside as `backup(path)`
    for the moment between two renames, and `current` finds it there.

    Args:
        path: what to replace, or to make. The folder that it is in must exist. Of a symbolic
            link, the target is replaced.

    Yields:
        The temporary path. Nothing is there yet.

    Raises:
        FileNotFoundError: the block has written nothing.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> with replacing(folder / "model.txt") as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> [file.name for file in folder.iterdir()]
        ['model.txt']
    """
    path = Path(os.path.realpath(path))
    _clean(path)
    folder = path.with_name(f".tmp.{_HOST}.{os.getpid()}.{next(_numbers)}.{path.name}")
    folder.mkdir()
    temporary = folder / path.name
    try:
        yield temporary
        if temporary.is_file():  # safetensors 0.8 makes files that only their owner can read
            like, mask = (path, 0o777) if path.is_file() else (folder, 0o666)
            temporary.chmod(like.stat().st_mode & mask)
        _sync_all(temporary)
        _put(temporary, path)
    finally:
        remove(folder)


def backup(path: Path) -> Path:
    """Where an old folder is while a new one takes its name."""
    return path.with_name(f".old.{path.name}")


def current(path: str | os.PathLike[str]) -> Path:
    """Where to read what `replacing(path)` has written, even where it was killed on the way."""
    path = Path(os.path.realpath(path))
    return backup(path) if not path.exists() and backup(path).exists() else path


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put(temporary: Path, path: Path) -> None:
    """Gives what was written its name."""
    if path.is_dir():
        os.rename(path, backup(path))
    os.replace(temporary, path)
    _sync(path.parent)
    remove(backup(path))


def _clean(path: Path) -> None:
    """Finishes or removes what writers of `path` left behind that were killed."""
    if backup(path).exists():
        if path.exists():
            remove(backup(path))
        else:
            os.rename(backup(path), path)
    name = re.compile(rf"\.tmp\.([^.]*)\.(\d+)\.\d+\.{re.escape(path.name)}")
    for folder in path.parent.iterdir():
        written = name.fullmatch(folder.name)
        if written and _is_abandoned(folder, written[1], int(written[2])):
            remove(folder)


def _is_abandoned(folder: Path, host: str, process: int) -> bool:
    """Whether nobody writes in the folder of a temporary any more."""
    if host == _HOST and os.name == "posix":
        return not _is_running(process)
    with contextlib.suppress(FileNotFoundError):  # somebody else was faster
        last = max(file.stat().st_mtime for file in (folder, *folder.rglob("*")))
        return time.time() - last > _ABANDONED
    return False


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, and is another user's
        return True
    return True


def _sync_all(path: Path) -> None:
    """Forces a file, or a folder with all that is in it, to the disk."""
    if path.is_dir():
        for child in path.iterdir():
            _sync_all(child)
    _sync(path)


def _sync(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return  # only POSIX has folders that can be opened
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
