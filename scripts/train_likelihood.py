r"""Train the neural likelihood: a network that estimates the sources' codes from the mixture.

    python -m scripts.train_likelihood --vqvae runs/models/linearisation/vqvae --data prepared \
        --output runs/models/linearisation/neural_likelihood --preset demo

The methods with "-neural" in their name use the network in the folder of their codec. The codec
sets the hop, the number and the width of the codes. The run folder has the same files and continues
in the same way as with scripts.train_vqvae.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro

from jukebox_core.checkpoints import fingerprint, load_codec
from jukebox_core.config import NeuralLikelihoodConfig, OptimConfig, TrainConfig
from jukebox_core.datasets.batches import collate
from jukebox_core.datasets.crops import Augmentation, CropDataset, Pairing
from jukebox_core.neural.model import KIND, NeuralLikelihood
from jukebox_core.neural.objective import NeuralLikelihoodObjective
from jukebox_core.training.run import Run, RunSettings
from jukebox_core.vqvae.model import VQVAE
from scripts._cli import program
from scripts._training import CodecFlags, check_fits_codec

MEASURED_ON = 128
"""Training items on which the features' deviation and the codes' frequencies are measured."""


_OF_CODEC = ("sample_rate", "hop", "l_bins", "emb_width")


@dataclass(frozen=True, kw_only=True)
class Args:
    """Flags of scripts.train_likelihood."""

    run: tyro.conf.OmitArgPrefixes[RunSettings]
    vqvae: Path
    """Run folder of the codec."""
    pairing: Pairing = "half"
    """Take all sources from the same place of one song, each source from a random song, or half of
    the items in either way."""
    augmentation: tyro.conf.OmitArgPrefixes[Augmentation]
    neural: NeuralLikelihoodConfig
    optim: OptimConfig
    train: TrainConfig


def defaults(flags: CodecFlags) -> Args:
    """The preset's defaults, for the codec."""
    preset = flags.values
    return Args(
        run=tyro.MISSING_NONPROP,
        vqvae=tyro.MISSING,
        augmentation=Augmentation(gain_db=4.0),
        neural=flags.fit(preset.neural, _OF_CODEC),
        optim=preset.neural_optim,
        train=flags.of_mixtures(preset.neural_train),
    )


def train_likelihood(args: Args, command: str) -> None:
    """Train, or continue a training."""
    with Run(args.run, args.optim, args.train) as run:
        _train(args, command, run)


def _train(args: Args, command: str, run: Run) -> None:
    codec = load_codec(args.vqvae, run.fabric.device)
    data = run.open_data(codec.config.sample_rate)
    alpha = data.manifest.alpha
    check_fits_codec("neural", args.neural, _OF_CODEC, args.vqvae, codec.config, args.train.crop)
    identity = run.identity(data) | {
        "kind": KIND,
        "config": asdict(args.neural),
        "vqvae_fingerprint": fingerprint(args.vqvae),
        "pairing": args.pairing,
        "augmentation": asdict(args.augmentation),
    }
    if run.already_finished(identity):
        return

    def build(codec: VQVAE) -> NeuralLikelihoodObjective:
        return NeuralLikelihoodObjective(codec, NeuralLikelihood(args.neural, alpha))

    plain = CropDataset(
        data.train, "sources", args.train.crop, alpha, run.train.seed, args.run.skip_silent
    )
    items = replace(plain, pairing=args.pairing, augmentation=args.augmentation)
    run.require(lambda: build(VQVAE(codec.config)), items.rows, args.train.crop)
    objective = build(codec)
    objective.to(run.fabric.device)
    measured = collate([items[index] for index in range(MEASURED_ON)])
    objective.measure(measured.to(run.fabric.device))
    run.fit(
        objective,
        objective.model,
        items,
        lambda: replace(plain, tracks=data.validation),
        meta=identity | run.meta(command),
    )


main = program(train_likelihood, defaults)

if __name__ == "__main__":
    sys.exit(main())
