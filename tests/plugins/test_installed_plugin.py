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
        key = jax.random.key(0)
        infer = jax.jit(lambda w, m, x: chain.run(w, m, key, x, False)[0])
        expected = infer(weights, memory, x)
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
        print("toynet" in {e.name for e in registry.installed()}, "toynet_jaxlayer" in sys.modules)
        import toynet
        print(type(registry.resolve(toynet.Dense(1), "toynet")).__name__)
        """,
        path=[site],
    )
    assert printed.splitlines() == ["True False", "ToyAdapter"]


PROJECT = """
[build-system]
requires = ["hatchling>=1.24"]
build-backend = "hatchling.build"

[project]
name = "another"
version = "2.0"

[project.entry-points."jaxlayer.adapters"]
{entries}

[tool.hatch.build.targets.wheel]
packages = ["another"]
"""


def another(tmp_path, entries, files):
    """Installs a second distribution with adapters."""
    source = tmp_path / "source"
    (source / "another").mkdir(parents=True)
    for name, code in {"__init__": "", **files}.items():
        (source / "another" / f"{name}.py").write_text(code)
    (source / "pyproject.toml").write_text(PROJECT.format(entries=entries))
    install(source, tmp_path / "site")
    return tmp_path / "site"


def test_two_adapters_for_one_model(run_python, site, tmp_path):
    """Neither is silently preferred; naming one helps."""
    code = "from toynet_jaxlayer import ToyAdapter\nclass Other(ToyAdapter): pass\n"
    second = another(tmp_path, 'toynet = "another.other:Other"', {"other": code})
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
        from another.other import Other
        print(as_layer(toynet.Dense(1), adapter=Other).module.features)
        """,
        path=[site, second],
    )
    several, named, chosen = printed.splitlines()
    for message in (several, named):
        assert message.startswith("Several installed adapters")
        assert "toynet-jaxlayer 1.0" in message
        assert "another 2.0" in message
    assert "adapter=" in several
    assert chosen == "1"


# framework: code of the adapter's module, what the error says, whether it has a cause
BROKEN = {
    "raises": ("raise RuntimeError('broken inside')", "RuntimeError: broken inside", True),
    "needs": ("import not_there", "No module named 'not_there'", True),
    "lacks": ("", "Broken", True),
    "odd": ("Broken = 3", "expected a subclass of jaxlayer_core.Adapter, got 3", False),
    "partly": (
        "from jaxlayer_core import Adapter\nclass Broken(Adapter):\n    framework = 'partly'\n",
        "not complete: implement accepts, purify",
        False,
    ),
    "absent": ("import absent", "pip install absent", True),
}


def test_a_broken_adapter_is_named(run_python, tmp_path):
    """And harms no model of another framework."""
    entries = "\n".join(f'{name} = "another.{name}:Broken"' for name in BROKEN)
    files = {name: code for name, (code, *_) in BROKEN.items()}
    # `import absent` in `another/absent.py` means the framework, which is not installed.
    printed = run_python(
        f"""
        import flax.linen as nn
        from jaxlayer import as_layer
        from jaxlayer_core import JaxLayerError

        for name in {list(BROKEN)}:
            model = type("Model", (), {{"__module__": name + ".models"}})()
            try:
                as_layer(model)
            except JaxLayerError as error:
                print(name, error.__cause__ is not None, error, sep=";")
        as_layer(nn.Dense(2))
        """,
        path=[another(tmp_path, entries, files)],
    )
    lines = printed.splitlines()
    assert len(lines) == len(BROKEN)
    for line, (name, (_, message, caused)) in zip(lines, BROKEN.items(), strict=True):
        got_name, got_caused, text = line.split(";", 2)
        assert (got_name, got_caused) == (name, str(caused)), line
        assert message in text, line
        if name != "absent":
            assert f"{name!r} of another 2.0" in text, line
