"""Shared parts of the benchmarks: flags, interleaved timing, peak memory, table, JSON line.

    python -m benchmarks.bench_codec --threads 4 --json
    python -m benchmarks.bench_scoring --threads 4 --json

Every benchmark has a plain path, written in the obvious way, and times it in turns with the
package's path in one run: both see the same noise of the machine. The least time of each counts.

`--json` ends the output with one line, a list of objects that always have the keys `KEYS`:

    method                  what is measured, by the name that `--methods` takes
    candidates              number of candidates or estimates, or items in the batch
    positions               codes of the chunk (of `code_sums`: rows of the table)
    ms_per_position         milliseconds of the whole operation / positions
    plain_ms_per_position   the same for the plain path; scaled up if it did a part of the work
    ratio                   plain_ms_per_position / ms_per_position
    peak_mb                 largest resident memory (MiB) of the process while the package's
                            path ran, with Python, libraries and weights

and further ones: ms, plain_ms, plain_peak_mb, max_difference (of the two paths' results, in the
unit that the benchmark states), threads, preset.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

__all__ = [
    "KEYS",
    "Compared",
    "Flags",
    "chosen",
    "compare",
    "finish",
    "peak_mb",
    "prepare",
    "reset_peak",
    "row",
]

KEYS = (
    "method",
    "candidates",
    "positions",
    "ms_per_position",
    "plain_ms_per_position",
    "ratio",
    "peak_mb",
)
T = TypeVar("T")
P = TypeVar("P")


@dataclass(frozen=True)
class Flags:
    """Flags of every benchmark."""

    methods: tuple[str, ...] = ()
    """Names to measure; default: all."""
    candidates: tuple[int, ...] = (64,)
    """Numbers of candidates, each measured."""
    positions: int = 1024
    """Codes of a chunk (1024 of the paper's are 65,536 samples, 3 s)."""
    threads: int | None = None
    """CPU threads; none given: PyTorch's choice."""
    preset: Literal["tiny", "demo", "small", "t4", "paper", "jukebox_5b"] = "paper"
    """Size of the models, whose weights are random."""
    repeats: int = 3
    """Timed runs of either path; the fastest counts."""
    seed: int = 0
    """Random seed for weights and data."""
    json: bool = False
    """End with one line of JSON."""


def prepare(args: Flags) -> None:
    """Check the numbers among the flags; set threads and seed.

    Raises:
        ValueError: a number is below one.
    """
    numbers = {"candidates": min(args.candidates, default=0), "positions": args.positions}
    numbers |= {"threads": 1 if args.threads is None else args.threads, "repeats": args.repeats}
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"--{name} is {number}, expected at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)


def chosen(args: Flags, known: Sequence[str]) -> tuple[str, ...]:
    """The methods to measure.

    Raises:
        ValueError: one is unknown.
    """
    unknown = [name for name in args.methods if name not in known]
    if unknown:
        raise ValueError(f"--methods {' '.join(unknown)}: expected any of {' '.join(known)}")
    return args.methods or tuple(known)


@dataclass(frozen=True)
class Compared(Generic[T, P]):
    """Two paths timed side by side: seconds, peak memory in MiB, and what they returned."""

    seconds: float
    plain_seconds: float
    peak_mb: float
    plain_peak_mb: float
    result: T
    plain_result: P


def compare(
    ours: Callable[[], T],
    plain: Callable[[], P],
    *,
    repeats: int = 3,
    plain_repeats: int | None = None,
    plain_part: float = 1.0,
    warm_up: bool = True,
) -> Compared[T, P]:
    """Run both paths in turns; the least time of each counts.

    Args:
        ours: the package's own path.
        plain: the reference path.
        repeats: timed runs of ours.
        plain_repeats: timed runs of the plain path, at most `repeats` (None: as many), for one that
            takes long.
        plain_part: share of the work that the plain path does; its time is divided by it.
        warm_up: run both once before, untimed.
    """
    plain_repeats = repeats if plain_repeats is None else plain_repeats
    if not 1 <= plain_repeats <= repeats:
        raise ValueError(f"plain_repeats is {plain_repeats}, expected 1 to {repeats}")
    if warm_up:
        plain(), ours()
    seconds = plain_seconds = math.inf
    peak = plain_peak = 0.0
    for turn in range(repeats):
        if turn < plain_repeats:
            plain_result, took, high = _timed(plain)
            plain_seconds, plain_peak = min(plain_seconds, took), max(plain_peak, high)
        result, took, high = _timed(ours)
        seconds, peak = min(seconds, took), max(peak, high)
    return Compared(seconds, plain_seconds / plain_part, peak, plain_peak, result, plain_result)


def row(
    args: Flags,
    method: str,
    candidates: int,
    positions: int,
    compared: Compared[Any, Any],
    max_difference: float,
    **more: Any,
) -> dict[str, Any]:
    """One item of the JSON."""
    ms, plain_ms = 1000 * compared.seconds, 1000 * compared.plain_seconds
    return {
        "method": method,
        "candidates": candidates,
        "positions": positions,
        "ms_per_position": ms / positions,
        "plain_ms_per_position": plain_ms / positions,
        "ratio": plain_ms / ms,
        "peak_mb": compared.peak_mb,
        "plain_peak_mb": compared.plain_peak_mb,
        "ms": ms,
        "plain_ms": plain_ms,
        "max_difference": max_difference,
        "threads": torch.get_num_threads(),
        "preset": args.preset,
    } | more


def finish(args: Flags, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table and, if asked for, the JSON line."""
    print(f"{args.preset}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    heads = ["method", "candidates", "positions", "ms", "plain ms", "ms / position"]
    heads += ["plain ms / position", "ratio", "peak MB", "plain peak MB", "max difference"]
    cells = [heads, *([str(x) for x in _cells(r)] for r in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = [line[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(padded))
    for r in rows:
        if "note" in r:
            print(f"{r['method']}, {r['candidates']}: {r['note']}")
    if args.json:
        print(json.dumps(list(rows), allow_nan=False))
    sys.stdout.flush()


def _cells(r: dict[str, Any]) -> list[Any]:
    cells = [r["method"], r["candidates"], r["positions"], f"{r['ms']:.2f}", f"{r['plain_ms']:.2f}"]
    cells += [f"{r['ms_per_position']:.4f}", f"{r['plain_ms_per_position']:.4f}"]
    cells += [f"{r['ratio']:.1f}", f"{r['peak_mb']:.0f}", f"{r['plain_peak_mb']:.0f}"]
    return [*cells, f"{r['max_difference']:.1e}"]


def _timed(path: Callable[[], T]) -> tuple[T, float, float]:
    """Result, seconds and peak memory in MiB of one call."""
    reset_peak()
    began = time.perf_counter()
    result = path()
    took = time.perf_counter() - began
    return result, took, peak_mb()


def reset_peak() -> None:
    """Let the kernel forget the peak so far; where it cannot, the peak is of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        pass


def peak_mb() -> float:
    """Largest resident memory since the last reset, in MiB."""
    return _memory_mb("VmHWM")


def _memory_mb(field: str) -> float:
    """A field of Linux's /proc/self/status; elsewhere `ru_maxrss`, the process's largest so far.

    NaN on Windows, which has neither.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(int(x.split()[1]) for x in status.splitlines() if x.startswith(field)) / 1024
    except (OSError, StopIteration):
        try:
            import resource
        except ImportError:
            return math.nan
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest / (1 << 20 if sys.platform == "darwin" else 1 << 10)
