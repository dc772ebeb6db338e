"""Training steps per second on a device, and the share of its speed that they reach.

    python -m benchmarks.bench_throughput --device cuda --preset t4 --precisions 16-mixed bf16-mixed
    python -m benchmarks.bench_throughput --preset tiny --threads 2

A step is forward, backward, clipping, the optimiser and the weight average, on `crops` crops at a
time: as many as `--batch auto` of the trainings would take, at most the preset's batch. `share` is
the FLOP of a step per second, divided by the fastest product of large matrices in the same type
that was measured in the same run (model FLOP utilisation). Recomputed activations do not count.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_device
from benchmarks._common import name_of, print_row
from benchmarks.bench_training import autocast, training_step
from jukebox_core.checks import require_fields
from jukebox_core.machine import set_threads
from jukebox_core.presets import PRESETS, Preset, PresetName
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.training.memory import crops_that_fit
from jukebox_core.training.run import compile_layers
from jukebox_core.vqvae import cpu
from scripts._cli import program
from scripts.training_memory import build

Unit = Literal["reconstruction", "linearisation", "prior", "prior, checkpointed"]
Precision = Literal["32", "bf16-mixed", "16-mixed"]
TYPES = {"32": "float32", "bf16-mixed": "bfloat16", "16-mixed": "float16"}
COLUMNS = {
    "training": "{method}",
    "precision": "{precision}",
    "compiled": "{compiled}",
    "crops": "{crops}",
    "ms": "{ms:.0f}",
    "crops/s": "{crops_per_second:.2f}",
    "TFLOP/s": "{tflops:.3g}",
    "share": "{share:.3f}",
    "peak MB": "{peak_mb:.0f}",
}


@dataclass(frozen=True)
class Args:
    """Flags."""

    device: str = "cpu"
    """cpu, cuda or cuda:1."""
    preset: PresetName = "paper"
    """Size of the models, whose weights are random."""
    units: tuple[Unit, ...] = ("reconstruction", "linearisation", "prior, checkpointed")
    """What to train."""
    precisions: tuple[Precision, ...] = ("32", "bf16-mixed")
    """Precisions to measure."""
    compiled: tuple[bool, ...] = (False,)
    """Without (False) and with (True) torch.compile."""
    crops: int | None = None
    """Crops at a time; default: as many as fit."""
    repeats: int = 3
    """Timed steps; the fastest counts."""
    size: int = 4096
    """Rows of the matrices whose product is compared with."""
    threads: int | None = None
    """CPU threads."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        require_fields(self, "repeats", "size", whole=True, at_least=1)
        require_fields(self, "crops", optional=True, whole=True, at_least=1)


@program
def main(args: Args) -> None:
    """Measure and print."""
    set_threads(args.threads)
    device = torch.device(args.device)
    types: Any = tuple(dict.fromkeys(TYPES[precision] for precision in args.precisions))
    probe = bench_device.Args(args.device, size=args.size, megabytes=64, types=types, repeats=3)
    speeds = bench_device.measure(probe)["tflops"]
    print(f"{args.preset}, {name_of(device)}, torch {torch.__version__}")
    print_row(COLUMNS)
    rows = []
    for unit in args.units:
        for precision in args.precisions:
            for compiled in args.compiled:
                row = measure(unit, precision, compiled, args, device)
                row["share"] = row["tflops"] / speeds[TYPES[precision]]
                rows.append(row)
                print_row(COLUMNS, row)
    if args.json:
        print(json.dumps(rows))


def measure(
    unit: Unit, precision: Precision, compiled: bool, args: Args, device: torch.device
) -> dict[str, Any]:
    """One row, without `share`."""
    preset = PRESETS[args.preset]
    torch.manual_seed(0)
    objective, item = build(preset, unit)
    objective.to(device)
    item = filled(item, preset, device)
    most = batch_of(preset, unit)
    with autocast(device, precision):
        crops = args.crops or min(most, crops_that_fit(objective, item, device, 1))
    batch = item.repeat(max(1, crops // len(item)), 1)
    flop = flop_of(objective, item, device, precision) / len(item) * len(batch)
    if compiled:
        compile_layers(objective)  # of its parts too
        for part in objective.children():
            compile_layers(part)
    step = training_step(objective, batch, precision, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step()  # compiles, fills the optimiser's state
    seconds = bench_device.fastest(step, device, args.repeats)
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else math.nan
    return {
        "method": unit,
        "preset": args.preset,
        "precision": precision,
        "compiled": compiled,
        "crops": len(batch),
        "positions": batch.shape[1],
        "ms": 1e3 * seconds,
        "crops_per_second": len(batch) / seconds,
        "tflop_per_step": flop / 1e12,
        "tflops": flop / seconds / 1e12,
        "peak_mb": None if math.isnan(peak) else peak,
    }


def filled(item: Tensor, preset: Preset, device: torch.device) -> Tensor:
    """Random crops or codes in the place of zeros."""
    if item.is_floating_point():
        return 0.1 * torch.randn(item.shape, device=device)
    return torch.randint(preset.prior.l_bins, item.shape, device=device)


def batch_of(preset: Preset, unit: Unit) -> int:
    """The preset's batch."""
    train = preset.prior_train if unit.startswith("prior") else preset.vqvae_train
    return train.batch_size


def flop_of(
    objective: nn.Module, batch: Tensor, device: torch.device, precision: Precision
) -> float:
    """FLOP of forward and backward, without those of recomputed activations."""
    priors = [part for part in objective.modules() if isinstance(part, AutoregressivePrior)]
    before = [prior.activation_checkpointing for prior in priors]
    for prior in priors:
        prior.activation_checkpointing = False
    counting = FlopCounterMode(display=False)
    with counting as counter, cpu.own_forward(), autocast(device, precision):
        output = objective(batch)
        (output if isinstance(output, Tensor) else output.loss).backward()
    for prior, was in zip(priors, before, strict=True):
        prior.activation_checkpointing = was
    objective.zero_grad(set_to_none=True)
    return counter.get_total_flops()


if __name__ == "__main__":
    sys.exit(main())
