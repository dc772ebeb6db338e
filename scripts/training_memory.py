"""Estimate the memory of a training step, and how many crops fit on a GPU.

    python -m scripts.training_memory --preset t4 --memory 16
    python -m scripts.training_memory --preset paper --memory 16 80 --json

It counts parameters, gradients, AdamW's moments and the weight average, and measures activations,
which a forward pass keeps for the backward pass; fake tensors need neither memory nor a GPU.
`crops` is the number of crops that fit a device at a time, with 30% of its memory left for
temporaries; `--batch auto` of the training programs measures on the device itself.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jukebox_core.checks import require_fields, require_types
from jukebox_core.config import Bandwidths, LossConfig
from jukebox_core.presets import PRESETS, Preset, PresetName
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.prior.objective import PriorObjective
from jukebox_core.training.memory import SHARE, TrainingBytes, fake_tensors, training_bytes
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ReconstructionObjective
from lqvae.objective import LinearisationObjective
from scripts._cli import program
from scripts._results import text_table

_UNITS = ("reconstruction", "linearisation", "prior", "prior, checkpointed")


@dataclass(frozen=True)
class Args:
    """Flags of scripts.training_memory."""

    preset: PresetName = "t4"
    """Size of the models."""
    memory: tuple[float, ...] = (16.0,)
    """Memory of the devices in GB."""
    sources: int = 2
    """Number of sources; of the linearisation, whose sums of sources are encoded too."""
    json: bool = False
    """Print the table as JSON at the end, in one line."""

    def __post_init__(self) -> None:
        require_types(self)
        if not self.memory:
            raise ValueError("memory is empty, expected one size or more")
        require_fields(self, "memory", above=0)
        require_fields(self, "sources", whole=True, at_least=2)


@program
def main(args: Args) -> None:
    """Measure and print."""
    preset = PRESETS[args.preset]
    rows, lines = [], []
    for unit in _UNITS:
        for precision in ("32", "16-mixed"):
            needed = measure(preset, unit, precision, args.sources)
            fits = {f"{memory:g}": crops(needed, memory) for memory in args.memory}
            rows.append({"unit": unit, "precision": precision, **needed._asdict(), "crops": fits})
            sizes = (f"{value / 1e6:.0f}" for value in needed)
            lines.append([unit, precision, *sizes, *map(str, fits.values())])
    head = ["", "precision", "parameters", "gradients", "optimiser", "average", "activations"]
    head += [f"crops in {memory:g} GB" for memory in args.memory]
    print(f"{args.preset}; MB, activations of one crop\n{text_table([head, *lines])}")
    if args.json:
        print(json.dumps(rows))


def crops(needed: TrainingBytes, memory: float) -> int:
    """Number of crops that fit a device of `memory` GB; 0: not even one."""
    return max(0, int((SHARE * memory * 1e9 - needed.fixed) / needed.activations))


def measure(preset: Preset, unit: str, precision: str, sources: int = 2) -> TrainingBytes:
    """Measure one kind of training, in fake tensors."""
    with fake_tensors(), torch.autocast("cpu", torch.bfloat16, enabled=precision != "32"):
        objective, batch = build(preset, unit, sources)
        return training_bytes(objective, batch)


def build(preset: Preset, unit: str, sources: int = 2) -> tuple[nn.Module, Tensor]:
    """The objective and its smallest batch."""
    if unit.startswith("prior"):
        prior = AutoregressivePrior(preset.prior)
        prior.activation_checkpointing = unit != "prior"
        codes = preset.prior_train.crop // preset.vqvae.hop
        return PriorObjective(None, prior), torch.zeros(1, codes, dtype=torch.int64)
    codec = VQVAE(preset.vqvae)
    objective: nn.Module = ReconstructionObjective(codec, LossConfig(), Bandwidths())
    if unit == "linearisation":
        alpha = [1 / sources] * sources
        objective = LinearisationObjective(codec, LossConfig(), Bandwidths(), alpha)
    return objective, torch.zeros(sources, preset.vqvae_train.crop)


if __name__ == "__main__":
    sys.exit(main())
