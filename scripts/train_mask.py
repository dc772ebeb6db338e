"""Train the supervised baseline: a recurrent network that estimates every source's mask.

    python -m scripts.train_mask --data prepared --output runs/models/mask_estimator --preset demo

It learns from the same songs as the codecs and priors; scripts.evaluate scores it if it finds it in
MODELS/mask_estimator. The run folder has the same files and continues in the same way as with
scripts.train_vqvae.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace

import tyro

from jukebox_core.config import MaskEstimatorConfig, OptimConfig, TrainConfig
from jukebox_core.datasets.batches import collate
from jukebox_core.datasets.crops import Augmentation, CropDataset, Pairing
from jukebox_core.evaluation.mask_estimator import MaskEstimator
from jukebox_core.evaluation.mask_objective import MaskObjective
from jukebox_core.training.run import Run, RunSettings
from scripts._cli import program
from scripts._training import FirstFlags

STANDARDISED_ON = 64
"""Training items on which the features' mean and deviation are measured."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Flags of scripts.train_mask."""

    run: tyro.conf.OmitArgPrefixes[RunSettings]
    pairing: Pairing = "random"
    """Take all sources from the same place of one song, each source from a random song, or half of
    the items in either way."""
    gain_db: float = 6.0
    """Augmentation: scale every source by up to this many decibels, up or down."""
    production: float = 0.0
    """Augmentation: process sources by effects, each with this probability."""
    mask: MaskEstimatorConfig
    optim: OptimConfig
    train: TrainConfig


def defaults(flags: FirstFlags) -> Args:
    """The preset's defaults."""
    preset = flags.values
    return Args(
        run=tyro.MISSING_NONPROP,
        mask=preset.mask,
        optim=preset.mask_optim,
        train=flags.of_mixtures(preset.mask_train),
    )


def train_mask(args: Args, command: str) -> None:
    """Train, or continue a training.

    Raises:
        ValueError: the data have only one source.
    """
    with Run(args.run, args.optim, args.train) as run:
        _train(args, command, run)


def _train(args: Args, command: str, run: Run) -> None:
    data = run.open_data(args.mask.sample_rate)
    alpha = data.manifest.alpha
    if len(alpha) < 2:
        raise ValueError(f"{args.run.data} has only the source {', '.join(alpha)}: nothing to mask")
    augmentation = Augmentation(args.gain_db, production=args.production)
    identity = run.identity(data) | {
        "kind": "mask_estimator",
        "config": asdict(args.mask),
        "pairing": args.pairing,
        "augmentation": {"gain_db": args.gain_db, "production": args.production},
    }
    if run.already_finished(identity):
        return
    plain = CropDataset(
        data.train, "sources", args.train.crop, alpha, run.train.seed, args.run.skip_silent
    )
    items = replace(plain, pairing=args.pairing, augmentation=augmentation)
    run.require(lambda: MaskObjective(MaskEstimator(args.mask, alpha)), items.rows, args.train.crop)
    estimator = MaskEstimator(args.mask, alpha)
    first = replace(items, contents="mixtures")
    estimator.standardise(collate([first[index] for index in range(STANDARDISED_ON)]))
    run.fit(
        MaskObjective(estimator),
        estimator,
        items,
        lambda: replace(plain, tracks=data.validation),
        meta=identity | run.meta(command),
    )


main = program(train_mask, defaults)

if __name__ == "__main__":
    sys.exit(main())
