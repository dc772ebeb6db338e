"""What the device itself can do: bytes copied per second, and products of large matrices.

    python -m benchmarks.bench_device --device cuda --json
    python -m benchmarks.bench_device --threads 2

The floor of a computation is what it must read at this bandwidth, or multiply at this speed,
whichever takes longer; the other benchmarks state both amounts. A copied byte is read once and
written once, and counts twice.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from benchmarks._common import name_of, synchronise
from jukebox_core.checks import require_fields
from jukebox_core.machine import set_threads
from scripts._cli import program

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Args:
    """Flags."""

    device: str = "cpu"
    """cpu, cuda or cuda:1."""
    size: int = 4096
    """Rows and columns of the matrices."""
    megabytes: int = 512
    """Size of the copied memory."""
    types: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32", "bfloat16")
    """Types of the matrices; float32 without TF32."""
    repeats: int = 5
    """Timed runs; the fastest counts."""
    threads: int | None = None
    """CPU threads."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        require_fields(self, "size", "megabytes", "repeats", whole=True, at_least=1)


@program
def main(args: Args) -> None:
    """Measure and print."""
    set_threads(args.threads)
    row = measure(args)
    print(f"{row['device']}: copies {row['gbyte_per_second']:.1f} GB/s")
    for name, speed in row["tflops"].items():
        print(f"{name} products: {speed:.2f} TFLOP/s")
    if args.json:
        print(json.dumps([row]))


def measure(args: Args) -> dict[str, Any]:
    """The speeds of a device."""
    device = torch.device(args.device)
    return {
        "method": "device",
        "device": name_of(device),
        "gbyte_per_second": copying(args.megabytes, device, args.repeats) / 1e9,
        "tflops": {
            name: multiplying(args.size, TYPES[name], device, args.repeats) / 1e12
            for name in args.types
        },
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def faster(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The faster of each of the speeds of two measurements of a device."""
    tflops = {name: max(speed, other["tflops"][name]) for name, speed in one["tflops"].items()}
    bandwidth = max(one["gbyte_per_second"], other["gbyte_per_second"])
    return one | {"gbyte_per_second": bandwidth, "tflops": tflops}


def copying(megabytes: int, device: torch.device, repeats: int) -> float:
    """Bytes read and written per second."""
    source = torch.ones(megabytes << 18, device=device)  # float32
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest(lambda: target.copy_(source), device, repeats)


def multiplying(size: int, dtype: torch.dtype, device: torch.device, repeats: int) -> float:
    """Operations per second of a product of square matrices."""
    one, other = torch.randn(2, size, size, device=device).to(dtype)
    out = torch.empty_like(one)
    return 2 * size**3 / fastest(lambda: torch.mm(one, other, out=out), device, repeats)


def fastest(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    taken = []
    for _ in range(repeats + 1):
        synchronise(device)
        began = time.perf_counter()
        run()
        synchronise(device)
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


if __name__ == "__main__":
    sys.exit(main())
