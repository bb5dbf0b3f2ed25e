"""A framework that jaxlayer has never heard of, installed as a real distribution."""

import pathlib
import subprocess
import sys

import pytest

SOURCE = pathlib.Path(__file__).parent / "toyframework"


def install(source, target):
    """Installs a distribution from its source, without the network."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--no-compile"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options]
    done = subprocess.run(
        [*command, "--target", str(target), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the toy framework and its adapter in it."""
    target = tmp_path_factory.mktemp("site")
    install(SOURCE, target)
    return target


def test_the_toy_framework_trains_in_fit(run_python, site):
    """Its author wrote an adapter and an entry point; its user writes `as_layer`."""
    printed = run_python(
        """
        import sys
        import jax, keras, numpy as np
        from jaxlayer import as_layer
        from jaxlayer_core import ModuleLayer, key_from_seed
        assert "toynet_jaxlayer" not in sys.modules
        assert "toynet" not in sys.modules

        import flax.linen as nn
        as_layer(nn.Dense(2))
        assert "toynet_jaxlayer" not in sys.modules, "loaded for another framework's model"

        import toynet
        chain = toynet.Chain(toynet.Dense(8), toynet.Noise(), toynet.Dense(1))
        assert "toynet_jaxlayer" not in sys.modules
        layer = as_layer(chain, seed=4)
        assert "toynet_jaxlayer" in sys.modules
        assert type(layer) is ModuleLayer

        x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
        y = x.sum(axis=1, keepdims=True)
        model = keras.Sequential([keras.Input((4,)), layer])
        paths = sorted(v.path.partition("module_layer/")[2] for v in layer.weights)
        assert paths == ["params/link0/w", "params/link2/w", "state/link1/count"], paths
        weights, memory = chain.setup(key_from_seed([4, 0]), x)
        np.testing.assert_array_equal(layer.params["link0"]["w"].value, weights["link0"]["w"])
        expected, _ = jax.jit(lambda w, m, x: chain.run(w, m, None, x, False))(weights, memory, x)
        np.testing.assert_array_equal(layer(x), expected)

        model.compile(keras.optimizers.Adam(0.05), "mse")
        losses = model.fit(x, y, batch_size=8, epochs=5, verbose=0).history["loss"]
        assert losses[-1] < losses[0] / 2, losses
        model.predict(x, verbose=0)
        assert layer.state["link1"]["count"].value == 20
        print("trained")
        """,
        path=[site],
    )
    assert printed.strip() == "trained"


def test_the_adapter_is_listed_and_found_by_name(run_python, site):
    printed = run_python(
        """
        import sys
        from jaxlayer_core import registry
        print(sorted(e.name for e in registry.installed()), "toynet_jaxlayer" in sys.modules)
        import toynet
        print(type(registry.resolve(toynet.Dense(1), "toynet")).__name__)
        """,
        path=[site],
    )
    assert printed.splitlines() == ["['flax.linen', 'haiku', 'toynet'] False", "ToyAdapter"]


CLASHING = """
[build-system]
requires = ["hatchling>=1.24"]
build-backend = "hatchling.build"

[project]
name = "another-toynet"
version = "2.0"

[project.entry-points."jaxlayer.adapters"]
toynet = "{entry}"

[tool.hatch.build.targets.wheel]
packages = ["another_toynet"]
"""


def another(tmp_path, entry, code):
    """Installs a second distribution with an adapter for the toy framework."""
    source = tmp_path / "source"
    (source / "another_toynet").mkdir(parents=True)
    (source / "another_toynet" / "__init__.py").write_text(code)
    (source / "pyproject.toml").write_text(CLASHING.format(entry=entry))
    install(source, tmp_path / "site")
    return tmp_path / "site"


def test_two_adapters_for_one_model(run_python, site, tmp_path):
    """Neither is silently preferred; naming one helps."""
    second = another(
        tmp_path,
        "another_toynet:Other",
        "from toynet_jaxlayer import ToyAdapter\nclass Other(ToyAdapter): pass\n",
    )
    printed = run_python(
        """
        import toynet
        from jaxlayer import as_layer
        from jaxlayer_core import AdapterError
        for adapter in (None, "toynet"):
            try:
                as_layer(toynet.Dense(1), adapter=adapter)
            except AdapterError as error:
                print(error)
        from another_toynet import Other
        print(as_layer(toynet.Dense(1), adapter=Other).module.features)
        """,
        path=[site, second],
    )
    several, named, chosen = printed.splitlines()
    for message in (several, named):
        assert message.startswith("Several installed adapters")
        assert "toynet-jaxlayer 1.0" in message
        assert "another-toynet 2.0" in message
    assert "adapter=" in several
    assert chosen == "1"


@pytest.mark.parametrize(
    ("entry", "code", "message"),
    [
        ("another_toynet:Other", "raise RuntimeError('broken inside')", "RuntimeError: broken ins"),
        ("another_toynet:Other", "import not_there", "No module named 'not_there'"),
        ("another_toynet:Missing", "", "Missing"),
        ("another_toynet:Other", "Other = 3", "expected a subclass of jaxlayer_core.Adapter"),
        (
            "another_toynet:Other",
            "from jaxlayer_core import Adapter\nclass Other(Adapter):\n    framework = 'toynet'\n",
            "implement accepts, purify",
        ),
    ],
    ids=["raises", "import", "attribute", "not a class", "incomplete"],
)
def test_a_broken_adapter_is_named(run_python, tmp_path, entry, code, message):
    site = another(tmp_path, entry, code)
    printed = run_python(
        """
        import sys, types
        import flax.linen as nn
        from jaxlayer import as_layer
        from jaxlayer_core import AdapterError

        Toy = type("Toy", (), {"__module__": "toynet.models"})
        try:
            as_layer(Toy())
        except AdapterError as error:
            print(error)
            print(error.__cause__ is not None)
        as_layer(nn.Dense(2))  # others still work
        """,
        path=[site],
    )
    text, caused = printed.rsplit(maxsplit=1)
    assert "'toynet' of another-toynet 2.0" in text
    assert message in text
    assert caused == str("expected" not in message and "implement" not in message)
