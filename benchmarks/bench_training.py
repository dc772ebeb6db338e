"""Time and memory of one optimiser step of the codec and of the prior, against plain paths.

    python -m benchmarks.bench_training --threads 4 --json
    python -m benchmarks.bench_training --methods prior_checkpointed --depth 48 --no-plain

codec_top     only the codec's top level (`top_only`), which is enough for separation, on two
              crops. Plain: all levels.
codec_full    all levels. Plain: the same.
linear_top    as codec_top, with the LQ-VAE's linearisation. Plain: all levels with it.
prior         one sequence of the whole context. Plain: explicit T x T scores.
prior_checkpointed  the same with activation checkpointing, which the full depth needs in 16 GB.

A step is forward, backward, clipping, AdamW and the weight average; `plain` is float32 with AdamW
as it is. Both run in turns, the fastest of `--repeats` counts. The plain prior of full depth needs
more than 40 GiB: both are measured at `--depth` layers (six are two of each kind of attention).
`positions` are samples of the codec's crops, codes of the prior's; max_difference is the relative
difference of the first losses; it means nothing if the plain path trains other levels, too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks._common import Flags, compare, finish, prepare, row
from benchmarks._plain import PlainCodecObjective, PlainPriorObjective
from jukebox_core.config import Bandwidths, LossConfig, OptimConfig
from jukebox_core.presets import PRESETS
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.prior.objective import PriorObjective
from jukebox_core.training.optim import WeightAverage, build_optimizer
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ReconstructionObjective
from lqvae.objective import LinearisationObjective
from scripts._cli import program

METHODS = ("codec_top", "codec_full", "linear_top", "prior", "prior_checkpointed")
Step = Callable[[], float]


@dataclass(frozen=True)
class Args(Flags):
    """Flags."""

    candidates: tuple[int, ...] = (2,)
    """Crops of the codec's batch."""
    positions: int = 0
    """Codes of the prior's sequence, 0: its context."""
    crop: int = 0
    """Samples of the codec's crops, 0: the preset's."""
    depth: int = 6
    """Layers of the prior."""
    precision: Literal["32", "bf16-mixed"] = "32"
    """Precision of the package's path."""
    plain: bool = True
    """Measure the plain path, too."""


@program
def main(args: Args) -> None:
    """Measure and print."""
    rows = []
    for name in prepare(replace(args, positions=args.positions or 1), METHODS):
        for crops in (1,) if name.startswith("prior") else args.candidates:
            rows.append(measure(name, crops, args))
    if args.plain:
        finish(args, rows)
    else:
        for r in rows:
            print(f"{r['method']}: {r['ms']:.0f} ms, peak {r['peak_mb']:.0f} MiB, {r['about']}")


def measure(name: str, crops: int, args: Args) -> dict[str, Any]:
    """One row."""
    if name.startswith("prior"):
        batch, ours, plain = prior_objectives(args, checkpointed=name != "prior")
        about = f"{args.depth} layers, {args.precision}"
    else:
        batch, ours, plain = codec_objectives(name, crops, args)
        about = f"{name}, {args.precision}"
    step = training_step(ours, batch, args.precision)
    if not args.plain:
        step()
        timed = compare(step, lambda: None, repeats=args.repeats, warm_up=False)
        ms, peak = 1e3 * timed.seconds, timed.peak_mb
        return {"method": name, "about": about, "ms": ms, "peak_mb": peak}
    slow = training_step(plain, batch, "32", fused=False)
    first, plain_first = step(), slow()
    timed = compare(step, slow, repeats=args.repeats, warm_up=False)
    difference = abs(first - plain_first) / abs(plain_first)
    return row(args, name, len(batch), batch.shape[1], timed, difference, note=about)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a precision."""
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "32")


def training_step(
    objective: nn.Module,
    batch: Tensor,
    precision: str,
    fused: bool = True,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Step:
    """Forward, backward, clipping, update, average; returns the loss."""
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")
    config = OptimConfig()
    optimizer = build_optimizer(objective, config, fused=fused)
    average = WeightAverage(objective, config.ema_decay)
    parameters = list(objective.parameters())

    def step() -> float:
        with autocast(device, precision):
            output = objective(batch)
        loss = output if isinstance(output, Tensor) else output.loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        assert scaler.is_enabled() or math.isfinite(norm), norm
        scaler.step(optimizer)  # left out where a gradient overflows
        scaler.update()
        average.update(0)
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def codec_objectives(name: str, crops: int, args: Args) -> tuple[Tensor, nn.Module, nn.Module]:
    """A batch [B, T], ours and the plain path over codecs of the same weights."""
    preset = PRESETS[args.preset]
    config, linear = preset.vqvae, name.startswith("linear")
    everything = VQVAE(config)
    codec = VQVAE(replace(config, top_only=not name.endswith("full")))
    stored = everything.state_dict()
    codec.load_state_dict({key: stored[key] for key in codec.state_dict()})
    loss = LossConfig()
    ours: nn.Module = ReconstructionObjective(codec, loss, Bandwidths())
    if linear:
        ours = LinearisationObjective(codec, loss, Bandwidths())
    batch = 0.1 * torch.randn(crops, args.crop or preset.vqvae_train.crop)
    return batch, ours, PlainCodecObjective(everything, linear)


def prior_objectives(args: Args, checkpointed: bool) -> tuple[Tensor, nn.Module, nn.Module]:
    """Codes [1, T], ours and the plain path over priors of the same weights."""
    config = replace(PRESETS[args.preset].prior, depth=args.depth)
    prior, other = AutoregressivePrior(config), AutoregressivePrior(config)
    other.load_state_dict(prior.state_dict())
    prior.activation_checkpointing = checkpointed
    codes = torch.randint(config.l_bins, (1, args.positions or config.n_ctx))
    return codes, PriorObjective(None, prior), PlainPriorObjective(other)


if __name__ == "__main__":
    sys.exit(main())
