"""Sides in turn, medians, ratios; the memory of a process; results as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
SCALES = {"s": 1.0, "ms": 1e3, "us": 1e6, "MiB": 2.0**-20, "MiB/s": 2.0**-20}

Times = dict[str, list[float]]


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    found = argparse.ArgumentParser(description=description.partition("\n")[0])
    found.add_argument("--quick", action="store_true", help="few repeats, to see that it works")
    found.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of the files")
    return found


def interleave(sides: Mapping[str, Callable[[], float]], repeats: int) -> Times:
    """Takes the figure of each side in turn, so that a busy machine is busy for all."""
    found: Times = {side: [] for side in sides}
    for _ in range(repeats):
        for side, measure in sides.items():
            found[side].append(measure())
    return found


def seconds(run: Callable[[], Any], times: int = 1) -> float:
    """Seconds of one run; what it gives is waited for."""
    import jax

    start = time.perf_counter()
    for _ in range(times):
        result = run()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / times


def row(model: str, figure: str, unit: str, found: Times) -> dict[str, Any]:
    """Medians, and the ratios to the native side with their quartiles, where that is not 0."""
    result: dict[str, Any] = {"model": model, "figure": figure, "unit": unit}
    native = found.get("native", [0.0])
    for side, values in found.items():
        result[side] = float(f"{statistics.median(values) * SCALES[unit]:.4g}")
        if side != "native" and all(native):
            ratios = sorted(a / b for a, b in zip(values, native, strict=True))
            quarter = len(ratios) // 4
            result[f"{side}/native"] = round(statistics.median(ratios), 3)
            result[f"{side} spread"] = [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)]
    return result


def memory(field: str) -> int:
    """Bytes of this process: `VmRSS`, resident now, or `VmHWM`, its peak (Linux)."""
    status = pathlib.Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory_mark() -> int:
    """Forgets the peak so far and returns the memory resident now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    import importlib.metadata

    import jax

    packages = ("keras", "jax", "flax", "dm-haiku", "equinox", "optax")
    versions = {package: importlib.metadata.version(package) for package in packages}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["tensorflow"] = importlib.metadata.version("tensorflow-cpu")
    kind = jax.devices()[0].device_kind
    return {"device": kind, "cores": cores(), "machine": platform.machine(), **versions}


def write(folder: pathlib.Path, name: str, content: Mapping[str, Any]) -> None:
    """Writes results with what they depend on."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **content}, indent=1) + "\n")
    print(f"written to {os.path.relpath(path)}")


def show(rows: list[dict[str, Any]]) -> None:
    """Prints rows as a table."""
    for r in rows:
        others = [key[: -len("/native")] for key in r if key.endswith("/native")]
        ratios = "  ".join(
            f"{side} {r[f'{side}/native']:.2f} ({r[f'{side} spread'][0]:.2f} to "
            f"{r[f'{side} spread'][1]:.2f})"
            for side in others
        )
        base = f"{r['native']:>10.2f} {r['unit']}" if "native" in r else ""
        print(f"{r['model']:<12} {r['figure']:<22} {base:<16} {ratios}", flush=True)
