"""The referee of NNX cases: how a user of Flax runs a module with variables of their own."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlayer_core import stream_key

from .cases import Case

NAMES = {
    nnx.Param: "params",
    nnx.BatchStat: "batch_stats",
    nnx.Cache: "cache",
    nnx.Intermediate: "intermediates",
}


def make(model: Any, key: jax.Array) -> nnx.Module:
    """A module of one's own: a copy, or what the class or function makes."""
    if isinstance(model, nnx.Module):
        return nnx.clone(model)
    eager = getattr(nnx, "use_eager_sharding", lambda flag: contextlib.nullcontext())
    with eager(False):
        return model(rngs=nnx.Rngs(key))


def reseed(module: nnx.Module, key: jax.Array) -> None:
    """Each stream gets the key of its path, as `FlaxLayer` says."""
    for path, stream in nnx.iter_graph(module):
        if isinstance(stream, nnx.RngStream):
            own = stream_key(key, "/".join(map(str, path)))
            shape = stream.key.shape
            write(stream.key, jax.random.split(own, shape) if shape else own)
            write(stream.count, jnp.zeros(shape, "uint32"))


def write(variable: Any, value: Any) -> None:
    """Gives a variable another value, in any version of Flax."""
    variable.set_value(value) if hasattr(variable, "set_value") else setattr(
        variable, "value", value
    )


def collections(module: nnx.Module) -> dict[str, Any]:
    """The values of the variables by type and path."""
    found: dict[str, Any] = {}
    for path, variable in _variables(module):
        value = variable
        if isinstance(variable, nnx.Variable):
            value = variable.get_value() if hasattr(variable, "get_value") else variable.value
        if not jax.tree.leaves(value):
            continue
        *parents, last = names(path)
        branch = found.setdefault(name_of(variable), {})
        for name in parents:
            branch = branch.setdefault(name, {})
        branch[last] = jax.tree.map(jnp.asarray, value)
    return found


def update(module: nnx.Module, values: dict[str, Any]) -> None:
    """Writes values by type and path into a module."""
    for path, variable in _variables(module):
        branch = values.get(name_of(variable))
        for name in names(path):
            branch = branch and branch.get(name)
        if branch is None:
            continue
        if isinstance(variable, nnx.Variable):
            write(variable, branch)
        else:
            replace(module, path, branch)


def replace(holder: Any, path: Any, value: Any) -> None:
    """Puts another array where there is one by itself."""
    *parents, last = path
    for part in parents:
        holder = getattr(holder, part) if isinstance(holder, nnx.Module) else holder[part]
    setattr(holder, last, value) if isinstance(holder, nnx.Module) else holder.update({last: value})


def name_of(variable: Any) -> str:
    """The collection of a variable, or of an array that is in none."""
    if not isinstance(variable, nnx.Variable):
        return "arrays"
    return NAMES.get(type(variable), type(variable).__name__)


def names(path: Any) -> list[str]:
    """The names on a path."""
    return [".".join(part) if isinstance(part, tuple) else str(part) for part in path]


def _variables(module: nnx.Module) -> list[tuple[Any, Any]]:
    return [
        (path, node)
        for path, node in nnx.iter_graph(module)
        if isinstance(node, nnx.Variable | jax.Array) and not isinstance(node, nnx.RngState)
    ]


def native(case: Case, model: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Init and apply of an NNX case; apply gives outputs, state and the sum of the losses."""

    def split(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        trained = {k: values.pop(k) for k in ("params", "LoRAParam") if k in values}
        dropped = ("intermediates", *case.sown)
        return trained, {k: v for k, v in values.items() if k not in dropped}

    def init(key: jax.Array, args: tuple, kwargs: dict) -> Any:
        return split(collections(make(model, key)))

    def run(params: Any, state: Any, key: Any, args: tuple, kwargs: dict, training: bool) -> Any:
        module = make(model, jax.random.key(0))
        update(module, {**params, **state})
        reseed(module, key)
        module.train() if training else module.eval()
        method = getattr(module, case.method or "__call__")
        takes = inspect.signature(method).parameters
        first = "params" if isinstance(module, nnx.bridge.ToNNX) else "default"
        rngs = {"rngs": nnx.Rngs(**{first: key})} if "rngs" in takes else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*Using 'Module\.sow", DeprecationWarning)
            outputs = method(*args, **kwargs, **case.flags(training), **rngs)
        after = collections(module)
        sown = [leaf for name in case.sown for leaf in jax.tree.leaves(after.pop(name, {}))]
        written = {k: v for k, v in split(after)[1].items() if training or k == "cache"}
        return outputs, written, sum(map(jnp.sum, sown), start=0.0)

    return init, run
