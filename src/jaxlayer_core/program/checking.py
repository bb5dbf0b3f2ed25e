"""What a program may contain. It may come from anywhere, and XLA runs what it is told to.

StableHLO computes with arrays, and nothing else, but for custom calls: these name a function of
the process, and give it what they like. One of them, which JAX uses for `jax.pure_callback`,
takes an address and calls it. So a program may only call functions that are known to compute.

That is all that is looked for here: that the bytes can be read, `trial` has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jax import export
from jax.extend.mlir import ir
from jax.interpreters import mlir

from jaxlayer_core.errors import ProgramError

_LAPACK = ("potrf", "geqrf", "geev", "gesdd", "getrf", "gehrd", "gees", "trsm", "gtsv")
_LAPACK_REAL = ("orgqr", "syevd", "sytrd")
_LAPACK_COMPLEX = ("ungqr", "heevd", "hetrd")
_SOLVERS = ("getrf", "geqrf", "orgqr", "potrf", "syevd", "gesvd", "gesvdj")

ALLOWED = frozenset(
    {
        # Linear algebra, on the CPU, on GPUs and on TPUs.
        *(f"lapack_{letter}{name}_ffi" for letter in "sdcz" for name in _LAPACK),
        *(f"lapack_{letter}{name}_ffi" for letter in "sd" for name in _LAPACK_REAL),
        *(f"lapack_{letter}{name}_ffi" for letter in "cz" for name in _LAPACK_COMPLEX),
        *(f"{vendor}solver_{name}_ffi" for vendor in ("cu", "hip") for name in _SOLVERS),
        *(f"{vendor}_lu_pivots_to_permutation" for vendor in ("cu", "hip")),
        *("cusolver_sytrd_ffi", "hipsolver_gesdd_ffi"),
        *("cusparse_gtsv2_ffi", "Eigh", "Qr", "ProductOfElementaryHouseholderReflectors"),
        *("LuDecomposition", "ApproxTopK"),
        # Random bits.
        *("cu_threefry2x32_ffi", "hip_threefry2x32_ffi"),
        # Operations whose shapes are not known when they are stored.
        *("stablehlo.dynamic_approx_top_k", "stablehlo.dynamic_reduce_window"),
        *("stablehlo.dynamic_rng_bit_generator", "stablehlo.dynamic_top_k", "shape_assertion"),
        # What some versions of JAX write operations of their own as.
        *("chlo.ragged_dot", "mhlo.erf", "mhlo.topk"),
        # Where arrays are kept.
        *("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"),
        *("annotate_device_placement", "AllocateBuffer"),
    }
)
"""Custom calls that compute. JAX promises that programs with these stay loadable; of those that it
promises, the ones that carry code of their own are left out: kernels of Pallas, and calls of
TensorFlow."""

_DIALECTS = frozenset({"builtin", "chlo", "func", "sdy", "stablehlo"})
_OUTSIDE = frozenset(f"stablehlo.{name}" for name in ("infeed", "outfeed", "recv", "send"))


def check(exported: export.Exported, what: str) -> None:
    """Refuses a program that does anything but compute.

    Args:
        exported: the program; its gradient, if it has one, is checked, too.
        what: what it is, for errors.

    Raises:
        ProgramError: it has an operation or a custom call that is not known to be harmless.
    """
    for one in (exported, exported.vjp()) if exported.has_vjp() else (exported,):
        # JAX does not give out the parsed module, but its text, which MLIR itself has written.
        with mlir.make_ir_context():
            module = ir.Module.parse(one.mlir_module())
            for operation in _operations(module.operation):
                _check_operation(operation, what)


def _operations(operation: Any) -> Iterator[Any]:
    pending = [operation]
    while pending:
        one = pending.pop()
        yield one
        for region in one.regions:
            for block in region:
                pending.extend(inner.operation for inner in block)


def _check_operation(operation: Any, what: str) -> None:
    name: str = operation.name
    if name.partition(".")[0] not in _DIALECTS or name in _OUTSIDE:
        raise _refused(what, f"the operation {name!r}")
    if name == "stablehlo.custom_call":
        target = ir.StringAttr(operation.attributes["call_target_name"]).value
        if target not in ALLOWED:
            raise _refused(what, f"the custom call {target!r:.100}")


def _refused(what: str, contents: str) -> ProgramError:
    return ProgramError(
        f"{what} contains {contents}, which is not known to do nothing but compute, so it is "
        "refused. Programs that a model makes cannot hold callbacks to Python "
        "(jax.pure_callback, jax.debug.print), kernels of Pallas, or calls of other libraries."
    )
