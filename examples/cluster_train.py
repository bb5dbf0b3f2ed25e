"""Trains one model with several processes, on one machine or on a cluster.

    python examples/cluster_train.py --local 2          # two processes here
    srun python examples/cluster_train.py               # one process per task of SLURM
    COORDINATOR_ADDRESS=host:1234 NUM_PROCESSES=2 PROCESS_ID=0 python examples/cluster_train.py

Every process runs this file. All see the same checkpoints, each writes its part of them, and each
reads its part of each batch. Whatever ends a run, the same command goes on from the last
checkpoint, with the bits that an uninterrupted run would have. `docs/cluster.md` has the files for
SLURM and Kubernetes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras reads it when it is imported

import flax.linen as nn
import jax
import keras
import numpy as np
from sklearn.datasets import load_digits

from jaxlayer import FlaxLayer, layout_map_from

BATCH, STEPS = 96, 16  # of all processes together; of an epoch
PATIENCE = 10  # seconds that processes have to end when one of them died


class Net(nn.Module):
    """A Flax module that knows nothing of Keras, nor of devices."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Gives logits of ten classes for images of shape `(batch, 8, 8, 1)`."""
        x = nn.Conv(16, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(nn.Dropout(0.3, deterministic=not train)(x))


# What each process does.


def join() -> None:
    """Meets the other processes, whose addresses the environment tells."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    environment = os.environ
    if "COORDINATOR_ADDRESS" in environment:
        # An indexed Job of Kubernetes numbers its pods in JOB_COMPLETION_INDEX.
        number = environment.get("PROCESS_ID", environment.get("JOB_COMPLETION_INDEX"))
        if number is None or "NUM_PROCESSES" not in environment:
            sys.exit("COORDINATOR_ADDRESS is set: NUM_PROCESSES and PROCESS_ID have to be, too.")
        keras.distribution.initialize(
            environment["COORDINATOR_ADDRESS"], int(environment["NUM_PROCESSES"]), int(number)
        )
    elif int(environment.get("SLURM_NTASKS", "1")) > 1:
        jax.distributed.initialize()  # JAX reads SLURM's variables itself


def distribution(model_axis: int, layer: FlaxLayer) -> Any:
    """All devices of all processes in a mesh; `model_axis` of them share each large kernel."""
    devices = keras.distribution.list_devices()
    if model_axis == 1:
        return keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    shape = (len(devices) // model_axis, model_axis)
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), devices)
    layout_map = layout_map_from(
        layer,
        mesh,
        paths={"Dense_0/kernel": (None, "model"), "Dense_1/kernel": ("model", None)},
        inputs=jax.ShapeDtypeStruct((BATCH, 8, 8, 1), "float32"),
    )
    return keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name="batch", auto_shard_dataset=False
    )


def rows_of_this_process() -> slice:
    """Which rows of a batch the devices of this process work on."""
    layout = keras.distribution.distribution().get_data_layout((BATCH,)).backend_layout
    parts = layout.addressable_devices_indices_map((BATCH,)).values()
    ends = [part[0].indices(BATCH)[:2] for part in parts]
    return slice(min(start for start, _ in ends), max(stop for _, stop in ends))


class Digits(keras.utils.PyDataset):
    """Batches that depend on nothing but the number of the step, so that a run can go on anywhere.

    Args:
        first: number of the first step.
        length: how many steps.
    """

    def __init__(self, first: int, length: int) -> None:
        super().__init__()
        images, labels = load_digits(return_X_y=True)
        self._images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
        self._labels, self._first, self._length = labels, first, length
        self._rows = rows_of_this_process()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(self._first + index)
        chosen = generator.choice(len(self._labels), BATCH, replace=False)[self._rows]
        return self._images[chosen], self._labels[chosen]


class Dying(keras.callbacks.Callback):
    """Kills one process at a step, to see what happens."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self._process, self._step = map(int, when.split(":"))

    def on_train_begin(self, logs: Any = None) -> None:
        """Called by Keras."""
        self._first = int(self.model.optimizer.iterations)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Called by Keras."""
        if jax.process_index() == self._process and self._first + batch >= self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(options: argparse.Namespace) -> None:
    """Trains, from the newest checkpoint if there is one."""
    keras.utils.set_random_seed(0)
    layer = FlaxLayer(Net(), seed=0, name="net")
    keras.distribution.set_distribution(distribution(options.model_axis, layer))
    model = keras.Sequential([keras.Input((8, 8, 1)), layer], name="model")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss, metrics=["accuracy"])

    folder = options.checkpoints.absolute()
    saving = keras.callbacks.OrbaxCheckpoint(
        str(folder), save_freq=options.save_every, save_on_background=False, max_to_keep=2
    )
    if newest_step(folder) is not None:
        model.optimizer.build(model.trainable_variables)
        model.load_weights(folder)
        say(f"goes on from step {int(model.optimizer.iterations)}")
    callbacks = [saving, *([Dying(options.die)] if options.die else [])]
    done = int(model.optimizer.iterations)
    while done < options.epochs * STEPS:
        epoch, step = divmod(done, STEPS)
        history = model.fit(
            Digits(done, STEPS - step),  # what is left of the epoch
            initial_epoch=epoch,
            epochs=epoch + 1,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        ).history
        done = int(model.optimizer.iterations)
        say(f"epoch {epoch + 1}: loss {history['loss'][0]:.6f} {history['loss'][0].hex()}")
    say(f"weights {digest(model)} after {done} steps on {jax.device_count()} devices")


def stop(error: Exception) -> NoReturn:
    """Ends this process at once; leaving in the usual way would wait for the others to leave."""
    traceback.print_exception(error)
    is_jax = isinstance(error, jax.errors.JaxRuntimeError)
    if is_jax and jax.process_count() > 1 and "RESOURCE_EXHAUSTED" not in str(error):
        # What a collective operation raises when a process at its other end is gone.
        number = jax.process_index()
        print(f"Process {number} cannot reach the others; see which ended first.", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def digest(model: keras.Model) -> str:
    """A number for all the bits of all variables."""
    found = hashlib.sha256()
    for variable in (*model.variables, *model.optimizer.variables):
        whole = jax.device_get(jax.jit(lambda x: x, out_shardings=replicated())(variable.value))
        found.update(np.ascontiguousarray(whole).tobytes())
    return found.hexdigest()[:16]


def replicated() -> jax.sharding.Sharding:
    """Where every device, and so every process, has the whole."""
    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def say(text: str) -> None:
    """Prints from one process."""
    if jax.process_index() == 0:
        print(text, flush=True)


def newest_step(folder: Path) -> int | None:
    """The step of the newest whole checkpoint; unfinished ones have other names."""
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    return max(steps, default=None)


# All processes on one machine.


def launch(count: int, arguments: Sequence[str], folder: Path) -> int:
    """Starts processes and watches them; when one dies, ends the others and says how to go on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    children = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments],
            env=os.environ
            | {"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": str(count), "PROCESS_ID": str(n)},
        )
        for n in range(count)
    ]
    ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()  # in the order of their deaths
    for n, child in enumerate(children):
        threading.Thread(target=lambda n=n, c=child: ended.put((n, c.wait())), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # takes them along
    try:
        for left in reversed(range(count)):
            number, code = ended.get()
            if code:
                with contextlib.suppress(queue.Empty):
                    deadline = time.monotonic() + PATIENCE
                    for _ in range(left):  # the others notice, and say what they have to say
                        ended.get(timeout=max(0.0, deadline - time.monotonic()))
                print(explanation(number, count, code, folder), file=sys.stderr)
                return 1
        return 0
    finally:
        for child in children:
            child.kill()
            child.wait()


def explanation(number: int, count: int, code: int, folder: Path) -> str:
    """What to tell about a process that died."""
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    step = newest_step(folder)
    resume = (
        f"The newest checkpoint in {folder} is of step {step}; the same command goes on from there."
        if step is not None
        else f"There is no checkpoint in {folder} yet; the same command begins anew."
    )
    return f"Process {number} of {count} died ({how}), and the others were ended. {resume}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and trains, or starts the processes that do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--local", type=int, help="start so many processes on this machine")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--model-axis", type=int, default=1, help="devices that share a kernel")
    parser.add_argument("--checkpoints", type=Path, default=Path("cluster-checkpoints"))
    parser.add_argument("--save-every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--die", metavar="PROCESS:STEP", help="kill a process, to see it resume")
    options = parser.parse_args(arguments)
    if options.local:
        given = list(sys.argv[1:] if arguments is None else arguments)
        at = next(i for i, word in enumerate(given) if word.startswith("--local"))
        del given[at : at + (1 if "=" in given[at] else 2)]
        return launch(options.local, given, options.checkpoints.absolute())
    join()
    try:
        train(options)
    except Exception as error:
        stop(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
