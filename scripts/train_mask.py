"""Train the supervised baseline: a recurrent network that gives every source's mask.

    python -m scripts.train_mask --data prepared --output runs/models/mask_estimator --preset demo

It learns from the songs that the codecs and the priors learn from, and scripts.evaluate scores it
where it finds it in MODELS/mask_estimator. The run folder and what happens when it is there: as for
scripts.train_vqvae.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jukebox_core.config import MaskEstimatorConfig, to_dict
from jukebox_core.datasets.crops import Augmentation, CropDataset, collate
from jukebox_core.evaluation.mask_estimator import MaskEstimator
from jukebox_core.evaluation.mask_objective import MaskObjective
from scripts import _training as training

STANDARDISED_ON = 64
"""Training items that the features' mean and deviation are measured on."""


@dataclass(frozen=True, kw_only=True)
class Args(training.TrainingArgs):
    """Flags of scripts.train_mask."""

    pairing: Literal["song", "random"] = "random"
    """Sources of one song and place, or each from a song of its own."""
    gain_db: float = 6.0
    """Augmentation: scale every source by up to so many decibels either way."""
    mask: MaskEstimatorConfig = MaskEstimatorConfig()


def main(argv: Sequence[str] | None = None) -> int:
    """Run with flags (None: the process's) and return the exit status."""
    flags = training.given_argv(argv)
    preset = training.peek_preset(flags)
    defaults = {"mask": preset.mask, "optim": preset.mask_optim, "train": preset.mask_train}

    def body(args: Args) -> None:
        train_mask(args, training.command_line("train_mask", flags))

    body.__annotations__["args"] = Args
    return training.run_with_presets(body, flags, defaults)


def train_mask(args: Args, command: str) -> None:
    """Train, or go on.

    Raises:
        ValueError: there is one source alone.
    """
    run = training.Run(args)
    data = run.open_data(args.mask.sample_rate)
    alpha = data.manifest.alpha
    if len(alpha) < 2:
        raise ValueError(f"{args.data} has the source {', '.join(alpha)} alone: nothing to mask")
    augmentation = Augmentation(args.gain_db)
    identity = run.identity(data) | {
        "kind": "mask_estimator",
        "config": to_dict(args.mask),
        "pairing": args.pairing,
        "augmentation": {"gain_db": args.gain_db},
    }
    if run.already_finished(identity):
        return
    plain = CropDataset(
        data.train, "sources", args.train.crop, alpha, run.train.seed, args.skip_silent
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


if __name__ == "__main__":
    sys.exit(main())
