"""Checks that need several devices run in one process that has them; this is how.

A check is a function of a module beside this file. It asserts what it claims, and may return what
JSON can hold. Each is a test of its own, but all of a module are run by one process.
"""

import importlib
import inspect
import json
import os
import pathlib
import subprocess
import sys
import traceback

HERE = pathlib.Path(__file__).parent
PREFIX = "outcomes: "


def checks_of(module):
    """Names of the checks in a file of this folder, in order."""
    tree = (HERE / f"{module}.py").read_text()
    return [
        line[4 : line.index("(")] for line in tree.splitlines() if line.startswith("def check_")
    ]


def run_on(devices, module, names=None, env=None, timeout=600):
    """Runs checks in a new process.

    Args:
        devices: how many devices of the CPU it has.
        module: name of the file.
        names: which checks; None for all.
        env: more environment variables.
        timeout: in seconds.

    Returns:
        By name, `{"result": ...}` or `{"failure": traceback}`.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    # Before the others: XLA stops reading at the first that does not begin with dashes.
    environment = os.environ | {"XLA_FLAGS": f"{flags} {os.environ.get('XLA_FLAGS', '')}"}
    done = subprocess.run(
        [sys.executable, __file__, module, *(names or checks_of(module))],
        capture_output=True,
        text=True,
        env=environment | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(HERE)} | (env or {}),
        timeout=timeout,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith(PREFIX)]
    assert done.returncode == 0, f"the process failed:\n{done.stdout}\n{done.stderr}"
    return json.loads(found[-1][len(PREFIX) :])


def outcome(check):
    """What became of a check."""
    import keras

    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.distribution.set_distribution(None)
    try:
        return {"result": check()}
    except Exception:
        return {"failure": traceback.format_exc()}
    finally:
        keras.distribution.set_distribution(None)


def main(module, *names):
    import warnings

    loaded = importlib.import_module(module)  # what libraries say on import is not about us
    warnings.simplefilter("error")
    # The same exception as in pyproject.toml.
    warnings.filterwarnings("ignore", "__array__ implementation doesn't accept")
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
    checks = {n: f for n, f in inspect.getmembers(loaded, inspect.isfunction) if n in names}
    print(PREFIX + json.dumps({name: outcome(checks[name]) for name in names}))


if __name__ == "__main__":
    main(*sys.argv[1:])
