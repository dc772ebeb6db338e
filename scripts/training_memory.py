"""What a training step needs of the memory, and how many crops fit a GPU.

    python -m scripts.training_memory --preset t4 --memory 16
    python -m scripts.training_memory --preset paper --memory 16 80 --json

Parameters, gradients, AdamW's moments and the weight average are counted; activations are measured,
as what a forward pass keeps for the backward pass, in fake tensors: it takes neither memory nor a
GPU. `crops` are those computed at a time that fit a device of so many GB, with 30% of it left
free for what comes and goes; `--batch auto` of the training scripts measures on the device itself.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from jukebox_core.checks import require_fields, require_types
from jukebox_core.config import PRESETS, Bandwidths, LossConfig, Preset
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

    preset: Literal["tiny", "demo", "small", "t4", "paper", "jukebox_5b"] = "t4"
    """Size."""
    memory: tuple[float, ...] = (16.0,)
    """Devices' memory in GB."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_types(self)
        if not self.memory:
            raise ValueError("memory is empty, expected one size or more")
        require_fields(self, "memory", above=0)


@program
def main(args: Args) -> None:
    """Measure and print."""
    preset = PRESETS[args.preset]
    rows, lines = [], []
    for unit in _UNITS:
        for precision in ("32", "16-mixed"):
            found = measure(preset, unit, precision)
            fits = {f"{memory:g}": crops(found, memory) for memory in args.memory}
            rows.append({"unit": unit, "precision": precision, **found._asdict(), "crops": fits})
            sizes = (f"{value / 1e6:.0f}" for value in found)
            lines.append([unit, precision, *sizes, *map(str, fits.values())])
    head = ["", "precision", "parameters", "gradients", "optimiser", "average", "activations"]
    head += [f"crops in {memory:g} GB" for memory in args.memory]
    print(f"{args.preset}; MB, activations of one crop\n{text_table([head, *lines])}")
    if args.json:
        print(json.dumps(rows))


def crops(needed: TrainingBytes, memory: float) -> int:
    """How many fit a device of `memory` GB; 0: not even one."""
    return max(0, int((SHARE * memory * 1e9 - needed.fixed) / needed.activations))


def measure(preset: Preset, unit: str, precision: str) -> TrainingBytes:
    """Of one kind of training, in fake tensors."""
    with fake_tensors(), torch.autocast("cpu", torch.bfloat16, enabled=precision != "32"):
        objective, batch = build(preset, unit)
        return training_bytes(objective, batch)


def build(preset: Preset, unit: str) -> tuple[nn.Module, Tensor]:
    """The objective and a batch of the fewest crops."""
    if unit.startswith("prior"):
        prior = AutoregressivePrior(preset.prior)
        prior.activation_checkpointing = unit != "prior"
        codes = preset.prior_train.crop // preset.vqvae.hop
        return PriorObjective(None, prior), torch.zeros(1, codes, dtype=torch.int64)
    codec = VQVAE(preset.vqvae)
    kind = {"reconstruction": ReconstructionObjective, "linearisation": LinearisationObjective}
    objective = kind[unit](codec, LossConfig(), Bandwidths())
    return objective, torch.zeros(2, preset.vqvae_train.crop)


if __name__ == "__main__":
    sys.exit(main())
