"""The referee: how the framework itself runs a case, and how a native user trains it.

Independent of jaxlayer but for `key_from_seed` and `stream_key`, its published way to make
the key of a call by hand. Everything but `init` is one `jax.jit` program, as in a native
training loop; the layer has to give the very same bits.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax

from jaxlayer_core import key_from_seed, stream_key

from . import equinox_native, function_native, nnx_native
from .cases import Apply, Case, Result, leaves_of, split


def loss_of(outputs: Any) -> jax.Array:
    """A loss for any model: of each inexact output the mean squared distance from one."""
    total = jnp.zeros(())
    for leaf in map(jnp.asarray, jax.tree.leaves(outputs)):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size:
            distance = leaf - 1
            if jnp.iscomplexobj(leaf):
                square = jnp.square(distance.real) + jnp.square(distance.imag)
            else:
                square = jnp.square(distance)
            total += jnp.mean(square.astype(jnp.float32))
    return total


class Native:
    """A case in the hands of its framework.

    Args:
        case: the case.
        model: what `case.make()` gave.
    """

    def __init__(self, case: Case, model: Any) -> None:
        self._case = case
        args, kwargs = case.inputs()
        self.arrays, self._restore = split(args, kwargs)
        self._init, self._apply = _FRAMEWORKS[case.framework](case, model)

    def init(self, seed: Any) -> tuple[Any, Any]:
        """Params and state, by the framework's `init` run eagerly in training mode."""
        args, kwargs = self._restore(list(map(jnp.asarray, self.arrays)))
        return self._init(key_from_seed(seed), args, kwargs)

    @functools.cached_property
    def inference(self) -> Callable[..., tuple[Any, Any]]:
        """`(params, state, key, arrays)` to outputs and what inference writes of the state."""
        return jax.jit(lambda *call: self._run(*call, training=False)[:2])

    @functools.cached_property
    def training(self) -> Callable[..., Result]:
        """`(params, state, key, arrays)` to the outcome of a training call."""
        return jax.jit(lambda *call: self._run(*call, training=True))

    @functools.cached_property
    def gradients(self) -> Callable[..., tuple[list[jax.Array], Any]]:
        """`(params, state, seed, arrays)` to gradients of the inexact params and the new state."""
        return jax.jit(self._gradients)

    def sgd(
        self, params: Any, state: Any, seed: Any, *, steps: int, learning_rate: float
    ) -> tuple[Any, Any]:
        """Params and state after some steps of `optax.sgd`; each step has the next key."""
        optimizer = optax.sgd(learning_rate)
        moments = optimizer.init(_inexact(params)[0])
        for number in range(steps):
            counter = jnp.asarray(seed, "uint32") + jnp.asarray([0, number], "uint32")
            gradients, state = self.gradients(params, state, counter, self.arrays)
            trained, put_back = _inexact(params)
            updates, moments = optimizer.update(gradients, moments)
            params = put_back(optax.apply_updates(trained, updates))
        return params, state

    def shapes(self, params: Any, state: Any, arrays: Sequence[Any]) -> dict[str, Any]:
        """Specs of the outputs in inference, by path, for arrays or specs of them."""

        def outputs(*call: Any) -> dict[str, Any]:
            # Inside, since some nodes show their leaves to JAX only if these are arrays.
            return leaves_of(self._run(*call, training=False).outputs)

        return jax.eval_shape(outputs, params, state, key_from_seed([0, 0]), list(arrays))

    def _run(self, params: Any, state: Any, key: Any, arrays: Any, training: bool) -> Result:
        args, kwargs = self._restore(arrays)
        return self._apply(params, state, key, args, kwargs, training)

    def _gradients(self, params: Any, state: Any, seed: Any, arrays: Any) -> Any:
        trained, put_back = _inexact(params)

        def loss(trained: list[jax.Array]) -> tuple[jax.Array, Any]:
            result = self._run(put_back(trained), state, key_from_seed(seed), arrays, True)
            return loss_of(result.outputs) + result.sown, result.state

        return jax.grad(loss, has_aux=True)(trained)


def _inexact(params: Any) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Any]]:
    """The leaves that can be trained, and the function that puts others into their places."""
    leaves, treedef = jax.tree.flatten(params)
    trains = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

    def put_back(trained: list[jax.Array]) -> Any:
        remaining = iter(trained)
        merged = [next(remaining) if t else leaf for leaf, t in zip(leaves, trains, strict=True)]
        return jax.tree.unflatten(treedef, merged)

    return [leaf for leaf, t in zip(leaves, trains, strict=True) if t], put_back


_TRANSFORMS = (hk.Transformed, hk.TransformedWithState)
_MULTI = (hk.MultiTransformed, hk.MultiTransformedWithState)


def _haiku(case: Case, model: Any) -> tuple[Callable[..., tuple[Any, Any]], Apply]:
    """Init and apply of a Haiku case."""
    if not isinstance(model, _TRANSFORMS + _MULTI):
        model = hk.transform_with_state(model)
    has_state = isinstance(model, hk.TransformedWithState | hk.MultiTransformedWithState)
    apply = model.apply
    if isinstance(model, _MULTI):
        apply = apply[case.method] if isinstance(apply, dict) else getattr(apply, case.method)
    takes_rng = "rng" in inspect.signature(apply).parameters

    def init(key: jax.Array, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        made = model.init(key, *args, **kwargs, **case.train)
        return made if has_state else (made, {})

    def run(params: Any, state: Any, key: Any, args: tuple, kwargs: dict, training: bool) -> Result:
        before = [params, *([state] if has_state else []), *([key] if takes_rng else [])]
        result = apply(*before, *args, **kwargs, **case.flags(training))
        outputs, new_state = result if has_state else (result, state)
        # In inference a Haiku user drops the new state.
        return Result(outputs, new_state if training else {}, 0.0)

    return init, run


def _linen(case: Case, model: nn.Module) -> tuple[Callable[..., tuple[Any, Any]], Apply]:
    """Init and apply of a linen case."""

    def init(key: jax.Array, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        module = model.clone(**case.train_attrs)
        made = module.init(key, *args, **kwargs, **case.train, method=case.method)
        made = flax.core.unfreeze(nn.meta.unbox(made))
        params = {name: made.pop(name) for name in ("params",) if name in made}
        return params, {k: v for k, v in made.items() if k not in case.sown}

    def run(params: Any, state: Any, key: Any, args: tuple, kwargs: dict, training: bool) -> Result:
        # Training writes all state; inference only an autoregressive cache.
        mutable = [*state, *case.sown] if training else [k for k in state if k == "cache"]
        outputs, written = model.clone(**case.attrs(training)).apply(
            {**params, **state},
            *args,
            **kwargs,
            **case.flags(training),
            rngs={stream: stream_key(key, stream) for stream in case.rngs},
            mutable=mutable,
            method=case.method,
        )
        written = flax.core.unfreeze(nn.meta.unbox(written))
        sown = [leaf for name in case.sown for leaf in jax.tree.leaves(written.pop(name, {}))]
        return Result(outputs, written, sum(map(jnp.sum, sown), start=0.0))

    return init, run


def _nnx(case: Case, model: Any) -> tuple[Callable[..., tuple[Any, Any]], Apply]:
    """Init and apply of an NNX case."""
    init, run = nnx_native.native(case, model)
    return init, lambda *call: Result(*run(*call))


_FRAMEWORKS = {
    "haiku": _haiku,
    "linen": _linen,
    "nnx": _nnx,
    "equinox": equinox_native.init_and_apply,
    "functions": function_native.init_and_apply,
}
