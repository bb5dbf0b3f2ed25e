"""What the documents and docstrings show is executed."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("jaxlayer", "jaxlayer_core", "jaxlayer_haiku", "jaxlayer_flax")


def code_blocks(document):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S)


def modules():
    for package in PACKAGES:
        yield package
        path = importlib.import_module(package).__path__
        yield from (m.name for m in pkgutil.walk_packages(path, f"{package}."))


@pytest.mark.parametrize("document", ["README.md", "docs/saving.md", "docs/writing-an-adapter.md"])
def test_document_runs_from_top_to_bottom(document):
    namespace = {"__name__": "document"}
    blocks = code_blocks(document)
    assert blocks
    try:
        for block in blocks:
            exec(compile(block, document, "exec"), namespace)
    finally:
        import jaxlayer
        from jaxlayer_core import registry

        registry._registered.clear()
        jaxlayer.distrust("my_models")


@pytest.mark.parametrize("name", [n for n in modules() if not n.endswith("__main__")])
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_public_names_have_docstrings():
    for name in PACKAGES:
        package = importlib.import_module(name)
        for public in package.__all__:
            assert getattr(package, public).__doc__, f"{name}.{public}"
