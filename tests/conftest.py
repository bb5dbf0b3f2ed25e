"""What all tests share: the JAX backend, a fresh Keras for each test, a subprocess, comparison."""

import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "jax")
# Tests run side by side, one process per core; XLA's own threads would only fight over it.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
# Most of the time goes into compiling, and often the same programs: in the other worker, in the
# processes that tests start, in the next run. What is found again has the same bits.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import subprocess
import sys
import textwrap

import jax
import keras
import numpy as np
import pytest


def pytest_runtest_setup(item):
    """Skips what is marked `without("VARIABLE=value")` under that setting."""
    for mark in item.iter_markers("without"):
        variable, _, value = mark.args[0].partition("=")
        if os.environ.get(variable) == value:
            pytest.skip(f"says nothing under {mark.args[0]}")


@pytest.fixture(autouse=True)
def fresh_keras():
    """Every test starts with Keras' defaults: names, policy, distribution, global seed."""
    keras.backend.clear_session(free_memory=False)  # a full garbage collection costs 0.4 s
    keras.config.set_dtype_policy("float32")
    keras.distribution.set_distribution(None)
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.distribution.set_distribution(None)


@pytest.fixture(scope="session")
def run_python():
    """Runs code in a new Python process; returns what it prints, fails if it fails."""

    def run(code, path=(), env=None):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
        environment |= {"KERAS_BACKEND": "jax", "PYTHONDONTWRITEBYTECODE": "1"} | (env or {})
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, f"the process failed:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def poison(tmp_path):
    """Makes packages that cannot be imported; returns the folder to put on the path.

    They raise what nothing catches as "not installed", so even a guarded import shows.
    """

    def make(*names):
        folder = tmp_path / "poison"
        for name in names:
            (folder / name).mkdir(parents=True)
            (folder / name / "__init__.py").write_text(
                f"class Imported(BaseException): pass\nraise Imported('{name} was imported')\n"
            )
        return folder

    return make


def _plain(leaf):
    if isinstance(leaf, keras.Variable):
        leaf = leaf.value
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


@pytest.fixture(scope="session")
def values():
    """Turns the variables and arrays of a tree into NumPy arrays."""
    return lambda tree: jax.tree.map(
        _plain, tree, is_leaf=lambda leaf: isinstance(leaf, keras.Variable)
    )


@pytest.fixture(scope="session")
def assert_same(values):
    """Asserts that two trees have the same structure, dtypes, shapes and bits."""

    def check(got, expected):
        got, expected = values(got), values(expected)
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        pairs = zip(
            jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
        )
        for (path, one), other in pairs:
            where = jax.tree_util.keystr(path)
            assert one.dtype == other.dtype, where
            np.testing.assert_array_equal(one, other, err_msg=where)

    return check
