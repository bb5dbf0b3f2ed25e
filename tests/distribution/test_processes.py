"""Two processes of JAX: the example that trains with them, and what each can do."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from jaxlayer import gather_predictions
from jaxlayer_core.errors import JaxLayerError

HERE = pathlib.Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "cluster_train.py"
pytestmark = [
    pytest.mark.xdist_group("several devices"),
    pytest.mark.without("KERAS_NNX_ENABLED=true"),
]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def run(*arguments, devices=1, script=EXAMPLE):
    """Runs the example; programs are not cached, because processes are killed."""
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        timeout=300,
    )


def bits(done):
    """What a run says of its losses and of its weights in the end."""
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    losses = re.findall(r"^epoch (\d+): loss \S+ (\S+)$", done.stdout, re.M)
    weights = re.search(r"^weights (\w+) after 64 steps on 2 devices$", done.stdout, re.M)
    assert weights, done.stdout
    return dict(losses), weights[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with two devices, without an end."""
    return bits(run("--checkpoints", tmp_path_factory.mktemp("alone"), devices=2))


@pytest.mark.slow
def test_a_process_dies_and_the_run_goes_on(alone, tmp_path):
    """From its last checkpoint, to the very bits of one process that nobody killed."""
    arguments = ("--local", 2, "--checkpoints", tmp_path)
    died = run(*arguments, "--die", "1:37")
    assert died.returncode == 1
    found = re.search(
        r"^Process 1 of 2 died \(SIGKILL\), and the others were ended\. The newest checkpoint in "
        rf"{re.escape(str(tmp_path))} is of step (\d+); the same command goes on from there\.$",
        died.stderr,
        re.M,
    )
    assert found, died.stderr[-3000:]
    first = dict(re.findall(r"^epoch (\d+): loss \S+ (\S+)$", died.stdout, re.M))
    losses, weights = alone
    assert first == {epoch: losses[epoch] for epoch in ("1", "2")}
    resumed = run(*arguments)
    assert f"goes on from step {found[1]}" in resumed.stdout
    later, same = bits(resumed)
    assert same == weights
    assert later["4"] == losses["4"]


@pytest.mark.slow
def test_two_processes_are_as_one(alone, tmp_path):
    assert bits(run("--local", 2, "--checkpoints", tmp_path)) == alone


@pytest.mark.slow
def test_two_processes_share_kernels(tmp_path):
    options = ("--model-axis", 2, "--checkpoints")
    one = bits(run(*options, tmp_path / "one", devices=2))
    assert bits(run("--local", 2, *options, tmp_path / "two")) == one


@pytest.mark.slow
def test_a_death_before_the_first_checkpoint(tmp_path):
    died = run("--local", 2, "--checkpoints", tmp_path, "--die", "0:3")
    assert died.returncode == 1
    assert f"There is no checkpoint in {tmp_path} yet; the same command begins anew." in died.stderr
    # The one that was left ended by itself, as it would on a cluster without a launcher: its
    # collective operation failed, or the service that coordinates went away with process 0.
    assert re.search("Process 1 cannot reach the others|coordination service", died.stderr)


@pytest.mark.slow
def test_an_exception_in_one_process(tmp_path):
    """It ends the run, too: its process must not wait for the others before it leaves."""
    script = tmp_path / "train.py"
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    assert kill in EXAMPLE.read_text()
    script.write_text(EXAMPLE.read_text().replace(kill, "raise OSError('the disk is gone')"))
    died = run("--local", 2, "--checkpoints", tmp_path / "c", "--die", "1:3", script=script)
    assert died.returncode == 1
    assert "OSError: the disk is gone" in died.stderr
    assert "Process 1 of 2 died (exit status 1), and the others were ended." in died.stderr


@pytest.mark.slow
def test_ending_the_launcher_ends_the_processes(tmp_path):
    arguments = ("--local", "2", "--epochs", "10000", "--checkpoints", str(tmp_path))
    launcher = subprocess.Popen(
        [sys.executable, EXAMPLE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    for line in launcher.stdout:
        if line.startswith("epoch 1:"):
            break
    launcher.terminate()
    # The processes write where the launcher does: that comes to its end when all have ended.
    launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGTERM


ADDRESSES = {
    "slurm": lambda n, port: {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(n),
        "SLURM_LOCALID": str(n),
    },
    "kubernetes": lambda n, port: {
        "COORDINATOR_ADDRESS": f"localhost:{port}",
        "NUM_PROCESSES": "2",
        "JOB_COMPLETION_INDEX": str(n),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("where", ADDRESSES)
def test_addresses_from_the_environment(where):
    code = (
        "import cluster_train, jax; cluster_train.join(); "
        "print('process', jax.process_index(), 'of', jax.process_count())"
    )
    port = free_port()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ADDRESSES[where](n, port) | {"PYTHONPATH": str(EXAMPLE.parent)},
        )
        for n in range(2)
    ]
    printed = [child.communicate(timeout=120)[0] for child in children]
    assert [text.splitlines()[-1] for text in printed] == ["process 0 of 2", "process 1 of 2"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found (processes.py)."""
    folder = tmp_path_factory.mktemp("two")
    address = f"localhost:{free_port()}"
    children = [
        subprocess.Popen(
            [sys.executable, HERE / "processes.py", str(n), address, folder],
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    errors = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], "\n".join(errors)[-4000:]
    return [json.loads((folder / f"{n}.json").read_text()) for n in range(2)]


def test_predict_says_what_to_do(two):
    for found in two:
        assert "non-addressable" in found["predict"]  # what JAX says of it
        (text,) = found["warning"]
        assert text.startswith("dense is called by `predict` in 2 processes.")
        assert "jaxlayer.gather_predictions(model)" in text


def test_gathered_predictions_are_those_of_all(two):
    assert all(found["gathered"] and found["scanned"] for found in two)


def test_evaluate_is_the_same_in_all(two):
    assert two[0]["evaluate"] == two[1]["evaluate"]


def test_files(two):
    """Orbax is written by all together, other formats by one, if it has all."""
    for found in two:
        assert found["restored"]
        assert found["from npz"]
        assert found["from keras"]
        assert found["split orbax"]
        background = "CheckpointError: An Orbax checkpoint is written by all 2 processes together"
        assert found["background"].startswith(background)
        assert "wait=False" in found["background"]


def test_files_that_one_process_cannot_write(two):
    for found in two:
        text = found["split npz"]
        assert text.startswith("CheckpointError: `params/kernel` is split over several processes")
        assert "save_variables('variables.orbax')" in text
        text = found["split keras"]
        assert text.startswith("CheckpointError: `sequential_1/half/params/kernel` is split over")
        assert "keras.callbacks.OrbaxCheckpoint" in text


def test_gathering_takes_models_only():
    with pytest.raises(JaxLayerError, match=r"takes a keras.Model, got .* of type ndarray"):
        gather_predictions(np.zeros(2))
