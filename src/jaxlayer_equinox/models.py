"""What `EquinoxLayer` is given: a module that exists, or a function that makes one of a key."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from jaxlayer_core import AdapterError, BuildError, JaxLayerError, StructureError, rng
from jaxlayer_equinox import states
from jaxlayer_equinox.trees import Arrays, Template, with_values

Make = Callable[[jax.Array], eqx.Module]


class Model:
    """A module apart from its arrays.

    Args:
        obj: a module, a module class, or a function that returns a module; the last two take
            a key, by the name `key` or as the only argument that is required.

    Attributes:
        name: the model's name, for errors.
        module: the module with `jax.ShapeDtypeStruct`s for arrays, its state taken out.
        is_stateful: whether there is any.

    Raises:
        AdapterError: `obj` is none of these.
        StructureError: the state of a module was taken out, and is not to be had.
        BuildError: the class or function fails.
    """

    def __init__(self, obj: Any) -> None:
        name, make = _maker(obj)
        self._make = eqx.nn.make_with_state(make)
        try:
            made = eqx.filter_eval_shape(self._make, rng.unused_key())
        except JaxLayerError:
            raise
        except Exception as error:
            raise BuildError(
                f"{name} could not be made: {type(error).__name__}: {error}", cause=error
            ) from error
        self.module, state = made
        self.name = f"the Equinox module {type(self.module).__name__}"
        self.is_stateful = bool(jax.tree.leaves(state))
        self._params = Template(self.module)
        self._state = states.template(self.module, state)

    def init(self, key: jax.Array) -> tuple[Arrays, Arrays]:
        """Params and state by path."""
        module, state = self._make(key)
        return self.arrays(module), self.state_arrays(state)

    def arrays(self, module: eqx.Module) -> Arrays:
        """The arrays of a module like this one."""
        return self._params.arrays(module)

    def state_arrays(self, state: eqx.nn.State) -> Arrays:
        """The arrays of a state like that of this one."""
        return self._state.arrays(state)

    def restore(self, params: Arrays, state: Arrays) -> tuple[eqx.Module, eqx.nn.State]:
        """The module and its state with these arrays."""
        return self._params.fill(params), self._state.fill(state)


def is_class(obj: Any) -> bool:
    """Whether `obj` is a module class, or a partial of one."""
    target = obj.func if isinstance(obj, functools.partial) else obj
    return isinstance(target, type) and issubclass(target, eqx.Module)


def _maker(obj: Any) -> tuple[str, Make]:
    """The model's name, and the function of a key that makes it."""
    if isinstance(obj, eqx.Module):
        if states.is_apart(obj):
            raise StructureError(
                f"The state of this {type(obj).__name__} was taken out by eqx.nn.make_with_state. "
                "Give it, too: EquinoxLayer(module, state=state)."
            )
        return f"the Equinox module {type(obj).__name__}", lambda key: with_values(obj)
    target = obj.func if isinstance(obj, functools.partial) else obj
    if not callable(target):
        raise AdapterError(
            "EquinoxLayer takes an eqx.Module, a class of modules, or a function that makes a "
            f"module of a key, got {obj!r:.200}."
        )
    name = f"the Equinox model {getattr(target, '__name__', type(target).__name__)}"
    return name, functools.partial(_make_checked, name, obj, _key_argument(name, obj))


def _make_checked(name: str, factory: Any, argument: str | None, key: jax.Array) -> eqx.Module:
    if argument is None:
        made = factory()
    else:
        made = factory(key) if argument == "" else factory(**{argument: key})
    if not isinstance(made, eqx.Module):
        raise AdapterError(
            f"{name} returned an object of {type(made).__module__}.{type(made).__qualname__}, "
            "expected an eqx.Module. Return the module alone: its state is taken out here, as "
            "eqx.nn.make_with_state does."
        )
    return made


def _key_argument(name: str, factory: Any) -> str | None:
    """By which name a factory takes its key: "" is by position, None not at all.

    Raises:
        AdapterError: it requires something else.
    """
    parameters = inspect.signature(factory).parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p for p in parameters.values() if p.default is p.empty and p.kind not in variable]
    others = [p.name for p in required if p.name != "key"]
    if "key" in parameters and not others:
        return "key" if parameters["key"].kind is not inspect.Parameter.POSITIONAL_ONLY else ""
    if not others:
        return None
    if len(others) == 1 and "key" not in parameters and not is_class(factory):
        return "" if required[0].kind is not inspect.Parameter.KEYWORD_ONLY else others[0]
    raise AdapterError(
        f"{name} requires {', '.join(f'`{other}`' for other in others)}, and gets a key only. Give "
        "the rest with functools.partial, or a function of a key: "
        "EquinoxLayer(lambda key: Model(..., key=key))."
    )
