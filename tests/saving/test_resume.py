"""Training that was killed ends like training that was not, bit for bit.

The program is `resuming.py`: a Flax and a Haiku model with state and dropout, a random layer of
Keras itself, Adam under a schedule, metrics. Compared are all variables (weights, state, seeds,
the optimizer's, the metrics') and the logs of all epochs that were trained as a whole.
"""

import ast
import gc
import json
import random
import signal
import weakref
from pathlib import Path

import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, keep_seeds

from .resuming import EPOCHS, STEPS, Noisy

HERE = Path(__file__).parent
KILLED = -signal.SIGKILL
pytestmark = pytest.mark.xdist_group("resuming")  # they share the run that is not killed
X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def any_step(rng, earliest=1):
    return {"event": "step", "at": rng.randrange(earliest, STEPS * 3)}


def any_moment(rng, earliest=1):
    """While Orbax writes in the background, or has written, or is about to write."""
    return {**any_step(rng, earliest), "after": rng.uniform(0, 0.1)}


def writing(rng, earliest=2):
    """In the middle of the second file or a later one."""
    return {"event": "writing", "at": rng.randrange(2, EPOCHS)}


# Name to the plan, when it is killed, and whether it goes on inside of an epoch.
SCENARIOS = {
    "backup": ({"how": "backup"}, any_step, False),
    "backup-while-writing": ({"how": "backup", "double_checkpoint": True}, writing, False),
    "weights-of-steps": ({"how": "weights", "save_freq": 4}, any_step, True),
    "whole-model": ({"how": "whole"}, any_step, False),
    "orbax": ({"how": "orbax"}, any_moment, False),
    "orbax-of-steps": ({"how": "orbax", "save_freq": 4}, any_moment, True),
}
MORE = {
    "weights": ({"how": "weights"}, any_step, False),
    "whole-model-of-steps": ({"how": "whole", "save_freq": 5}, any_step, True),
    "orbax-not-in-background": ({"how": "orbax", "save_on_background": False}, any_moment, False),
}
ALL = SCENARIOS | MORE
QUICK = {"backup", "orbax-of-steps"}


def scenarios(chosen, quick=()):
    marks = {name: [] if name in quick else [pytest.mark.slow] for name in chosen}
    return pytest.mark.parametrize(
        ("plan", "kill", "is_inside"),
        [pytest.param(*chosen[name], id=name, marks=marks[name]) for name in chosen],
    )


@pytest.fixture(scope="module")
def survive(run_python):
    """Runs plans in one interpreter; returns the statuses of the processes of each."""

    def run(*plans):
        code = f"import resuming\nprint([resuming.survive(*plan) for plan in {plans!r}])"
        return ast.literal_eval(run_python(code, path=[HERE]))

    return run


