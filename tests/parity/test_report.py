"""The tables of what works say what the parity tests found."""

import json

import pytest

from . import report
from .test_parity import CASES

RESULTS = json.loads(report.RESULTS.read_text())


def test_every_model_is_in_the_table():
    names = {case.name for case in CASES}
    assert names == set(RESULTS["models"]), "run tests/parity/report.py"
    assert names == {model for models in RESULTS["groups"].values() for model in models}


def test_nothing_in_the_table_failed():
    failed = [m for m, found in RESULTS["models"].items() if "failed" in found.values()]
    assert failed == []


@pytest.mark.parametrize("path", report.documents(RESULTS), ids=lambda path: path.name)
def test_the_documents_have_the_tables(path):
    assert path.read_text() == report.documents(RESULTS)[path], "run report.py --render"


def test_outcomes():
    def reported(skipped=False, why="", result="passed"):
        kind = type("Report", (), {"skipped": skipped, "longrepr": why, "outcome": result})
        return report.outcome(kind())

    assert reported() == "passed"
    assert reported(result="failed") == "failed"
    assert reported(skipped=True, why="x needs: pip install y") == "missing"
    assert reported(skipped=True, why="x: draws nothing") == "lacks"
