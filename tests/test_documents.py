"""What the documents and docstrings show is executed."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = (
    "jaxlayer",
    "jaxlayer_core",
    "jaxlayer_equinox",
    "jaxlayer_flax",
    "jaxlayer_haiku",
    "jaxlayer_optax",
)


def code_blocks(document):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S)


def modules():
    for package in PACKAGES:
        yield package
        path = importlib.import_module(package).__path__
        yield from (m.name for m in pkgutil.walk_packages(path, f"{package}."))


IN_THIS_PROCESS = (
    "saving",
    "optax",
    "equinox",
    "nnx",
    "performance",
    "cluster",
    "scaling",
    "writing-an-adapter",
)


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{n}.md" for n in IN_THIS_PROCESS)])
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


@pytest.mark.without("KERAS_NNX_ENABLED=true")
def test_document_for_several_devices_runs_from_top_to_bottom(run_python):
    """In a process of its own: JAX is told of devices before it is used."""
    run_python("".join(code_blocks("docs/sharding.md")))


@pytest.mark.parametrize("name", [n for n in modules() if not n.endswith("__main__")])
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_public_names_have_docstrings():
    for name in PACKAGES:
        package = importlib.import_module(name)
        for public in package.__all__:
            assert getattr(package, public).__doc__, f"{name}.{public}"
