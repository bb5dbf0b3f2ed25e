"""What a call makes beside its output, sorted by role: losses, metrics, further outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlayer_core.paths import Path
from jaxlayer_core.pure import Outcome, PyTree
from jaxlayer_core.roles import Policy, Role


class Beside(NamedTuple):
    """All by path.

    Attributes:
        losses: scalars to add to the loss.
        metrics: float32 scalars to average.
        outputs: what is returned beside the output.
    """

    losses: dict[str, jax.Array]
    metrics: dict[str, jax.Array]
    outputs: dict[str, PyTree]


def sort(
    policy: Policy, outcome: Outcome, state_paths: Sequence[Path], state: Sequence[Any]
) -> Beside:
    """Sorts what a call made.

    Args:
        policy: the table of roles.
        outcome: of the call.
        state_paths: paths of the leaves of the new state; a loss, metric or output among
            them stays state.
        state: those leaves.
    """
    beside = Beside({}, {}, dict(outcome.captured))
    for name, role, value in _all(policy, outcome, state_paths, state):
        leaves = jax.tree.leaves(value)
        if role is Role.OUTPUT:
            beside.outputs[name] = value
        elif role is Role.LOSS and leaves:
            beside.losses[name] = jnp.sum(jnp.stack([jnp.sum(leaf) for leaf in leaves]))
        elif role is Role.METRIC and leaves:
            means = [jnp.mean(jnp.asarray(leaf, jnp.float32)) for leaf in leaves]
            beside.metrics[name] = jnp.mean(jnp.stack(means))
    return beside


def _all(
    policy: Policy, outcome: Outcome, state_paths: Sequence[Path], state: Sequence[Any]
) -> Iterator[tuple[str, Role, PyTree]]:
    for name, value in outcome.sown.items():
        yield name, policy.role(tuple(name.split("/"))), value
    for path, value in zip(state_paths, state, strict=True):
        yield "/".join(path), policy.role(path), value
