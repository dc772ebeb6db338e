r"""Train the prior of one source on the codes of a trained codec.

    python -m scripts.train_prior --vqvae runs/models/linearisation/vqvae --source bass \
        --data prepared --output runs/models/linearisation/prior_bass --preset demo

Several GPUs, several machines:

    torchrun --nproc-per-node 4 -m scripts.train_prior --vqvae ... --device cuda
    python -m scripts.train_prior --vqvae ... --device cuda --devices 4

The codec sets the number and the width of the codes. All songs are encoded once before the training
(--codes-from cache), or crop by crop during the training, whichever encodes less. The run folder
has the same files and continues in the same way as with scripts.train_vqvae.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from jukebox_core.checkpoints import fingerprint, load_codec, load_meta
from jukebox_core.checks import require_fields
from jukebox_core.config import OptimConfig, PriorConfig, TrainConfig
from jukebox_core.datasets.crops import Augmentation, CropDataset
from jukebox_core.datasets.manifest import Track
from jukebox_core.prior.codes import CodeDataset, encode_songs
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.prior.objective import PriorObjective
from jukebox_core.training.run import Data, Run, RunSettings
from jukebox_core.vqvae.model import VQVAE
from scripts._cli import program
from scripts._training import CodecFlags, check_fits_codec

CACHED_SECONDS = 2 * 3600
"""`--codes-from auto` encodes up to this much training audio in advance."""


_OF_CODEC = ("l_bins", "emb_width")


@dataclass(frozen=True, kw_only=True)
class Args:
    """Flags of scripts.train_prior."""

    run: tyro.conf.OmitArgPrefixes[RunSettings]
    vqvae: Path
    """Run folder of the codec."""
    source: str
    """Name of the source in the data."""
    codes_from: Literal["auto", "audio", "cache"] = "auto"
    """audio: encode crops during the training; cache: encode all songs before it; auto: as the run
    began, at first cache if that encodes less, for up to two hours of audio."""
    code_shifts: int = 2
    """Copies of every song in the cache, each shifted by a different fraction of a code."""
    transpose_semitones: int = 0
    """Augmentation: transpose songs by up to this many semitones, up or down."""
    activation_checkpointing: bool
    """Recompute activations in the backward pass, to save memory."""
    prior: PriorConfig
    optim: OptimConfig
    train: TrainConfig


def defaults(flags: CodecFlags) -> Args:
    """The preset's defaults, with the number and width of the codec's codes."""
    preset = flags.values
    return Args(
        run=tyro.MISSING_NONPROP,
        vqvae=tyro.MISSING,
        source=tyro.MISSING,
        activation_checkpointing=preset.activation_checkpointing,
        prior=flags.fit(preset.prior, _OF_CODEC),
        optim=preset.prior_optim,
        train=preset.prior_train,
    )


def train_prior(args: Args, command: str) -> None:
    """Train, or continue a training."""
    with Run(args.run, args.optim, args.train) as run:
        _train(args, command, run)


def _train(args: Args, command: str, run: Run) -> None:
    codec = load_codec(args.vqvae, run.fabric.device)
    data = run.open_data(codec.config.sample_rate)
    check(args, codec, data.manifest.sources)
    identity = run.identity(data) | {
        "kind": "prior",
        "source": args.source,
        "config": asdict(args.prior),
        "vqvae_fingerprint": fingerprint(args.vqvae),
        "codes_from": codes_from(args, data),
        "code_shifts": args.code_shifts,
        "code_noise": None,  # version 0.1 had it; a run with noise does not continue
        "transpose_semitones": args.transpose_semitones or None,
    }
    if run.already_finished(identity):
        return
    crop, hop, seed = args.train.crop, codec.config.hop, run.train.seed
    augmentation = Augmentation(transpose_semitones=args.transpose_semitones)

    def items(tracks: list[Track], shifts: int, keys: int) -> CodeDataset | CropDataset:
        if identity["codes_from"] == "audio":
            return CropDataset(
                tracks,
                args.source,
                crop,
                data.manifest.alpha,
                seed,
                args.run.skip_silent,
                augmentation=replace(augmentation, transpose_semitones=keys),
            )
        songs = encode_songs(codec, tracks, args.source, crop, shifts, keys)
        return CodeDataset(songs, crop // hop, hop, seed, args.run.skip_silent)

    run.require(lambda: build(args), 1, crop // hop, torch.int64)
    prior = AutoregressivePrior(args.prior)
    if args.prior.embedding == "codebook":
        prior.set_codebook(codec.codebook.cpu())
    prior.activation_checkpointing = args.activation_checkpointing
    run.fit(
        PriorObjective(codec, prior),
        prior,
        items(data.train, args.code_shifts, args.transpose_semitones),
        lambda: items(data.validation, 1, 0),
        meta=identity | run.meta(command) | {"objective": load_meta(args.vqvae).get("objective")},
    )


def build(args: Args) -> PriorObjective:
    """The objective on codes, without a codec."""
    prior = AutoregressivePrior(args.prior)
    prior.activation_checkpointing = args.activation_checkpointing
    return PriorObjective(None, prior)


def check(args: Args, codec: VQVAE, sources: tuple[str, ...]) -> None:
    """Refuse settings that cannot be trained.

    Raises:
        ValueError: the source is unknown, the crop does not fit the codec or the context, the
            architecture contradicts the codec, or there are more code shifts than samples per code.
    """
    if args.source not in sources:
        raise ValueError(f"source {args.source!r} is not in {args.run.data}: {', '.join(sources)}")
    check_fits_codec("prior", args.prior, _OF_CODEC, args.vqvae, codec.config, args.train.crop)
    hop = codec.config.hop
    if args.train.crop // hop > args.prior.n_ctx:
        raise ValueError(
            f"--train.crop is {args.train.crop}, {args.train.crop // hop} codes; the context "
            f"(--prior.n-ctx) holds {args.prior.n_ctx}, which is {args.prior.n_ctx * hop} samples"
        )
    hint = "samples in a code"
    require_fields(args, "code_shifts", whole=True, at_least=1, at_most=hop, hint=hint)


def codes_from(args: Args, data: Data) -> str:
    """`audio` or `cache`; what `auto` stands for does not change when a run continues."""
    if args.codes_from != "auto":
        return args.codes_from
    try:
        if begun := load_meta(args.run.output).get("codes_from"):
            return str(begun)
    except (FileNotFoundError, ValueError):
        pass  # a new run; what is wrong with an old one is said when it is opened
    samples = sum(track.samples for track in data.train)
    cached = samples * args.code_shifts * (2 * args.transpose_semitones + 1)
    drawn = args.train.steps * args.train.batch_size * args.train.crop
    short = samples / data.manifest.sample_rate <= CACHED_SECONDS
    return "cache" if short and cached <= drawn else "audio"


main = program(train_prior, defaults)

if __name__ == "__main__":
    sys.exit(main())
