"""Compare the cost per chunk of the three systems, trained models side by side in one process.

    python -m benchmarks.bench_methods --models runs/demo/models --data runs/demo/data --threads 4

Candidates, selection and mask of the same chunks, with the default settings of `scripts.separate`.
The systems take turns, in another order every turn, after one warm-up turn; the seconds of a turn
are paired. Ratios are geometric means over the turns with 95% intervals, bootstrapped over the
turns. They hold only for this machine and time.

`--json` ends the output with one line, a list of objects:

    method      lqvae, lass or hybrid
    candidates  per chunk
    positions   codes of a chunk
    seconds     per chunk, {mean, low, high, n} over the turns
    parts       {candidates, selection, mask}: mean seconds per chunk
    turns       seconds per chunk of every turn
    ratio       of the hybrid's seconds to this method's, {mean, low, high, n}; null for the hybrid

and threads, chunks, settings.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jukebox_core.checks import require_fields
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation.bootstrap import Interval, bootstrap_mean
from jukebox_core.evaluation.chunks import choose_chunks, silence_rule
from jukebox_core.machine import set_threads
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.settings import Settings
from scripts._cli import program
from scripts._methods import METHODS, default_methods
from scripts._results import text_table

PARTS = ("candidates", "selection", "mask")
Seconds = dict[str, float]
"""{part: seconds} of one turn."""


@dataclass(frozen=True)
class Args:
    """Flags of benchmarks.bench_methods."""

    models: Path
    """Folder of trained models."""
    data: Path
    """Prepared data set."""
    split: str = "validation"
    """Whose songs."""
    chunks: int = 4
    """Chunks, separated together."""
    candidates: int = 32
    """Joint candidates per chunk."""
    chunk_codes: int = 1024
    """Codes per chunk, at most the models' window."""
    repeats: int = 10
    """Timed turns, at least 2."""
    threads: int | None = None
    """CPU threads; none given: PyTorch's choice."""
    seed: int = 0
    """Random seed for chunks and sampling."""
    json: bool = False
    """End with one line of JSON."""


@program
def main(args: Args) -> None:
    """Measure, print the table and the ratios, and the JSON line."""
    require_fields(args, "chunks", "candidates", "chunk_codes", whole=True, at_least=1)
    require_fields(args, "repeats", whole=True, at_least=2)
    set_threads(args.threads)
    methods = {name: METHODS[name] for name in default_methods(args.models)}
    systems = {
        name: method.load_separator(args.models, device="cpu", candidates=args.candidates)
        for name, method in methods.items()
    }
    positions = min(args.chunk_codes, *(system.window for system in systems.values()))
    length = positions * next(iter(systems.values())).codec.config.hop
    manifest, rule = load_manifest(args.data), silence_rule(False)[1]
    chunks = choose_chunks(manifest, args.split, args.chunks, length, args.seed, rule)[0]
    mixtures = torch.stack([chunk.mixture for chunk in chunks])
    runs: dict[str, Callable[[int], Seconds]] = {
        name: partial(separate, system, mixtures) for name, system in systems.items()
    }
    turns = take_turns(runs, range(args.seed, args.seed + args.repeats))
    rows = [
        {
            "method": method,
            "candidates": args.candidates,
            "positions": positions,
            **costs(turns, method, len(chunks)),
            "threads": torch.get_num_threads(),
            "chunks": len(chunks),
            "settings": vars(METHODS[method].resolve(Settings(), args.models)),
        }
        for method in methods
    ]
    print(f"{len(chunks)} chunks, {args.candidates} candidates, {args.repeats} turns, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; seconds per chunk\n")
    head = ["method", "seconds", "95%", *PARTS, "hybrid / it", "95%"]
    print(text_table([head, *map(_cells, rows)]))
    if args.json:
        print(json.dumps(rows, allow_nan=False))


def _cells(row: Mapping[str, Any]) -> list[str]:
    def cells(interval: Mapping[str, float] | None) -> list[str]:
        if interval is None:
            return ["-", "-"]
        return [f"{interval['mean']:.3f}", f"{interval['low']:.3f} to {interval['high']:.3f}"]

    parts = [f"{row['parts'][name]:.3f}" for name in PARTS]
    return [row["method"], *cells(row["seconds"]), *parts, *cells(row["ratio"])]


@torch.no_grad()
def separate(system: Separator, mixtures: Tensor, seed: int) -> Seconds:
    """Seconds of every part of the way from mixtures [B, T] to raw and refined stems."""
    generator = torch.Generator().manual_seed(seed)
    times = [time.perf_counter()]
    candidates = system.candidates(mixtures, generator)
    times.append(time.perf_counter())
    system.selection(mixtures, candidates)
    times.append(time.perf_counter())
    system.mask(mixtures, candidates, system.weights(mixtures, candidates))
    times.append(time.perf_counter())
    return {name: times[i + 1] - times[i] for i, name in enumerate(PARTS)}


def take_turns(
    runs: Mapping[str, Callable[[int], Seconds]], seeds: range
) -> dict[str, list[Seconds]]:
    """{name: what every turn took}, each run once per turn, the order moved on every turn.

    Args:
        runs: {name: does the work of a turn, given a seed}.
        seeds: one for every turn that counts; before them is one that does not.
    """
    names, turns = list(runs), {name: list[Seconds]() for name in runs}
    for turn in range(-1, len(seeds)):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            turns[name].append(runs[name](seeds.start + turn))
    return {name: took[1:] for name, took in turns.items()}


def costs(turns: Mapping[str, Sequence[Seconds]], method: str, chunks: int) -> dict[str, Any]:
    """seconds, parts, turns and ratio of a method, as in the JSON; `turns` are of all chunks."""
    totals = {name: [sum(took.values()) / chunks for took in turns[name]] for name in turns}
    own = totals[method]
    return {
        "seconds": bootstrap_mean(own)._asdict(),
        "parts": {
            part: sum(took[part] for took in turns[method]) / len(own) / chunks for part in PARTS
        },
        "turns": own,
        "ratio": None if method == "hybrid" else paired_ratio(totals["hybrid"], own)._asdict(),
    }


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The geometric mean of first / second over the turns, with its bootstrap interval."""
    logs = [math.log(a / b) for a, b in zip(first, second, strict=True)]
    mean, low, high, n = bootstrap_mean(logs)
    return Interval(math.exp(mean), math.exp(low), math.exp(high), n)


if __name__ == "__main__":
    sys.exit(main())
