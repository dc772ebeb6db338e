"""Time of the table of one mixture code over all pairs: counts, Gaussian, and their product.

    python -m benchmarks.bench_tables --threads 2

The package multiplies the factors in one pass. The plain path computes the same scores and weights
in separate passes: logarithm, sum, look-up, exponential; it is given what belongs to the counted
pairs. Tables are made one after the other in memory that was used before (`reused`), or all are
kept, so that the system has to hand out new pages (`fresh`). `copy ms` is the time of a copy of one
finished table in the same kind of memory. `max difference` is in nats, of the scores.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks._common import Compared, Flags, peak_mb, prepare, print_row, reset_peak, row
from benchmarks._plain import PlainTable, plain_table
from benchmarks.bench_sampling import METHODS, make_likelihood
from benchmarks.bench_sampling import Args as SamplingArgs
from jukebox_core.presets import PRESETS
from jukebox_core.separation.likelihood import FactoredScores, Likelihood
from jukebox_core.separation.posterior import FullTable, make_table
from scripts._cli import program

COLUMNS = {
    "method": "{method}",
    "memory": "{memory}",
    "ms": "{ms_per_position:.2f}",
    "plain ms": "{plain_ms_per_position:.2f}",
    "ratio": "{ratio:.1f}",
    "copy ms": "{copy_ms:.2f}",
    "max difference": "{max_difference:.1e}",
}


@dataclass(frozen=True)
class Args(Flags):
    """Flags."""

    positions: int = 4
    """Mixture codes, a table for each; `ms` is the least time of a table."""
    repeats: int = 10
    """Timed runs over all of them, in turns."""
    pairs: int = 20_000
    """Stored pairs per mixture code."""


@program
def main(args: Args) -> None:
    """Measure, print the table, and the JSON line."""
    methods = prepare(args, METHODS)
    sampling = SamplingArgs(preset=args.preset, pairs=args.pairs)
    print(f"{args.preset}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print_row(COLUMNS)
    rows = []
    for method in methods:
        likelihood = make_likelihood(method, PRESETS[args.preset], sampling)
        for memory in ("reused", "fresh"):
            rows.append(measure(method, likelihood, memory, args))
            print_row(COLUMNS, rows[-1])
    if args.json:
        print(json.dumps(rows))


def measure(method: str, likelihood: Likelihood, memory: str, args: Args) -> dict[str, Any]:
    """One row."""
    codes = [code % likelihood.n_codes for code in range(args.positions)]
    given = [_factored(likelihood, code) for code in codes]
    power = given[0].power
    log_rest = None if power is None else power.exponent * power.rest.log()
    lookup = None if given[0].gathered is None else given[0].gathered.lookup.int()
    finished = make_table(given[0], likelihood.n_codes)
    assert isinstance(finished, FullTable)
    paths: dict[str, Callable[[int], Any]] = {
        "plain": lambda i: plain_table(given[i], log_rest, lookup),
        "ours": lambda i: make_table(likelihood.scores(codes[i]), likelihood.n_codes),
        "copy": lambda i: finished.weights.clone(),
    }
    least, peaks = dict.fromkeys(paths, float("inf")), dict.fromkeys(paths, 0.0)
    for _ in range(args.repeats + 1):  # with one to warm up: the least time counts
        for name, path in paths.items():
            reset_peak()
            kept = []
            for i in range(args.positions):
                began = time.perf_counter()
                made = path(i)
                least[name] = min(least[name], time.perf_counter() - began)
                if memory == "fresh":
                    kept.append(made)
                del made
            peaks[name] = max(peaks[name], peak_mb())
            del kept
    difference = max(
        _difference(paths["ours"](i), plain_table(given[i], log_rest, lookup))
        for i in range(args.positions)
    )
    timed = Compared(
        args.positions * least["ours"],
        args.positions * least["plain"],
        peaks["ours"],
        peaks["plain"],
        None,
        None,
    )
    more = {"memory": memory, "copy_ms": 1e3 * least["copy"]}
    return row(args, method, 1, args.positions, timed, difference, **more)


def _factored(likelihood: Likelihood, code: int) -> FactoredScores:
    scores = likelihood.scores(code)
    assert isinstance(scores, FactoredScores)
    return scores


def _difference(table: object, plain: PlainTable) -> float:
    """The largest difference of scores, where both tables have a weight."""
    assert isinstance(table, FullTable)
    ours, theirs = table.weights.flatten(), plain.weights
    kept = (ours > 0) & (theirs > 0)
    logs = (x[kept].log().double() for x in (ours, theirs))
    one, other = (
        log + maximum.double()
        for log, maximum in zip(logs, (table.maximum, plain.maximum), strict=True)
    )
    return float((one - other).abs().max())


if __name__ == "__main__":
    sys.exit(main())
