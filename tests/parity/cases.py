"""What a parity case is, and the helpers that make its inputs.

A case is data: how to get a model as its author or its users hand it around, the smallest
inputs of the real dtypes, and how a user of the framework asks for training and for
inference. `native.py` runs it the framework's way, `test_parity.py` as a Keras layer.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Inputs = Callable[[], tuple[tuple, dict]]


class Result(NamedTuple):
    """What a native call gives: outputs, the new state, and the sum of the sown losses."""

    outputs: Any
    state: Any
    sown: Any


Apply = Callable[[Any, Any, jax.Array, tuple, dict, bool], Result]


@dataclasses.dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: unique.
        framework: `"haiku"`, `"linen"`, `"nnx"`, `"equinox"`, or `"functions"` for pairs of init
            and apply.
        make: makes the model: for Haiku a function or a transform of any kind, for linen a
            module, for Equinox a module or what makes one of a key. Packages beyond the
            frameworks are imported inside.
        inputs: gives args and kwargs. NumPy leaves are arrays, all others static.
        train: keywords of the call by which a native user asks for training.
        eval: keywords by which they ask for inference.
        train_attrs: attributes to `clone` a linen module with for training.
        eval_attrs: attributes to `clone` it with for inference.
        explicit: the layer cannot know the flag (it is no boolean, or no train flag), so
            its caller passes it in every call, like any other argument.
        method: a linen method, or an entry of a multi-transform.
        rngs: linen streams that the model may ask for, besides `params`.
        sown: linen collections that only a call makes, and whose leaves are losses.
        layer: options that the layer needs for this model.
        batched: whether the first axis of every array may have any size.
        ignores: warnings of the model's own package, as `pytest.mark.filterwarnings` takes them.
        requires: what to type after `pip install`, if something.
        lacks: property of `test_parity.py` that this case cannot have, and why.
        sample: whether it belongs to the quick run too.
    """

    name: str
    framework: str
    make: Callable[[], Any]
    inputs: Inputs
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    eval: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train_attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    eval_attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    explicit: bool = False
    method: str | None = None
    rngs: tuple[str, ...] = ()
    sown: tuple[str, ...] = ()
    layer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batched: bool = True
    ignores: tuple[str, ...] = ()
    requires: str = ""
    lacks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sample: bool = False

    def missing(self) -> str:
        """What is to be installed, as a pip line; empty if nothing."""
        names = [word for word in self.requires.split() if not word.startswith("-")]
        return "" if all(map(_is_installed, names)) else f"pip install {self.requires}"

    def flags(self, training: bool) -> Mapping[str, Any]:
        """Keywords of a native call."""
        return self.train if training else self.eval

    def attrs(self, training: bool) -> Mapping[str, Any]:
        """Attributes of a native module."""
        return self.train_attrs if training else self.eval_attrs


def _is_installed(requirement: str) -> bool:
    name = re.split(r"[=<>!~]", requirement)[0]
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


class Cases(list[Case]):
    """The cases of one framework, in the order in which they were added."""

    def __init__(self, framework: str) -> None:
        super().__init__()
        self._framework = framework

    def add(self, name: str, make: Callable[[], Any], inputs: Inputs, **options: Any) -> None:
        """Adds a case; `options` are the other attributes of `Case`."""
        self.append(Case(name, self._framework, make, inputs, **options))


# Flags, as authors name them.

TRAIN = {"train": {"train": True}, "eval": {"train": False}}
IS_TRAINING = {"train": {"is_training": True}, "eval": {"is_training": False}}
TRAINING = {"train": {"training": True}, "eval": {"training": False}}
UPDATE_STATS = {"train": {"update_stats": True}, "eval": {"update_stats": False}}
DETERMINISTIC = {"train": {"deterministic": False}, "eval": {"deterministic": True}}
RUNNING_AVERAGE = {
    "train": {"use_running_average": False},
    "eval": {"use_running_average": True},
}


def by_attribute(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The same flags as attributes of the module."""
    return {"train_attrs": flags["train"], "eval_attrs": flags["eval"]}


# Arrays.


def f32(*shape: int, seed: int = 0) -> np.ndarray:
    """Normally distributed floats."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def ids(*shape: int, n: int = 10, seed: int = 0, dtype: str = "int32") -> np.ndarray:
    """Integers below `n`."""
    return np.random.default_rng(seed).integers(0, n, size=shape).astype(dtype)


def booleans(*shape: int, seed: int = 0) -> np.ndarray:
    """A mask with a True in every row."""
    mask = np.random.default_rng(seed).random(size=shape) > 0.4
    mask[..., 0] = True
    return mask


def onehots(batch: int, time: int, n: int, seed: int = 0) -> np.ndarray:
    """One-hot rows of width `n`."""
    return np.eye(n, dtype="float32")[ids(batch, time, n=n, seed=seed)]


def positions(batch: int, length: int) -> np.ndarray:
    """Token positions."""
    return np.tile(np.arange(length, dtype="int32"), (batch, 1))


def floats(*shape: int, **kwargs: Any) -> Inputs:
    """The inputs of a call with one float array."""
    return lambda: ((f32(*shape),), kwargs)


def given(*args: Any, **kwargs: Any) -> Inputs:
    """The inputs of a call with these arguments."""
    return lambda: (args, kwargs)


def split(args: tuple, kwargs: dict) -> tuple[list[Any], Callable[[Any], tuple[tuple, dict]]]:
    """The arrays of a call, and the function that puts others into their places."""
    leaves, treedef = jax.tree.flatten((args, kwargs))
    is_array = [isinstance(leaf, np.ndarray | np.generic) for leaf in leaves]

    def restore(arrays: Any) -> tuple[tuple, dict]:
        remaining = iter(arrays)
        merged = [
            next(remaining) if array else leaf for leaf, array in zip(leaves, is_array, strict=True)
        ]
        return jax.tree.unflatten(treedef, merged)

    return [leaf for leaf, array in zip(leaves, is_array, strict=True) if array], restore


def leaves_of(tree: Any) -> dict[str, Any]:
    """Leaves by path; unlike treedefs, paths do not compare what a node keeps as metadata."""

    def plain(leaf: Any) -> Any:
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): plain(leaf) for path, leaf in pairs}
