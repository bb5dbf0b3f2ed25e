"""Saving whole or not at all: a process may be killed at any moment."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from jaxlayer_core import files
from jaxlayer_core.checkpoints import installed, saving, trees
from jaxlayer_core.errors import CheckpointError

from .checkpointing import holder, snapshot

SAVING = """
import sys
import keras
import numpy as np
from jaxlayer import JaxLayer, replacing

path, how = sys.argv[1:]
pending = []

def at_once(layer):
    layer.save_variables(path)

def in_background(layer):
    pending.append(layer.save_variables(path, wait=False))
    if len(pending) > 1:
        pending.pop(0).result()

def by_keras(layer):
    with replacing(path) as temporary:
        keras.Sequential([keras.Input((1,)), layer]).save_weights(temporary)

save, layers = globals()[how], []
for version in range(2):
    params = {f"w{i}": np.full((200, 200), 10.0 * version + i, "float32") for i in range(8)}
    layers.append(JaxLayer(lambda params, inputs: inputs, params=params))
    layers[-1].build((None, 1))
number = 0
while True:
    save(layers[number % 2])
    number += 1
    print(number, flush=True)
"""


def start(path, how="at_once"):
    """A process that saves one version after the other; returns when it has saved two."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(path), how],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        stdout=subprocess.PIPE,
    )
    for _ in range(2):
        assert process.stdout.readline()
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        *((suffix, "at_once") for suffix in ("msgpack", "safetensors", "npz", "orbax")),
        pytest.param("npz", "in_background", marks=pytest.mark.slow),
        pytest.param("weights.h5", "by_keras", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_killed(tmp_path, suffix, how):
    """At every stop the file is one version, whole; so it is after the kill.

    A stopped process looks to others as it does in the moment of its death, so that one process
    gives many moments.
    """
    path = tmp_path / f"model.{suffix}"
    layer = holder(**{f"w{i}": np.zeros((200, 200), "float32") for i in range(8)})
    waits = random.Random(0)
    process = start(path, how)
    moments, seen, ends = 0, set(), time.monotonic() + 4
    try:
        while time.monotonic() < ends and moments < 100:
            time.sleep(waits.uniform(0, 0.02))
            process.send_signal(signal.SIGSTOP)
            assert os.waitpid(process.pid, os.WUNTRACED)[1] != 0
            seen.add(version_of(layer, path))
            process.send_signal(signal.SIGCONT)
            moments += 1
    finally:
        kill(process)
    assert moments > 5
    assert seen == {0, 1}
    version_of(layer, path)
    layer.save_variables(path, format="npz" if how == "by_keras" else None)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def version_of(layer, path):
    if path.suffix == ".h5":
        keras.Sequential([keras.Input((1,)), layer]).load_weights(path)
    else:
        layer.load_variables(path)
    values = [np.unique(np.asarray(layer.params[f"w{i}"].value)) for i in range(8)]
    version = int(values[0][0]) // 10
    for number, found in enumerate(values):
        np.testing.assert_array_equal(found, [10.0 * version + number])
    return version


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
@pytest.mark.parametrize("suffix", ["npz", "orbax"])
def test_processes_that_are_killed_one_after_the_other(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    layer = holder(**{f"w{i}": np.zeros((200, 200), "float32") for i in range(8)})
    for wait in (0.0, 0.013, 0.034):
        process = start(path)
        time.sleep(wait)
        kill(process)
        version_of(layer, path)
        assert len(list(tmp_path.iterdir())) <= 3  # the temporary of the last one, at most


def alone(layer, path):
    layer.save_variables(path)


def together(layer, path):
    """As the first of several processes that write one folder."""
    contents = trees.contents(layer._params, layer._state, copy=False)
    saving._write_together(path, installed.find(path, None), contents)


@pytest.mark.parametrize("step", ["rename", "replace", "fsync"])
@pytest.mark.parametrize(
    ("suffix", "write"), [("npz", alone), ("orbax", alone), ("orbax", together)]
)
@pytest.mark.parametrize("nth", [0, 1])
def test_a_death_at_each_step(tmp_path, monkeypatch, suffix, write, step, nth):
    """As killed right before the nth `rename`, `replace` or `fsync` of our own."""
    path = tmp_path / f"model.{suffix}"
    old, new, read = holder(a=1.0), holder(a=2.0), holder(a=0.0)
    old.save_variables(path)
    calls = []

    class Killed(BaseException):
        pass

    class Dying:
        """The module `os`, one of whose functions kills."""

        def __getattr__(self, name):
            real = getattr(os, name)
            if name != step:
                return real

            def stop(*args):
                calls.append(args)
                if len(calls) > nth:
                    raise Killed
                return real(*args)

            return stop

    with monkeypatch.context() as patched:
        patched.setattr(files, "os", Dying())
        patched.setattr(saving, "os", Dying())
        patched.setattr(files, "remove", lambda path: None)  # the dead do not clean up
        with contextlib.suppress(Killed):  # there may be fewer such steps
            write(new, path)
    read.load_variables(path)
    assert snapshot(read) in (snapshot(old), snapshot(new))
    patch_pid(monkeypatch)
    write(new, path)
    read.load_variables(path)
    assert snapshot(read) == snapshot(new)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def patch_pid(monkeypatch):
    """From here on, what this process has left behind is a dead one's."""
    monkeypatch.setattr(files, "_is_running", lambda process: False)


def test_an_old_folder_that_stepped_aside_is_found(tmp_path):
    path = tmp_path / "model.orbax"
    one, other = holder(a=1.0), holder(a=2.0)
    one.save_variables(path)
    os.rename(path, files.backup(path))
    assert files.current(path) == files.backup(path)
    other.load_variables(path)
    assert snapshot(other) == snapshot(one)
    with pytest.raises(CheckpointError, match="Orbax cannot hold"):
        holder(a=np.zeros(0)).save_variables(path)
    assert path.exists()  # the writer has put it back


# files.replacing


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_replacing_a_file(tmp_path):
    path = tmp_path / "model.weights.h5"
    path.write_text("old")
    with files.replacing(path) as temporary:
        assert temporary.parent.parent == tmp_path
        assert temporary.name == path.name
        assert not temporary.exists()
        (temporary.parent / "a library's own temporary").touch()
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["model.weights.h5"]


def test_replacing_a_folder(tmp_path):
    path = tmp_path / "model"
    for content in ("old", "new"):
        with files.replacing(path) as temporary:
            (temporary / "inner").mkdir(parents=True)
            (temporary / "inner" / content).touch()
    assert names(tmp_path) == ["model"]
    assert names(path / "inner") == ["new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises(tmp_path, error):
    path = tmp_path / "model.npz"
    path.write_text("old")

    def interrupted():
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["model.npz"]


def test_a_block_that_writes_nothing(tmp_path):
    (tmp_path / "model.npz").write_text("old")
    with pytest.raises(FileNotFoundError), files.replacing(tmp_path / "model.npz"):
        pass
    assert (tmp_path / "model.npz").read_text() == "old"


def test_only_what_dead_writers_left_is_removed(tmp_path):
    path = tmp_path / "b.npz"
    host, here = files._HOST, os.getpid()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = {
        f".tmp.{host}.{dead.pid}.0.b.npz": True,  # dead
        f".tmp.{host}.{here}.99999.b.npz": False,  # another thread of ours is writing
        f".tmp.{host}.{dead.pid}.0.a.b.npz": False,  # of another file
        ".tmp.elsewhere.1.0.b.npz": False,  # of another machine
        ".tmp.elsewhere.2.0.b.npz": True,  # long ago
    }
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "b.npz").touch()
    for old in (
        tmp_path / ".tmp.elsewhere.2.0.b.npz" / "b.npz",
        tmp_path / ".tmp.elsewhere.2.0.b.npz",
    ):
        os.utime(old, (0, 0))
    os.utime(tmp_path / ".tmp.elsewhere.1.0.b.npz", (0, 0))  # but not what is in it
    with files.replacing(path) as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == sorted(["b.npz", *(n for n, gone in left.items() if not gone)])


def test_through_a_link(tmp_path):
    (tmp_path / "real.npz").write_text("old")
    (tmp_path / "latest.npz").symlink_to("real.npz")
    with files.replacing(tmp_path / "latest.npz") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "latest.npz").is_symlink()
    assert (tmp_path / "real.npz").read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX'")
@pytest.mark.parametrize("suffix", ["npz", "safetensors", "msgpack"])
def test_permissions(tmp_path, suffix):
    """Those of a file that is written in place: of the old one, or as `umask` says."""
    path = tmp_path / f"model.{suffix}"
    layer = holder(a=1.0)
    umask = os.umask(0o027)
    try:
        layer.save_variables(path)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    layer.save_variables(path)
    assert path.stat().st_mode & 0o777 == 0o604


def test_around_a_keras_model(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with files.replacing(tmp_path / "model.keras") as temporary:
        model.save(temporary)
    keras.saving.load_model(tmp_path / "model.keras")
    assert names(tmp_path) == ["model.keras"]
