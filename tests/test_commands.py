"""Commands that the documents name: the table of `python -m jaxlayer`, examples, benchmark."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def python(*arguments, env=None, **options):
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={name: value for name, value in environment.items() if value is not None},
        timeout=600,
        **options,
    )


def test_table_of_what_is_installed():
    done = python("-m", "jaxlayer")
    assert done.returncode == 0, done.stderr
    for row in ("keras", "jax", "dm-haiku", "flax", "Keras backend", "adapter flax.linen"):
        assert re.search(rf"^{re.escape(row)} +\S", done.stdout, re.M), done.stdout
    assert re.search(r"^adapter haiku +jaxlayer \S+ +ok$", done.stdout, re.M)


def test_table_says_what_is_missing_and_how_to_install_it(tmp_path):
    # A finder that knows no distribution named flax, and a flax that cannot be imported.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, importlib.metadata as m\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'flax':\n"
        "            raise ModuleNotFoundError('No module named flax', name='flax')\n"
        "sys.meta_path.insert(0, Absent())\n"
        "version = m.version\n"
        "def without_flax(name):\n"
        "    if name == 'flax':\n"
        "        raise m.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "m.version = without_flax\n"
    )
    done = python("-m", "jaxlayer", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert re.search(r"^flax +missing +pip install 'jaxlayer\[flax\]'$", done.stdout, re.M)
    assert re.search(r"^adapter flax.linen .* pip install 'jaxlayer\[flax\]'$", done.stdout, re.M)


def test_jax_is_chosen_where_the_default_backend_is_missing(tmp_path):
    code = "import jaxlayer_core, keras; print(keras.backend.backend())"
    done = python("-c", code, env={"KERAS_BACKEND": None, "KERAS_HOME": str(tmp_path)})
    assert done.stdout.split()[-1] == "jax", done.stderr


@pytest.mark.parametrize("chosen_by", ["environment", "file"])
def test_a_choice_of_backend_is_left_alone(tmp_path, chosen_by):
    (tmp_path / "keras.json").write_text('{"backend": "numpy"}')
    by_environment = chosen_by == "environment"
    env = {"KERAS_BACKEND": "numpy" if by_environment else None, "KERAS_HOME": str(tmp_path)}
    code = "import jaxlayer_core, keras; print(keras.backend.backend())"
    assert python("-c", code, env=env).stdout.split()[-1] == "numpy"


@pytest.mark.slow
@pytest.mark.parametrize("example", ["haiku_digits", "flax_digits"])
def test_example(example, tmp_path):
    done = python(ROOT / "examples" / f"{example}.py", "--output", tmp_path, env={"COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{example}.png").stat().st_size > 10_000
    assert f"picture: {tmp_path / example}.png" in done.stdout
    accuracy = re.search(r"accuracy on held-out digits\W+([\d.]+)%", done.stdout)
    assert float(accuracy[1]) >= 98
    difference = re.search(r"largest difference from the native model\W+(\S+)", done.stdout)
    assert float(difference[1]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "figures"),
    [
        ("overhead", ["--models", "mlp"], ["eager call", "fit step", "train_on_batch"]),
        ("once", ["--models", "mlp"], ["build memory", "first call", "load throughput"]),
        ("leaves", [], ["build", "eager call", "save", "load"]),
    ],
)
def test_benchmarks_print_ratios(tmp_path, name, options, figures):
    script = ROOT / "benchmarks" / f"{name}.py"
    done = python(script, "--quick", "--results", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    for figure in figures:
        line = rf"^\S.* {figure} +[\d.]+ \S+ +ours [\d.]+ \([\d.]+ to [\d.]+\)"
        assert re.search(line, done.stdout, re.M), done.stdout
    assert json.loads((tmp_path / f"{name}.json").read_text())["environment"]["cores"]


@pytest.mark.slow
def test_steps_benchmark_prints_ratios(tmp_path):
    done = python(ROOT / "benchmarks" / "steps.py", "--quick", "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"ours, scan_steps [\d.]+ \([\d.]+ to [\d.]+\)", done.stdout), done.stdout
    assert (tmp_path / "steps.json").exists()


def test_reports_are_made_of_the_results(tmp_path):
    """Tables and pictures in the documents are those of the files of results."""
    folders = ("benchmarks", "docs", "README.md")
    for name in folders:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    results = tmp_path / "benchmarks" / "results"
    for picture in results.glob("*.svg"):
        picture.unlink()
    done = python(tmp_path / "benchmarks" / "report.py")
    assert done.returncode == 0, done.stderr
    for name in ("README.md", "docs/performance.md", "docs/saving.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), name
    for name in ("overhead.svg", "leaves.svg"):
        assert (results / name).stat().st_size > 10_000


@pytest.mark.slow
def test_training_benchmark_prints_its_tables(tmp_path):
    script = ROOT / "benchmarks" / "training.py"
    done = python(script, "--quick", "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    for title in ("loss curves", "step time", "remat", "long life"):
        assert re.search(rf"^{title}$", done.stdout, re.M), done.stdout
    differences = re.findall(r"largest relative difference: (\S+)", done.stdout)
    assert max(map(float, differences)) < 1e-5
    assert json.loads((tmp_path / "training.json").read_text())["environment"]["cores"]


@pytest.mark.slow
def test_programs_benchmark_prints_sizes_and_times(tmp_path):
    options = ("--quick", "--models", "mlp", "--results", tmp_path)
    done = python(ROOT / "benchmarks" / "programs.py", *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"mlp: program \d+ KB beside weights of \d+ KB", done.stdout), done.stdout
    assert (tmp_path / "programs.json").exists()


@pytest.mark.slow
def test_checkpoints_benchmark_prints_memory(tmp_path):
    done = python(ROOT / "benchmarks" / "checkpoints.py", "--quick", "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    formats = ["msgpack", "safetensors", "npz", "orbax"]
    assert list(json.loads((tmp_path / "checkpoints.json").read_text())["formats"]) == formats
    for name in formats:
        assert re.search(rf"^{name} +load +[\d.]+ +\d+$", done.stdout, re.M), done.stdout
