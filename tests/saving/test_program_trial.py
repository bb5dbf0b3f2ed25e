"""Programs are read by a process that may be lost first, if another process has made them."""

import json
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlayer import JaxLayer
from jaxlayer_core.errors import ProgramError
from jaxlayer_core.program import Program, trial
from jaxlayer_core.program.blobs import Blob


@pytest.fixture(scope="module")
def config():
    layer = JaxLayer(
        lambda params, inputs: jnp.tanh(inputs @ params["w"]),
        params={"w": np.ones((3, 2), "float32")},
    )
    layer(np.ones((4, 3), "float32"))
    return json.loads(json.dumps(layer.to_program().get_config()))


@pytest.fixture
def stranger(config, monkeypatch):
    """The config in a process that has not made it."""
    monkeypatch.setattr(trial, "_known", set())
    return config


def reads(monkeypatch, code):
    """Has the other process do this in place of reading."""
    monkeypatch.setattr(trial, "_READ", code)


def test_a_program_of_another_process_is_read_once(stranger, monkeypatch):
    assert Program.from_config(stranger).get_config() == stranger
    assert all(map(trial.is_known, stranger["blobs"]))
    reads(monkeypatch, "raise SystemExit('again')")
    Program.from_config(stranger)


def test_what_this_process_has_made_needs_no_trial(config, monkeypatch):
    reads(monkeypatch, "raise SystemExit('a trial')")
    Program.from_config(config)


def test_a_program_that_crashes_its_reader(stranger, monkeypatch):
    reads(monkeypatch, "import os; print('ready', flush=True); os.abort()")
    message = (
        r"Reading the saved program of .* ends the process that reads it \(.*\), so it was not"
    )
    with pytest.raises(ProgramError, match=message):
        Program.from_config(stranger)
    assert not trial._known


def test_a_program_that_is_never_read_to_its_end(stranger, monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 0.5)
    reads(monkeypatch, "import time; print('ready', flush=True); time.sleep(60)")
    with pytest.raises(ProgramError, match=r"does not end within 0.5 s, so it was not read"):
        Program.from_config(stranger)


@pytest.mark.parametrize(
    ("executable", "code", "reason"),
    [
        ("/no/python", trial._READ, "FileNotFoundError"),
        (None, "raise ImportError('no jax')", "ImportError: no jax"),
    ],
)
def test_where_there_can_be_no_trial(stranger, monkeypatch, executable, code, reason):
    reads(monkeypatch, code)
    if executable:
        monkeypatch.setattr(trial.sys, "executable", executable)
    with pytest.warns(UserWarning, match=rf"read without a trial .*: {re.escape(reason)}"):
        assert Program.from_config(stranger).get_config() == stranger


@pytest.mark.slow
def test_flipped_bits_under_right_checksums(stranger):
    """One or two in a hundred crash MLIR's reader in JAX 0.10; none crashes this process."""
    (digest,) = {call["blob"] for call in stranger["calls"]}
    packed = stranger["blobs"][digest]
    content = Blob(digest, packed["size"], packed["data"]).unpack()
    draw = random.Random(0)
    refused = 0
    for _ in range(60):
        bit = draw.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        blob = Blob.of(bytes(flipped))
        text = json.dumps(stranger).replace(digest, blob.digest)
        changed = json.loads(text) | {"blobs": {blob.digest: blob.get_config()}}
        try:
            program = Program.from_config(changed)
        except ProgramError:
            refused += 1
        else:
            assert jax.tree.leaves(program.get_config())
    assert 0 < refused < 60