@pytest.fixture(scope="module")
def uninterrupted(survive, tmp_path_factory):
    """Path of the results of a run without checkpoints and without an end."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    plan = {"how": "nothing", "folder": str(folder), "result": str(folder / "result")}
    assert survive((plan, [])) == [[0]]
    return folder / "result"


def results(path):
    """Variables by path, and the logs by epoch."""
    with np.load(f"{path}.npz") as variables:
        return dict(variables), json.loads(Path(f"{path}.json").read_text())


def placed(plan, folder, name):
    return {**plan, "folder": str(folder / name), "result": str(folder / f"{name}-result")}


def assert_equal(path, expected, assert_same, is_inside):
    """Asserts that two runs ended alike, and that what the first logged is what both logged.

    Args:
        path: of the first run's results.
        expected: of the other's.
        assert_same: the fixture.
        is_inside: whether the first run went on inside of an epoch. What it had trained of that
            before is not in the epoch's means, since Keras begins them anew in each `fit`.
    """
    (variables, logs), (expected_variables, expected_logs) = results(path), results(expected)
    if is_inside:
        logs.pop(min(logs, default=None), None)
    if is_inside and not logs:
        variables, expected_variables = map(without_sums, (variables, expected_variables))
    assert_same(variables, expected_variables)
    assert logs == {epoch: expected_logs[epoch] for epoch in logs}


def without_sums(variables):
    """Less what metrics sum up in."""
    kept = {k: v for k, v in variables.items() if not k.endswith(("/total", "/count"))}
    assert len(variables) - len(kept) == 6, "of the loss, of Keras' metric, and of the model's own"
    return kept


@scenarios(SCENARIOS, QUICK)
def test_killed_at_random(plan, kill, is_inside, survive, uninterrupted, assert_same, tmp_path):
    """One run is killed at any time; one when it has checkpoints, and then at any time again."""
    rng = random.Random(str(plan))
    once, twice = placed(plan, tmp_path, "once"), placed(plan, tmp_path, "twice")
    kills = [kill(rng)], [kill(rng, 2 * STEPS + 1), kill(rng)]
    for *killed, last in survive((once, kills[0]), (twice, kills[1])):
        assert {*killed} == {KILLED}
        assert last == 0
    for run in (once, twice):
        assert_equal(run["result"], uninterrupted, assert_same, is_inside)
    assert "0" not in results(twice["result"])[1], "it started anew"


@pytest.mark.parametrize("seed", range(2))
@scenarios(ALL)
def test_killed_at_random_and_started_in_a_new_interpreter(
    plan, kill, is_inside, seed, run_python, uninterrupted, assert_same, tmp_path
):
    """Nothing is shared with the processes before: no imports, no hash seed, no cache."""
    rng = random.Random(f"{plan} {seed}")
    plan = placed(plan, tmp_path, "run")
    for killed in (kill(rng), kill(rng), None):
        code = f"import resuming\nprint(resuming.attempt(**{plan}, killed={killed}))"
        status = int(run_python(code, path=[HERE], env={"JAX_ENABLE_COMPILATION_CACHE": "false"}))
        assert status in ((KILLED, 0) if killed else (0,))
        if status == 0:
            break
    assert_equal(plan["result"], uninterrupted, assert_same, is_inside)


# What Keras' callbacks leave open. These tests hold what the documentation says of them.


def test_the_limits_of_a_backup(survive, tmp_path):
    """A backup is two files, the first written in place; its epoch is always begun anew."""
    step = {"event": "step", "at": 10}
    plans = {
        "inside": ({"how": "backup", "save_freq": 4}, step),
        "between": ({"how": "backup"}, {"event": "written", "at": 2}),
        "torn": ({"how": "backup"}, {"event": "writing", "at": 2}),
    }
    runs = [(placed(plan, tmp_path, name), [kill]) for name, (plan, kill) in plans.items()]
    inside, between, torn = survive(*runs)
    assert torn == [KILLED, 1]
    assert inside == between == [KILLED, 0]
    taken = {name: results(tmp_path / f"{name}-result")[0] for name in ("inside", "between")}
    steps = {name: int(variables["adam/iteration"]) for name, variables in taken.items()}
    assert steps == {"inside": STEPS * EPOCHS + 1, "between": STEPS * (EPOCHS + 1)}


# Seeds of Keras' own layers.


def seeds(model):
    return [v.numpy().tolist() for v in model.variables if v.name == "seed_generator_state"]


def dropping():
    """A model of the functional kind, with a model inside."""
    inner = keras.Sequential([keras.layers.Dense(3), keras.layers.GaussianNoise(0.1)])
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dropout(0.5), FlaxLayer(Noisy()), inner]
    )


class Dropping(keras.Model):
    """The same of the other kind."""

    def __init__(self):
        super().__init__()
        self.parts = dropping().layers
        self(X)

    def call(self, x, training=False):
        for part in self.parts:
            x = part(x, training=training)
        return x


@pytest.mark.parametrize("make", [dropping, Dropping])
def test_kept_seeds(make, tmp_path, values):
    model, again = make(), make()
    layers = list(model.layers)
    for one in (model, again):
        keep_seeds(one)
    model(X, training=True)
    model.save_weights(tmp_path / "model.weights.h5")
    assert seeds(again) != seeds(model)
    again.load_weights(tmp_path / "model.weights.h5")
    assert len(seeds(model)) == 3
    assert seeds(again) == seeds(model)
    np.testing.assert_array_equal(values(again(X, training=True)), values(model(X, training=True)))
    assert model.layers == layers


def test_keras_saves_no_seeds_itself(tmp_path):
    """Where this fails, Keras does what `keep_seeds` is for."""
    model, again = dropping(), dropping()
    model(X, training=True)
    model.save_weights(tmp_path / "model.weights.h5")
    again.load_weights(tmp_path / "model.weights.h5")
    dropout, own, noise = zip(seeds(model), seeds(again), strict=True)
    assert own[0] == own[1]
    assert dropout[0] != dropout[1]
    assert noise[0] != noise[1]


def test_a_file_without_seeds(tmp_path):
    model = dropping()
    model.save_weights(tmp_path / "model.weights.h5")
    keep_seeds(model)
    message = r"holds 0 seeds, expected 3, .*without keep_seeds\(model\) has to be loaded before"
    with pytest.raises(ValueError, match=message):
        model.load_weights(tmp_path / "model.weights.h5")


def test_a_file_with_seeds_that_nobody_asks_for(tmp_path):
    model, again = dropping(), dropping()
    keep_seeds(model)
    model.save_weights(tmp_path / "model.weights.h5")
    again.load_weights(tmp_path / "model.weights.h5")


def test_kept_seeds_do_not_keep_the_model(tmp_path):
    model = dropping()
    keep_seeds(model)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
