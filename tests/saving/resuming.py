"""A training program that is killed and started again, for `test_resume.py`.

What trains is what a user writes: `Batches`, `restored` and `fit` are the recipe of the
documentation. `survive` is what a cluster does: it starts the program until that ends well. Each
process is forked from the one that has imported this module, and where nothing of JAX runs yet.
"""

import json
import os
import signal
import threading
import traceback
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
import keras
import numpy as np

from jaxlayer import FlaxLayer, HaikuLayer, keep_seeds

STEPS, EPOCHS, BATCH = 7, 4, 4
FILES = {"backup": "latest.weights.h5", "weights": "latest.weights.h5", "whole": "latest.keras"}
serializable = keras.saving.register_keras_serializable("resuming")


# The model.


class Configured:
    """What Keras asks of an object in a model that is saved as a whole."""

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@serializable
class Noisy(nn.Module, Configured):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        self.sow("stats", "mean", jnp.mean(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


@serializable
def noisy(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training)
    return hk.dropout(hk.next_rng_key(), 0.5 if is_training else 0.0, x)


@serializable
class Fuse(keras.layers.Layer):
    """Burns in the middle of a file that Keras writes: some layers are in it, others not."""

    def call(self, x):
        return x

    def save_own_variables(self, store):
        killing.happened("writing")


@serializable
class Model(keras.Model):
    """A model to which happens what Keras has no callback for."""

    def save_weights(self, *args, **kwargs):
        super().save_weights(*args, **kwargs)
        killing.happened("written")


def made():
    """A model with layers of two frameworks and a random one of Keras itself."""
    inputs = keras.Input((4,))
    x = FlaxLayer(Noisy(), state_policy={"stats": "metric"}, name="flax")(inputs)
    x = keras.layers.Dropout(0.3)(x)
    x = Fuse()(HaikuLayer(noisy, name="haiku")(x))
    model = Model(inputs, keras.layers.Dense(1)(x))
    schedule = keras.optimizers.schedules.CosineDecay(0.01, STEPS * EPOCHS)
    model.compile(keras.optimizers.Adam(schedule), "mse", metrics=["mae"])
    keep_seeds(model)
    return model


# Killing.


class Killing(keras.callbacks.Callback):
    """Kills the process when something has happened so many times, or a moment after."""

    def __init__(self, event=None, at=1, after=None):
        super().__init__()
        self.event, self.left, self.after = event, at, after
        self.fuse = None

    def happened(self, event):
        self.left -= event == self.event
        if self.left or event != self.event:
            return
        if self.after is None:
            os.kill(os.getpid(), signal.SIGKILL)
        self.fuse = threading.Timer(self.after, os.kill, (os.getpid(), signal.SIGKILL))
        self.fuse.start()

    def on_train_batch_end(self, batch, logs=None):
        self.happened("step")

    def wait(self):
        """Dies if that is due."""
        if self.fuse is not None:
            self.fuse.join()


killing = Killing()


# Training.


class Batches(keras.utils.PyDataset):
    """Batches as a function of the step, which the optimizer counts.

    Args:
        model: the model that is trained.
        length: steps of an epoch.
    """

    def __init__(self, model, length):
        super().__init__()
        self.model, self.length, self.first = model, length, 0

    def __len__(self):
        return self.length

    def on_epoch_begin(self):
        self.first = int(self.model.optimizer.iterations)

    def __getitem__(self, index):
        x = np.random.default_rng(self.first + index).normal(size=(BATCH, 4)).astype("float32")
        return x, x[:, :1]


def callbacks(how, folder, options):
    """Keras' callback of each kind, or none."""
    if how == "backup":
        return [keras.callbacks.BackupAndRestore(folder, **options)]
    if how == "orbax":
        return [keras.callbacks.OrbaxCheckpoint(folder, **options)]
    if how in ("weights", "whole"):
        only = how == "weights"
        return [
            keras.callbacks.ModelCheckpoint(folder / FILES[how], save_weights_only=only, **options)
        ]
    return []


def found(how, folder):
    """The checkpoint in a folder, or None; Orbax' is the folder itself."""
    if how in FILES:
        return folder / FILES[how] if (folder / FILES[how]).exists() else None
    return folder if any(path.name.isdigit() for path in folder.iterdir()) else None


def restored(how, checkpoint):
    """The model that a checkpoint holds."""
    if how == "whole":
        model = keras.saving.load_model(checkpoint)
        keep_seeds(model)
    else:
        model = made()
        model.optimizer.build(model.trainable_variables)
    if how != "backup":  # which loads in `fit`
        model.load_weights(checkpoint)
    return model


def fit(model, make_callbacks):
    """Trains a model from where it is to the end: first what is left of its epoch.

    Returns:
        The logs of each epoch.
    """
    epoch, step = divmod(int(model.optimizer.iterations), STEPS)
    parts = [(STEPS, EPOCHS)] if step == 0 else [(STEPS - step, epoch + 1), (STEPS, EPOCHS)]
    logs = {}
    for length, end in parts:
        history = model.fit(
            Batches(model, length),
            initial_epoch=epoch,
            epochs=end,
            shuffle=False,
            callbacks=make_callbacks(),
            verbose=0,
        )
        for index, number in enumerate(history.epoch):
            logs[number] = {name: values[index] for name, values in history.history.items()}
        epoch = end
    return logs


def train(how, folder, result, killed=None, **options):
    """Trains, from the last checkpoint on, and writes all variables and the logs of epochs.

    Args:
        how: what writes checkpoints: "backup", "weights", "whole", "orbax" or "nothing".
        folder: where to.
        result: path of the files to write, less their ending.
        killed: arguments of `Killing`, or None to live.
        **options: of the callback.
    """
    global killing
    killing = Killing(**(killed or {}))
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    checkpoint = found(how, folder)
    # A process that goes on begins with other seeds: what is not restored shows.
    keras.utils.set_random_seed(os.getpid() if checkpoint else 0)
    model = restored(how, checkpoint) if checkpoint else made()
    logs = fit(model, lambda: [*callbacks(how, folder, options), killing])
    killing.wait()
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    np.savez(f"{result}.npz", **{variable.path: variable.numpy() for variable in variables})
    Path(f"{result}.json").write_text(json.dumps(logs))


# Starting again.


def attempt(**plan):
    """The status of a new process that trains, as `subprocess` tells it."""
    child = os.fork()
    if not child:
        try:
            train(**plan)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def survive(plan, kills):
    """Starts the program until it is not killed.

    Args:
        plan: arguments of `train`.
        kills: one of its arguments `killed` for each process; the one after them may live.

    Returns:
        The status of each process.
    """
    statuses = []
    for killed in [*kills, None]:
        statuses.append(attempt(**plan, killed=killed))
        if statuses[-1] != -signal.SIGKILL:
            break
    return statuses
