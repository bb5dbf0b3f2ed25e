"""Running a program operation by operation, its results made in their shards.

Every operation is compiled alone, as JAX does when it runs eagerly, so the bits are those of
the eager run; but its results are asked for in shards, and XLA says in which shards it then
wants its operands. From the results back to the random bits, nothing is whole on one device.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Var

from jaxlayer_core import placing

Sharding = jax.sharding.Sharding


class _Step(NamedTuple):
    """One operation.

    Attributes:
        program: a jaxpr of it alone.
        key: what it has in common with operations that are the same, or None.
        reads: the variables that it takes.
        makes: those that it makes and somebody reads.
        compiled: set where a result is sharded.
    """

    program: Any
    key: Hashable
    reads: list[Any]
    makes: list[Any]
    compiled: Any = None


def evaluate(
    jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], shardings: Sequence[Sharding | None]
) -> list[Any]:
    """The results of a program.

    Args:
        jaxpr: the program, without operations that nobody needs.
        consts: its constants.
        inputs: its inputs; None where it reads none.
        shardings: where each result is to be; None for wherever JAX puts it. One that is the
            same on all devices is made on one and copied.

    Returns:
        Arrays; where a sharding is given they have it. None is one of the constants or inputs,
        nor is one there twice: each is a variable's own, whose memory is given away in training.
    """
    steps = _compiled(_steps(jaxpr), _wanted(jaxpr, shardings))
    last_read = {v: index for index, step in enumerate(steps) for v in step.reads}
    results = {v for v in jaxpr.outvars if isinstance(v, Var)}
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
    for index, step in enumerate(steps):
        operands = [values[v] for v in step.reads]
        for v in step.reads:
            if last_read[v] == index and v not in results:
                del values[v]
        values.update(zip(step.makes, _run(step, operands), strict=True))
    found = [
        values[v] if isinstance(v, Var) else np.asarray(v.val, v.aval.dtype) for v in jaxpr.outvars
    ]
    others = {id(value) for value in (*consts, *inputs)}
    return [
        _owned(value, sharding, others) for value, sharding in zip(found, shardings, strict=True)
    ]


def _owned(value: Any, sharding: Sharding | None, others: set[int]) -> jax.Array:
    """A value where it is to be, and no one else's; `others` are those that are, by `id`."""
    if id(value) in others or not isinstance(value, jax.Array):
        return placing.copy_of(value, sharding)
    others.add(id(value))
    return value if sharding is None else placing.moved(value, sharding)


def _wanted(jaxpr: Any, shardings: Sequence[Sharding | None]) -> dict[Any, Sharding]:
    pairs = zip(jaxpr.outvars, shardings, strict=True)
    return {v: s for v, s in pairs if isinstance(v, Var) and s and not s.is_fully_replicated}


def _steps(jaxpr: Any) -> list[_Step]:
    read = {v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, Var)}
    read |= {v for v in jaxpr.outvars if isinstance(v, Var)}
    return [_step(jaxpr, eqn, read) for eqn in jaxpr.eqns]


def _step(jaxpr: Any, eqn: Any, read: set[Any]) -> _Step:
    reads = list(dict.fromkeys(v for v in eqn.invars if isinstance(v, Var)))
    makes = [v for v in eqn.outvars if v in read]
    alone = jaxpr.replace(eqns=[eqn], constvars=[], invars=reads, outvars=makes)
    operands = [(v.aval, reads.index(v) if isinstance(v, Var) else v.val) for v in eqn.invars]
    made = [v in read for v in eqn.outvars]
    key = (eqn.primitive, (*eqn.params.items(),), (*operands,), (*made,))
    return _Step(alone, _hashable(key), reads, makes)


def _hashable(key: Hashable) -> Hashable:
    """The key, or None where a part of it has no hash."""
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _compiled(steps: Sequence[_Step], wanted: dict[Any, Sharding]) -> list[_Step]:
    """Compiles what makes something sharded, from the last operation to the first."""
    known: dict[Hashable, Any] = {}  # most leaves of a model are made alike
    done = []
    for step in reversed(steps):
        shardings = tuple(wanted.get(v) for v in step.makes)
        if any(shardings):
            key = step.key and (step.key, shardings)
            compiled = known.get(key) or _compile(step, shardings)
            if key:
                known[key] = compiled
            step = step._replace(compiled=compiled)
            for v, sharding in zip(step.reads, compiled.input_shardings[0], strict=True):
                if sharding is not None and not sharding.is_fully_replicated:
                    wanted.setdefault(v, sharding)  # another reader gets it from there
        done.append(step)
    return done[::-1]


def _compile(step: _Step, shardings: tuple[Sharding | None, ...]) -> Any:
    specs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in step.reads]
    run = functools.partial(jax.core.eval_jaxpr, step.program, ())
    return jax.jit(run, out_shardings=list(shardings)).lower(*specs).compile()


def _run(step: _Step, operands: list[Any]) -> list[Any]:
    if step.compiled is None:
        results: list[Any] = jax.core.eval_jaxpr(step.program, (), *operands)
        return results
    return list(step.compiled(*map(_placed, operands, step.compiled.input_shardings[0])))


def _placed(operand: jax.Array, sharding: Sharding | None) -> jax.Array:
    """An operand where a step wants it; None stands for one that is not read after all.

    What is not committed to devices JAX moves itself, as long as nothing is split. Not
    `jax.device_put`, which knows no devices of other processes.
    """
    if sharding is None or operand.sharding.is_equivalent_to(sharding, operand.ndim):
        return operand
    if not operand.committed:
        if sharding.is_fully_replicated:
            return operand
        return jax.make_array_from_callback(operand.shape, sharding, operand.__getitem__)
    moved: jax.Array = jax.jit(lambda x: x, out_shardings=sharding)(operand)
    return moved
