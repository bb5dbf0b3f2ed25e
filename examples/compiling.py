"""A training step compiled without any array, and what XLA says of it."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}


def compile_step(
    logits_of: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    tokens: jax.ShapeDtypeStruct,
    optimizer: optax.GradientTransformation,
) -> jax.stages.Compiled:
    """Compiles a step of a language model.

    Args:
        logits_of: from params and tokens to logits.
        params: pytree of `jax.ShapeDtypeStruct`s with shardings, which are kept.
        tokens: likewise.
        optimizer: its slots are split as their params are.
    """

    def loss_of(params: Any, tokens: jax.Array) -> jax.Array:
        targets = jax.numpy.roll(tokens, -1, axis=1)
        logits = logits_of(params, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def step(params: Any, slots: Any, tokens: jax.Array) -> tuple[jax.Array, Any, Any]:
        loss, gradients = jax.value_and_grad(loss_of)(params, tokens)
        updates, slots = optimizer.update(gradients, slots, params)
        return loss, optax.apply_updates(params, updates), slots

    slots = optax.tree_utils.tree_map_params(
        optimizer,
        lambda slot, weight: jax.ShapeDtypeStruct(slot.shape, slot.dtype, sharding=weight.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
    )
    kept = jax.tree.map(lambda leaf: leaf.sharding, (params, slots))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(None, *kept))
    return jitted.lower(params, slots, tokens).compile()


def collective_bytes(hlo: str) -> dict[str, int]:
    """By kind, the bytes that the collective operations of a program give one device.

    Args:
        hlo: `compiled.as_text()`.

    Raises:
        ValueError: nobody knows how often a loop runs.
    """
    plain = re.sub(r"/\*.*?\*/", "", hlo)  # comments number the elements of long tuples
    computations = re.findall(r"^(ENTRY|%\S+)[^\n]*\{\n(.*?)^\}", plain, re.M | re.S)
    return dict(_count(dict(computations), "ENTRY"))


def _count(computations: Mapping[str, str], name: str) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    for line in computations[name].splitlines():
        if made := re.search(rf"= (\(?[^=]*?\)?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", line):
            found[made[2]] += _bytes_of(made[1])
        elif loop := re.search(r" while\(.*body=(%[^\s,]+)", line):
            for kind, size in _count(computations, loop[1]).items():
                found[kind] += size * _trips(line)
        elif call := re.search(r" call\(.*to_apply=(%[^\s,]+)", line):
            found.update(_count(computations, call[1]))
    return found


def _trips(line: str) -> int:
    known = re.search(r"known_trip_count\D*(\d+)", line)
    if known is None:
        raise ValueError(f"XLA does not say how often this loop runs: {line.strip():.200}")
    return int(known[1])


def _bytes_of(result: str) -> int:
    """Of the arrays in a result's type, such as `(f32[2,3]{1,0}, f32[])`."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", result)
    return sum(WIDTHS[d] * math.prod(map(int, filter(None, s.split(",")))) for d, s in found)
