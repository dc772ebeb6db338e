"""Memory and time of counting any number of triples of codes.

    python -m benchmarks.bench_counting --iterations 100000 --json
    python -m benchmarks.bench_counting --iterations 100000 --triples 8192 --buffer 8388608

The codes are SIMULATED by NumPy, not encoded from audio: each source's code is drawn from a skewed
distribution over the codebook; the mixture's code is a fixed function of the two, except for a
share of random ones. The seconds therefore measure only the counting. The second command has the
default sizes of scripts.count_sums (8 pairs of 1024 codes); it takes minutes and gigabytes of disk.

    spool MiB         sorted runs on disk
    resident MiB      resident memory of the process, with Python and libraries
    peak MiB          the largest since the row before (since the start, except on Linux)

The last row is the file of counts being written. `--json` ends the output with one line, an object:
the flags, `rows`, and the least and largest resident and peak memory of the rows after the warm-up,
which is the first quarter.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import peak_mb, print_row, reset_peak
from jukebox_core.checks import require_fields
from lass.counter import TripleCounter
from scripts._cli import program

COLUMNS = {
    "iterations": "{iterations}",
    "triples": "{triples}",
    "distinct": "{distinct:.0f}",
    "spool MiB": "{spool_mb:.0f}",
    "resident MiB": "{resident_mb:.0f}",
    "peak MiB": "{peak_mb:.0f}",
    "seconds": "{seconds:.1f}",
}
_BLOCK = 1 << 17  # triples simulated at once


@dataclass(frozen=True)
class Args:
    """Flags of benchmarks.bench_counting."""

    iterations: int = 100_000
    """Iterations, each one call of the counter."""
    triples: int = 512
    """Triples per iteration."""
    codes: int = 2048
    """Size of the codebook."""
    skew: float = 0.8
    """Exponent of the distribution: code k is drawn in proportion to (k + 1) ** -skew."""
    noise: float = 0.3
    """Share of the triples whose mixture code does not follow from the pair."""
    buffer: int = 1 << 19
    """Triples held in memory."""
    rows: int = 20
    """Rows of the table."""
    folder: Path | None = None
    """Where the spool is made and removed; default: the system's folder for such."""
    seed: int = 0
    """Random seed for the codes."""
    json: bool = False
    """End with one line of JSON."""


@program
def main(args: Args) -> None:
    """Count, and print the curve."""
    names = ("iterations", "triples", "codes", "buffer", "rows")
    require_fields(args, *names, whole=True, at_least=1)
    rows = []
    print_row(COLUMNS)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for row in measure(args, Path(folder)):
            print_row(COLUMNS, row)
            rows.append(row)
    warm = rows[len(rows) // 4 :]
    resident, peak = [row["resident_mb"] for row in warm], [row["peak_mb"] for row in warm]
    print(
        f"\nafter the first {len(rows) - len(warm)} rows: resident {min(resident):.0f} to "
        f"{max(resident):.0f} MiB, peak {min(peak):.0f} to {max(peak):.0f} MiB"
    )
    if args.json:
        flags = asdict(args) | {"folder": None}
        memory = {"smallest_mb": min(resident), "largest_mb": max(resident)}
        memory |= {"smallest_peak_mb": min(peak), "largest_peak_mb": max(peak)}
        print(json.dumps(flags | memory | {"rows": rows}, allow_nan=False))
    sys.stdout.flush()


def simulated(args: Args) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """First, second and mixture codes of every iteration, each [triples]."""
    generator = np.random.default_rng(args.seed)
    likely = np.cumsum(np.arange(1, args.codes + 1) ** -args.skew)
    drawn = np.searchsorted(likely / likely[-1], (np.arange(1 << 16) + 0.5) / (1 << 16))
    drawn = drawn.astype(np.int32)
    parts = generator.integers(args.codes, size=(2, args.codes))  # of a mixture's code

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return drawn[generator.integers(1 << 16, size=shape, dtype=np.uint16)]

    block = max(1, _BLOCK // args.triples)
    for start in range(0, args.iterations, block):
        first, second, other = draw((3, min(block, args.iterations - start), args.triples))
        follows = generator.random(other.shape, dtype=np.float32) >= args.noise
        mixture = np.where(follows, (parts[0, first] + parts[1, second]) % args.codes, other)
        yield from zip(first, second, mixture, strict=True)


def measure(args: Args, folder: Path) -> Iterator[dict[str, Any]]:
    """A row now and then while counting, and one of writing the file."""
    counter = TripleCounter(args.codes, folder / "spool", buffer=args.buffer)
    ends = {args.iterations * row // args.rows for row in range(1, args.rows + 1)}
    began = time.perf_counter()

    def row(iterations: int, distinct: int | None = None) -> dict[str, Any]:
        peak = peak_mb()
        reset_peak()  # the largest since then is what there is now
        runs = sum(run.stat().st_size for run in (folder / "spool").glob("run-*"))
        return {
            "iterations": iterations,
            "triples": iterations * args.triples,
            "distinct": distinct,
            "spool_mb": runs / (1 << 20),
            "resident_mb": peak_mb(),
            "peak_mb": peak,
            "seconds": time.perf_counter() - began,
        }

    reset_peak()
    for iteration, codes in enumerate(simulated(args), 1):
        counter.add(*codes)
        if iteration in ends:
            yield row(iteration)
    distinct = counter.save(folder / "counts.safetensors", {})
    yield row(args.iterations, int(distinct.sum()))


if __name__ == "__main__":
    sys.exit(main())
