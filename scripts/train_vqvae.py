r"""Train a codec: the plain Jukebox loss (LASS) or with latent linearisation (LQ-VAE, hybrid).

    python -m scripts.train_vqvae --objective linearisation --data prepared \
        --output runs/models/linearisation/vqvae --preset demo

Several GPUs, several machines:

    torchrun --nproc-per-node 4 -m scripts.train_vqvae --objective ... --device cuda
    python -m scripts.train_vqvae --objective ... --device cuda --devices 4

The run folder holds weights.safetensors, meta.json, metrics.csv and the training state. Stopped at
any time (Ctrl-C and SIGTERM write a checkpoint first), the same command goes on; a larger
--train.steps continues a finished run.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from jukebox_core.checkpoints import META, STATE, load_meta
from jukebox_core.checks import require_fields
from jukebox_core.config import Bandwidths, LossConfig, VQVAEConfig, from_dict, to_dict
from jukebox_core.datasets.crops import Augmentation, CropDataset, collate
from jukebox_core.training.audio_logging import reconstructions
from jukebox_core.training.trainer import CollapseWatch
from jukebox_core.vqvae.losses import BandwidthMeter
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ReconstructionObjective
from lqvae.objective import LinearisationObjective
from scripts import _training as training


@dataclass(frozen=True, kw_only=True)
class Args(training.TrainingArgs):
    """Flags of scripts.train_vqvae."""

    objective: Literal["reconstruction", "linearisation"]
    """reconstruction: the Jukebox loss; linearisation: with the LQ-VAE's term."""
    train_on: Literal["mixtures", "sources", "both"] = "sources"
    """What the crops are. In linearisation the halves of a batch are its two summands."""
    pairing: Literal["song", "random"] = "song"
    """Sources of one song and place, or each from a song of its own."""
    gain_db: float = 0.0
    """Augmentation: scale every source by up to so many decibels either way."""
    polarity: bool = False
    """Augmentation: invert sources at random."""
    transpose_semitones: int = 0
    """Augmentation: resample every place, up to so many semitones up or down."""
    bandwidth_seconds: float = 600.0
    """Audio that the normalisers of the loss are measured on."""
    vqvae: VQVAEConfig = VQVAEConfig()
    loss: LossConfig = LossConfig()

    def __post_init__(self) -> None:
        """Refuse values out of range that no other class checks."""
        super().__post_init__()
        require_fields(self, "bandwidth_seconds", above=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run with flags (None: the process's) and return the exit status."""
    flags = training.given_argv(argv)
    preset = training.peek_preset(flags)
    defaults = {
        "vqvae": preset.vqvae,
        "loss": preset.loss,
        "optim": preset.vqvae_optim,
        "train": preset.vqvae_train,
    }

    def body(args: Args) -> None:
        train_codec(args, training.command_line("train_vqvae", flags))

    body.__annotations__["args"] = Args
    return training.run_with_presets(body, flags, defaults)


def train_codec(args: Args, command: str) -> None:
    """Train, or go on."""
    run = training.Run(args)
    data = run.open_data(args.vqvae.sample_rate)
    check(args, len(data.manifest.sources))
    augmentation = Augmentation(args.gain_db, args.polarity, args.transpose_semitones)
    identity = run.identity(data) | {
        "kind": "vqvae",
        "objective": args.objective,
        "config": to_dict(args.vqvae),
        "loss": to_dict(args.loss),
        "train_on": args.train_on,
        "pairing": args.pairing,
        "augmentation": asdict(augmentation),
    }
    if run.already_finished(identity):
        return
    plain = CropDataset(
        data.train,
        args.train_on,
        args.train.crop,
        data.manifest.alpha,
        run.train.seed,
        args.skip_silent,
        args.pairing,
    )
    items = replace(plain, augmentation=augmentation)
    alpha = tuple(data.manifest.alpha.values())

    def objective(codec: VQVAE, bandwidths: Bandwidths) -> ReconstructionObjective:
        if args.objective == "reconstruction":
            return ReconstructionObjective(codec, args.loss, bandwidths)
        return LinearisationObjective(codec, args.loss, bandwidths, alpha)

    run.require(lambda: objective(VQVAE(args.vqvae), Bandwidths()), items.rows, args.train.crop)
    bandwidths = known_bandwidths(args) or measure_bandwidths(args, items)
    codec = VQVAE(args.vqvae)
    run.fit(
        objective(codec, bandwidths),
        codec,
        items,
        lambda: replace(plain, tracks=data.validation),
        meta=identity | run.meta(command) | {"bandwidths": to_dict(bandwidths)},
        collapse=CollapseWatch(args.vqvae.l_bins),
        media=lambda batch: reconstructions(codec, batch, items.names),
    )


def check(args: Args, sources: int) -> None:
    """Refuse what cannot be trained, before anything is read.

    Raises:
        ValueError: a crop that is no multiple of the hop or too short for the loss; linearisation
            of other than two sources.
    """
    crop, hop = args.train.crop, args.vqvae.hop
    if crop % hop:
        raise ValueError(f"--train.crop is {crop}, not a multiple of the hop, {hop} samples")
    stfts = (args.loss.spectral_stft, *args.loss.multispectral_stfts)
    longest = max(n_fft for n_fft, _, _ in stfts)
    if crop <= longest // 2:
        raise ValueError(f"--train.crop is {crop}; a loss of n_fft {longest} needs a longer one")
    if args.objective == "linearisation" and sources != 2:
        raise ValueError(f"linearisation mixes two sources, {args.data} has {sources}")


def known_bandwidths(args: Args) -> Bandwidths | None:
    """The normalisers of the run that is continued."""
    if not (args.output / STATE).is_file():
        return None
    try:
        return from_dict(Bandwidths, load_meta(args.output).get("bandwidths"))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{args.output / META}: {error}") from error


def measure_bandwidths(args: Args, items: CropDataset) -> Bandwidths:
    """The normalisers, from training crops: `bandwidth_seconds` of them, at most an epoch."""
    meter = BandwidthMeter(args.loss.spectral_stft)
    wanted = args.bandwidth_seconds * args.vqvae.sample_rate / items.rows
    count = math.ceil(min(wanted, items.samples) / items.crop)
    for first in range(0, count, 8):
        meter.add(collate([items[index] for index in range(first, min(first + 8, count))]))
    return meter.result()


if __name__ == "__main__":
    sys.exit(main())
