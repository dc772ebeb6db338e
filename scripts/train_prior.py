r"""Train the prior of one source on the codes of a trained codec.

    python -m scripts.train_prior --vqvae runs/models/linearisation/vqvae --source bass \
        --data prepared --output runs/models/linearisation/prior_bass --preset demo

Several GPUs, several machines:

    torchrun --nproc-per-node 4 -m scripts.train_prior --vqvae ... --device cuda
    python -m scripts.train_prior --vqvae ... --device cuda --devices 4

The number and width of the codes are the codec's. Small data sets are encoded once before the
training (--codes-from cache), large ones crop by crop during it. The run folder and what happens
when it is there: as for scripts.train_vqvae.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from jukebox_core.checkpoints import fingerprint, load_codec, load_meta
from jukebox_core.checks import require_fields
from jukebox_core.config import PriorConfig, to_dict
from jukebox_core.datasets.crops import Augmentation, CropDataset
from jukebox_core.datasets.manifest import Track
from jukebox_core.prior.codes import CodeDataset, encode_songs
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.prior.objective import PriorObjective
from jukebox_core.vqvae.model import VQVAE
from scripts import _training as training

CACHED_SECONDS = 2 * 3600
"""`--codes-from auto` encodes up to so much training audio in advance."""


@dataclass(frozen=True, kw_only=True)
class Args(training.TrainingArgs):
    """Flags of scripts.train_prior."""

    vqvae: Path
    """Run folder of the codec."""
    source: str
    """Which source, by its name in the data."""
    codes_from: Literal["auto", "audio", "cache"] = "auto"
    """Encode crops during the training, or all songs before it (auto: up to two hours of audio)."""
    code_shifts: int = 2
    """Copies of every song in the cache, each shifted by another part of a code."""
    code_noise: float = 0.0
    """Share of the earlier codes that are false in training, see `PriorObjective`."""
    transpose_semitones: int = 0
    """Augmentation: the songs in every key, up to so many semitones up and down."""
    activation_checkpointing: bool = False
    """Trade time for memory; the paper's size does."""
    prior: PriorConfig = PriorConfig()


def main(argv: Sequence[str] | None = None) -> int:
    """Run with flags (None: the process's) and return the exit status."""
    flags = training.given_argv(argv)
    preset = training.peek_preset(flags)
    defaults = {
        "prior": fit_to_codec(preset.prior, training.peek(flags, "--vqvae")),
        "optim": preset.prior_optim,
        "train": preset.prior_train,
        "activation_checkpointing": preset.activation_checkpointing,
    }

    def body(args: Args) -> None:
        train_prior(args, training.command_line("train_prior", flags))

    body.__annotations__["args"] = Args
    return training.run_with_presets(body, flags, defaults)


def fit_to_codec(config: PriorConfig, codec: str | None) -> PriorConfig:
    """The preset with the codec's number and width of codes (preset < checkpoint < flag)."""
    try:
        stored = load_meta(codec or "")["config"]
        return replace(config, l_bins=stored["l_bins"], emb_width=stored["emb_width"])
    except (OSError, ValueError, KeyError):
        return config  # whatever is wrong with the run folder is said once the flags are parsed


def train_prior(args: Args, command: str) -> None:
    """Train, or go on."""
    run = training.Run(args)
    codec = load_codec(args.vqvae, run.fabric.device)
    data = run.open_data(codec.config.sample_rate)
    check(args, codec, data.manifest.sources)
    identity = run.identity(data) | {
        "kind": "prior",
        "source": args.source,
        "config": to_dict(args.prior),
        "vqvae_fingerprint": fingerprint(args.vqvae),
        "codes_from": codes_from(args, data),
        "code_shifts": args.code_shifts,
        "code_noise": args.code_noise or None,
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
                args.skip_silent,
                augmentation=replace(augmentation, transpose_semitones=keys),
            )
        songs = encode_songs(codec, tracks, args.source, crop, shifts, keys)
        return CodeDataset(songs, crop // hop, hop, seed, args.skip_silent)

    run.require(lambda: build(args), 1, crop // hop, torch.int64)
    prior = AutoregressivePrior(args.prior)
    if args.prior.embedding == "codebook":
        prior.set_codebook(codec.codebook.cpu())
    prior.activation_checkpointing = args.activation_checkpointing
    run.fit(
        PriorObjective(codec, prior, args.code_noise),
        prior,
        items(data.train, args.code_shifts, args.transpose_semitones),
        lambda: items(data.validation, 1, 0),
        meta=identity | run.meta(command) | {"objective": load_meta(args.vqvae).get("objective")},
    )


def build(args: Args) -> PriorObjective:
    """The objective for codes, without its codec."""
    prior = AutoregressivePrior(args.prior)
    prior.activation_checkpointing = args.activation_checkpointing
    return PriorObjective(None, prior, args.code_noise)


def check(args: Args, codec: VQVAE, sources: tuple[str, ...]) -> None:
    """Refuse what cannot be trained.

    Raises:
        ValueError: an unknown source, a crop that does not fit the codec and the context, an
            architecture that contradicts the codec, more code shifts than samples in a code.
    """
    if args.source not in sources:
        raise ValueError(f"source {args.source!r} is not in {args.data}: {', '.join(sources)}")
    for name in ("l_bins", "emb_width"):
        mine, theirs = getattr(args.prior, name), getattr(codec.config, name)
        if mine != theirs:
            flag = f"--prior.{name.replace('_', '-')}"
            raise ValueError(f"{flag} is {mine}, the codec {args.vqvae} has {theirs}: leave it out")
    hop = codec.config.hop
    if args.train.crop % hop:
        raise ValueError(
            f"--train.crop is {args.train.crop}, not a multiple of the hop, {hop} samples"
        )
    if args.train.crop // hop > args.prior.n_ctx:
        raise ValueError(
            f"--train.crop is {args.train.crop}, {args.train.crop // hop} codes; the context "
            f"(--prior.n-ctx) holds {args.prior.n_ctx}, which is {args.prior.n_ctx * hop} samples"
        )
    hint = "samples in a code"
    require_fields(args, "code_shifts", whole=True, at_least=1, at_most=hop, hint=hint)


def codes_from(args: Args, data: training.Data) -> str:
    """`audio` or `cache`, `auto` decided by the length of the training songs."""
    if args.codes_from != "auto":
        return args.codes_from
    seconds = sum(track.samples for track in data.train) / data.manifest.sample_rate
    return "cache" if seconds <= CACHED_SECONDS else "audio"


if __name__ == "__main__":
    sys.exit(main())
