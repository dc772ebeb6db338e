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
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from jukebox_core.checks import require, require_choice, require_fields
from jukebox_core.machine import set_threads

KEYS = "method candidates positions ms_per_position plain_ms_per_position ratio peak_mb".split()
_COLUMNS = {
    "method": "{method}",
    "candidates": "{candidates}",
    "positions": "{positions}",
    "ms": "{ms:.2f}",
    "plain ms": "{plain_ms:.2f}",
    "ms / position": "{ms_per_position:.4f}",
    "plain ms / position": "{plain_ms_per_position:.4f}",
    "ratio": "{ratio:.1f}",
    "peak MB": "{peak_mb:.0f}",
    "plain peak MB": "{plain_peak_mb:.0f}",
    "max difference": "{max_difference:.1e}",
}


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


def prepare(args: Flags, methods: Sequence[str]) -> Sequence[str]:
    """Check the flags; set threads and seed.

    Returns:
        The methods to measure, some of `methods`.

    Raises:
        ValueError: a number is below one, or a method is unknown.
    """
    require("candidates", min(args.candidates, default=0), whole=True, at_least=1)
    require_fields(args, "positions", "repeats", whole=True, at_least=1)
    for name in args.methods:
        require_choice("methods", name, methods)
    set_threads(args.threads)
    torch.manual_seed(args.seed)
    return args.methods or methods


class Compared(NamedTuple):
    """Two paths timed side by side: seconds, peak memory in MiB, and what they returned."""

    seconds: float
    plain_seconds: float
    peak_mb: float
    plain_peak_mb: float
    result: Any
    plain_result: Any


def compare(
    ours: Callable[[], Any],
    plain: Callable[[], Any],
    *,
    repeats: int = 3,
    plain_repeats: int | None = None,
    plain_part: float = 1.0,
    warm_up: bool = True,
) -> Compared:
    """Run both paths in turns; the least time of each counts.

    Args:
        ours: the package's own path.
        plain: the reference path.
        repeats: timed runs of ours.
        plain_repeats: timed runs of the plain path, for one that takes long; default: `repeats`.
        plain_part: share of the work that the plain path does; its time is divided by it.
        warm_up: run both once before, untimed.
    """
    if warm_up:
        plain(), ours()
    seconds = plain_seconds = math.inf
    peak = plain_peak = 0.0
    for turn in range(repeats):
        if plain_repeats is None or turn < plain_repeats:
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
    compared: Compared,
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


def print_row(columns: Mapping[str, str], values: Mapping[str, Any] | None = None) -> None:
    """Print a line of a table; nan for None.

    Args:
        columns: {head: format of a cell}.
        values: of the row; None: print the heads.
    """
    heads = cells = list(columns)
    if values is not None:
        known = {name: math.nan if x is None else x for name, x in values.items()}
        cells = [cell.format(**known) for cell in columns.values()]
    padded = (
        cell.rjust(max(8, len(head))) for head, cell in zip(heads[1:], cells[1:], strict=True)
    )
    print(cells[0].ljust(18), *padded, sep="  ", flush=True)


def finish(args: Flags, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table and, if asked for, the JSON line."""
    print(f"{args.preset}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print_row(_COLUMNS)
    for r in rows:
        print_row(_COLUMNS, r)
    for r in rows:
        if "note" in r:
            print(f"{r['method']}, {r['candidates']}: {r['note']}")
    if args.json:
        print(json.dumps(list(rows), allow_nan=False))


def name_of(device: torch.device) -> str:
    """The GPU's name, or `cpu` with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(path: Callable[[], Any]) -> tuple[Any, float, float]:
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
    """Largest resident memory in MiB since the last reset, where Linux can tell it.

    Elsewhere: of the process so far; NaN on Windows.
    """
    status = Path("/proc/self/status")
    text = status.read_text(encoding="utf-8") if status.is_file() else ""
    if peak := re.search(r"^VmHWM:\s*(\d+)", text, re.M):
        return int(peak[1]) / 1024
    try:
        import resource
    except ImportError:
        return math.nan
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1 << 20 if sys.platform == "darwin" else 1 << 10)
