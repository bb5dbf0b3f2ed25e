"""Runs every property of every model, and writes what passed into README.md and docs/models.md.

python tests/parity/report.py            # everything; two processes
python tests/parity/report.py --render   # only the documents, from results.json
"""

from __future__ import annotations

import collections
import json
import pathlib
import re
import sys
from importlib import metadata
from typing import Any

import pytest

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
RESULTS = FOLDER / "results.json"
PACKAGES = ("keras", "jax", "dm-haiku", "flax", "equinox")
PROPERTIES = {
    "build": "initial weights",
    "inference": "inference",
    "training": "training mode",
    "gradients": "gradients",
    "fit": "`fit`",
    "config": "saved by config",
    "program": "saved as a program",
    "output_spec": "shapes",
}
SIGNS = {"passed": "yes", "failed": "**no**", "lacks": "-"}


class Outcomes:
    """Collects what tests of the table report, by model and property."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = collections.defaultdict(dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest, in the process that all others report to."""
        # xdist appends the name of a group, which is that of the model.
        test = r"test_parity\.py::test_(\w+)\[(.*)\](?:@\2)?$"
        match = re.search(test, report.nodeid)
        if match and match[1] in PROPERTIES and (report.when == "call" or not report.passed):
            self.found[match[2]][match[1]] = outcome(report)


def outcome(report: pytest.TestReport) -> str:
    """A key of `SIGNS`, or "missing": its package is not installed."""
    if report.skipped:
        return "missing" if " needs: " in str(report.longrepr) else "lacks"
    return report.outcome


def groups() -> dict[str, list[str]]:
    """Names of the models by where they are from."""
    sys.path.insert(0, str(FOLDER.parent))
    from parity import pypi_cases, test_parity

    found: dict[str, list[str]] = collections.defaultdict(list)
    published = {case.name for case in pypi_cases.CASES}
    for case in test_parity.CASES:
        title = TITLES[case.framework]
        found[f"published, {title}" if case.name in published else title].append(case.name)
    return found


TITLES = {
    "haiku": "Haiku",
    "linen": "Flax linen",
    "nnx": "Flax NNX",
    "equinox": "Equinox",
    "functions": "init and apply",
}


def table(head: list[str], lines: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *lines])


def tried(results: dict[str, Any], models: list[str]) -> list[str]:
    """Those of the models whose package was installed."""
    return [model for model in models if "missing" not in results["models"][model].values()]


def summary(results: dict[str, Any]) -> str:
    """A line for each group: how many models have each property, of those that could."""
    lines = []
    for title, models in results["groups"].items():
        present = tried(results, models)
        cells = [f"{title} ({len(present)})"]
        for prop in PROPERTIES:
            outcomes = [results["models"][model].get(prop, "lacks") for model in present]
            able = [o for o in outcomes if o != "lacks"]
            cells.append(f"{able.count('passed')} of {len(able)}" if able else "-")
        lines.append(cells)
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    absent = sum(len(models) - len(tried(results, models)) for models in results["groups"].values())
    rest = f" {absent} more are of packages that were not installed." if absent else ""
    return f"{table(['models', *PROPERTIES.values()], lines)}\n\n({versions}.{rest})"


def details(results: dict[str, Any]) -> str:
    """A line for each model."""
    parts = []
    for title, models in results["groups"].items():
        lines = [
            [model.replace("|", "\\|")]
            + [SIGNS[results["models"][model].get(prop, "lacks")] for prop in PROPERTIES]
            for model in tried(results, models)
        ]
        parts.append(f"## {title}\n\n{table(['model', *PROPERTIES.values()], lines)}")
        if rest := [model for model in models if model not in tried(results, models)]:
            parts.append(f"Not installed in this run: {'; '.join(rest)}.")
    return "\n\n".join(parts)


def documents(results: dict[str, Any]) -> dict[pathlib.Path, str]:
    """The documents with their tables, by path."""
    found = {}
    for name, text in (("README.md", summary(results)), ("docs/models.md", details(results))):
        path = ROOT / name
        pattern = re.compile(r"(<!-- models -->\n).*?(<!-- /models -->)", re.S)
        found[path] = pattern.sub(lambda m, text=text: f"{m[1]}{text}\n{m[2]}", path.read_text())
    return found


def main() -> int:
    """Runs, writes, and fails if a test did."""
    status = 0
    if "--render" not in sys.argv:
        outcomes = Outcomes()
        every = ["-q", "-n", "2", "--dist", "loadgroup", "-m", "slow or not slow"]
        status = pytest.main([*every, str(FOLDER / "test_parity.py")], plugins=[outcomes])
        results = {
            "versions": {name: metadata.version(name) for name in PACKAGES},
            "groups": groups(),
            "models": dict(sorted(outcomes.found.items())),
        }
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=False) + "\n")
    for path, text in documents(json.loads(RESULTS.read_text())).items():
        path.write_text(text)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
