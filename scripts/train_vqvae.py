r"""Train a codec with the Jukebox loss (LASS) or with the LQ-VAE's loss (LQ-VAE, hybrid).

    python -m scripts.train_vqvae --objective linearisation --data prepared \
        --output runs/models/linearisation/vqvae --preset demo

Several GPUs, several machines:

    torchrun --nproc-per-node 4 -m scripts.train_vqvae --objective ... --device cuda
    python -m scripts.train_vqvae --objective ... --device cuda --devices 4

The run folder gets weights.safetensors, meta.json, metrics.csv and the training state. Ctrl-C and
SIGTERM write a checkpoint; the same command continues an interrupted run, and a larger
--train.steps continues a finished one.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, replace
from typing import Literal

import tyro

from jukebox_core.checkpoints import META, STATE, load_meta
from jukebox_core.checks import require_fields
from jukebox_core.config import (
    Bandwidths,
    LossConfig,
    OptimConfig,
    TrainConfig,
    VQVAEConfig,
    from_dict,
)
from jukebox_core.datasets.batches import collate
from jukebox_core.datasets.crops import Augmentation, CropDataset
from jukebox_core.separation.partial_sums import in_order
from jukebox_core.training.audio_logging import reconstructions
from jukebox_core.training.run import Run, RunSettings
from jukebox_core.training.trainer import CollapseWatch
from jukebox_core.vqvae.losses import bandwidths_of
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ReconstructionObjective
from lqvae.objective import LinearisationObjective
from scripts._cli import program
from scripts._training import FirstFlags


@dataclass(frozen=True, kw_only=True)
class Args:
    """Flags of scripts.train_vqvae."""

    run: tyro.conf.OmitArgPrefixes[RunSettings]
    objective: Literal["reconstruction", "linearisation"]
    """reconstruction: the Jukebox loss; linearisation: also the LQ-VAE's loss (eq. 7)."""
    train_on: Literal["mixtures", "sources", "both"] = "sources"
    """Audio of the training crops. For linearisation, the two halves of a batch are summed."""
    pairing: Literal["song", "random"] = "song"
    """Take all sources from the same place of one song, or each source from a random song."""
    gain_db: float = 0.0
    """Augmentation: scale every source by up to this many decibels, up or down."""
    polarity: bool = False
    """Augmentation: invert random sources."""
    transpose_semitones: int = 0
    """Augmentation: transpose every crop by up to this many semitones, up or down."""
    production: float = 0.0
    """Augmentation: process sources by effects, each with this probability."""
    bandwidth_seconds: float = 600.0
    """Seconds of audio on which the normalisers of the loss are measured."""
    vqvae: VQVAEConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        require_fields(self, "bandwidth_seconds", above=0)


def defaults(flags: FirstFlags) -> Args:
    """The preset's defaults."""
    preset = flags.values
    return Args(
        run=tyro.MISSING_NONPROP,
        objective=tyro.MISSING,
        vqvae=preset.vqvae,
        loss=preset.loss,
        optim=preset.vqvae_optim,
        train=flags.of_mixtures(preset.vqvae_train),
    )


def train_codec(args: Args, command: str) -> None:
    """Train, or continue a training."""
    with Run(args.run, args.optim, args.train) as run:
        _train(args, command, run)


def _train(args: Args, command: str, run: Run) -> None:
    data = run.open_data(args.vqvae.sample_rate)
    check(args, len(data.manifest.sources))
    augmentation = Augmentation(
        args.gain_db, args.polarity, args.transpose_semitones, args.production
    )
    identity = run.identity(data) | {
        "kind": "vqvae",
        "objective": args.objective,
        "config": asdict(args.vqvae),
        "loss": asdict(args.loss),
        "train_on": args.train_on,
        "pairing": args.pairing,
        "augmentation": asdict(augmentation),
    }
    if run.already_finished(identity):
        return
    alpha = in_order(data.manifest.alpha)
    plain = CropDataset(
        data.train,
        args.train_on,
        args.train.crop,
        alpha,
        run.train.seed,
        args.run.skip_silent,
        args.pairing,
    )
    items = replace(plain, augmentation=augmentation)

    def objective(codec: VQVAE, bandwidths: Bandwidths) -> ReconstructionObjective:
        if args.objective == "reconstruction":
            return ReconstructionObjective(codec, args.loss, bandwidths)
        return LinearisationObjective(codec, args.loss, bandwidths, tuple(alpha.values()))

    run.require(lambda: objective(VQVAE(args.vqvae), Bandwidths()), items.rows, args.train.crop)
    bandwidths = stored_bandwidths(args) or measure_bandwidths(args, items)
    codec = VQVAE(args.vqvae)
    run.fit(
        objective(codec, bandwidths),
        codec,
        items,
        lambda: replace(plain, tracks=data.validation),
        meta=identity | run.meta(command) | {"bandwidths": asdict(bandwidths)},
        collapse=CollapseWatch(args.vqvae.l_bins),
        media=lambda batch: reconstructions(codec, batch, items.names),
    )


def check(args: Args, sources: int) -> None:
    """Refuse settings that cannot be trained, before any audio is read.

    Raises:
        ValueError: the crop is not a multiple of the hop or too short for the loss, or
            linearisation has only one source.
    """
    crop, hop = args.train.crop, args.vqvae.hop
    if crop % hop:
        raise ValueError(f"--train.crop is {crop}, not a multiple of the hop, {hop} samples")
    stfts = (args.loss.spectral_stft, *args.loss.multispectral_stfts)
    longest = max(n_fft for n_fft, _, _ in stfts)
    if crop <= longest // 2:
        raise ValueError(
            f"--train.crop is {crop}; the loss with n_fft {longest} needs a longer one"
        )
    if args.objective == "linearisation" and sources < 2:
        raise ValueError(f"linearisation mixes two sources or more, {args.run.data} has {sources}")


def stored_bandwidths(args: Args) -> Bandwidths | None:
    """The normalisers of the run that continues, if any."""
    if not (args.run.output / STATE).is_file():
        return None
    try:
        return from_dict(Bandwidths, load_meta(args.run.output).get("bandwidths"))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{args.run.output / META}: {error}") from error


def measure_bandwidths(args: Args, items: CropDataset) -> Bandwidths:
    """Measure the normalisers on `bandwidth_seconds` of training crops, at most one epoch."""
    samples = args.bandwidth_seconds * args.vqvae.sample_rate / items.rows
    count = math.ceil(min(samples, items.samples) / items.crop)
    batches = (
        collate([items[index] for index in range(first, min(first + 8, count))])
        for first in range(0, count, 8)
    )
    return bandwidths_of(batches, args.loss.spectral_stft)


main = program(train_codec, defaults)

if __name__ == "__main__":
    sys.exit(main())
