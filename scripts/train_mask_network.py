r"""Train the mask network: it makes the masks from the mixture and the candidates.

    python -m scripts.train_mask_network --models runs/models --data prepared --preset demo \
        --method neural --prior unigram --neural-exponent 1 --sampler ancestral \
        --output runs/models/mask_network/hybrid-neural

The network contains the mask estimator of scripts.train_mask. First the candidates of many training
crops are drawn with the models, once, into OUTPUT/candidates; then the network learns from them.
Methods with "-neural" in their name use the network in MODELS/mask_network/METHOD if it is there.
The run folder has the same files and continues in the same way as with scripts.train_vqvae.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from jukebox_core.checkpoints import fingerprint
from jukebox_core.checks import require_fields
from jukebox_core.config import MaskNetworkConfig, OptimConfig, TrainConfig
from jukebox_core.datasets.batches import collate
from jukebox_core.datasets.crops import Augmentation, CropDataset, Pairing
from jukebox_core.evaluation.mask_estimator import MaskEstimator, load_mask_estimator
from jukebox_core.neural.candidates import GROUP, CandidateItems, draw_items, groups_of
from jukebox_core.neural.mask import KIND, MaskNetwork
from jukebox_core.neural.mask_objective import MaskNetworkObjective
from jukebox_core.neural.method import NeuralMethod
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.settings import AFTER_SAMPLING, Settings
from jukebox_core.training.ranks import gather
from jukebox_core.training.run import Run, RunSettings
from scripts._cli import program
from scripts._methods import METHODS, RECOMMENDED, MethodName
from scripts._training import FirstFlags

VALIDATION_ITEMS = 64
"""Largest number of validation crops whose candidates are drawn."""
MEASURED_ON = 32
"""Training items on which the features' mean and deviation are measured."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Flags of scripts.train_mask_network."""

    run: tyro.conf.OmitArgPrefixes[RunSettings]
    models: Path
    """Folder of trained models."""
    method: MethodName = RECOMMENDED
    """Separation method that draws the candidates; it must have the neural likelihood."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    estimator: Path | None = None
    """Run folder of a trained mask estimator, a part of the network; default:
    MODELS/mask_estimator."""
    items: int
    """Training crops to draw candidates for."""
    candidates: int = 4
    """Joint candidates per crop."""
    pairing: Pairing = "half"
    """Take all sources from the same place of one song, each source from a random song, or half of
    the items in either way."""
    augmentation: tyro.conf.OmitArgPrefixes[Augmentation]
    mask_network: MaskNetworkConfig
    optim: OptimConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        """Refuse values out of range, and settings that candidates do not depend on."""
        require_fields(self, "items", "candidates", whole=True, at_least=1)
        for name in set(AFTER_SAMPLING) & set(self.settings.explicit()):
            value = getattr(self.settings, name)
            raise ValueError(f"{name} is {value}, but it does not affect the candidates")
        if self.items % GROUP:
            raise ValueError(f"items is {self.items}, expected a multiple of {GROUP}")


def defaults(flags: FirstFlags) -> Args:
    """The preset's defaults."""
    preset = flags.values
    return Args(
        run=tyro.MISSING_NONPROP,
        models=tyro.MISSING,
        items=preset.mask_network_items,
        augmentation=Augmentation(gain_db=4.0),
        mask_network=preset.mask_network,
        optim=preset.mask_network_optim,
        train=flags.of_mixtures(preset.mask_network_train),
    )


def train_mask_network(args: Args, command: str) -> None:
    """Draw the candidates, then train, or continue a training.

    Raises:
        ValueError: the method has no neural likelihood, or the crop does not fit the models.
    """
    with Run(args.run, args.optim, args.train) as run:
        _train(args, command, run)


def _train(args: Args, command: str, run: Run) -> None:
    method = METHODS[args.method]
    if not isinstance(method, NeuralMethod):
        names = ", ".join(name for name, m in METHODS.items() if isinstance(m, NeuralMethod))
        raise ValueError(
            f"method is {args.method}, expected one with the neural likelihood: {names}"
        )
    family = method.folder(args.models)
    full = method.resolve(args.settings).without(*AFTER_SAMPLING)
    estimator_folder = args.estimator or args.models / "mask_estimator"
    estimator = load_mask_estimator(estimator_folder)
    data = run.open_data(estimator.config.sample_rate)
    alpha = data.manifest.alpha
    if estimator.alpha != alpha:
        raise ValueError(
            f"{estimator_folder} was trained with gains {estimator.alpha}, {args.run.data} has "
            f"{alpha}"
        )
    drawn_with = {
        "method": args.method,
        "settings": full.explicit(),
        "candidates": args.candidates,
        "models": method.fingerprints(family, full),
        "pairing": args.pairing,
        "augmentation": asdict(args.augmentation),
    }
    identity = run.identity(data) | {
        "kind": KIND,
        "config": asdict(args.mask_network),
        "vqvae_fingerprint": fingerprint(family / "vqvae"),
        "estimator": {
            "config": asdict(estimator.config),
            "fingerprint": fingerprint(estimator_folder),
        },
        "items": args.items,
        "drawn_with": drawn_with,
    }
    if run.already_finished(identity):
        return
    separator = method.load_separator(
        args.models,
        replace(full, mask_network=False),
        str(run.fabric.device),
        candidates=args.candidates,
        tuned=False,
    )
    check(args, separator, estimator)
    plain = CropDataset(
        data.train, "sources", args.train.crop, alpha, run.train.seed, args.run.skip_silent
    )
    crops = replace(plain, pairing=args.pairing, augmentation=args.augmentation)
    rows = len(alpha) * (1 + args.candidates)

    def build(estimator: MaskEstimator) -> MaskNetworkObjective:
        return MaskNetworkObjective(MaskNetwork(args.mask_network, estimator), args.candidates)

    run.require(lambda: build(MaskEstimator(estimator.config, alpha)), rows, args.train.crop)
    folder = args.run.output / "candidates"
    items = _draw(run, separator, crops, args.items, folder / "train", identity)
    count = min(VALIDATION_ITEMS, args.items)
    objective = build(estimator)
    objective.measure(collate([items[index] for index in range(min(MEASURED_ON, args.items))]))
    run.fit(
        objective,
        objective.network,
        items,
        lambda: _draw(
            run,
            separator,
            replace(plain, tracks=data.validation),
            count,
            folder / "validation",
            identity,
        ),
        meta=identity | run.meta(command),
    )


def _draw(
    run: Run,
    separator: Separator,
    crops: CropDataset,
    count: int,
    folder: Path,
    identity: Mapping[str, Any],
) -> CandidateItems:
    """The items with their candidates, which all processes draw together."""
    augmentation = dict(identity["drawn_with"]["augmentation"])
    if augmentation["production"] == 0:  # files from before it existed keep their identity
        del augmentation["production"]
    parts = (
        identity["drawn_with"] | {"augmentation": augmentation},
        identity["data"],
        identity["skip_silent"],
        separator.device.type,
        folder.name,
        crops.crop,
        crops.seed,
    )
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    fabric, size = run.fabric, run.fabric.world_size
    everywhere = (fabric.global_rank, size)
    here = (fabric.local_rank, run.local_size)  # what another machine's disk holds
    for share in dict.fromkeys((everywhere, here, (0, 1))):
        # The bar is of this process: the others take as long.
        with tqdm(
            desc=f"candidates, {folder.name}",
            total=len(groups_of(count, share)) * GROUP,
            disable=None if fabric.is_global_zero else True,
            leave=False,
        ) as bar:
            error: Exception | None = None
            try:
                items = draw_items(
                    separator,
                    crops,
                    count,
                    folder,
                    digest,
                    seed=crops.seed,
                    share=share,
                    progress=bar.update,
                )
            except (OSError, ValueError) as caught:
                error = caught
        for failed in gather(error, size):  # nobody waits for a process that has failed
            if failed is not None:
                raise failed
    return items


def check(args: Args, separator: Separator, estimator: MaskEstimator) -> None:
    """Refuse settings that cannot be trained.

    Raises:
        ValueError: another sample rate, or crops that the models cannot separate.
    """
    if separator.sample_rate != estimator.config.sample_rate:
        raise ValueError(
            f"the mask estimator was trained at {estimator.config.sample_rate} Hz, the models at "
            f"{separator.sample_rate} Hz"
        )
    if separator.alpha != estimator.alpha:
        raise ValueError(
            f"the models separate with gains {separator.alpha}, the data have {estimator.alpha}"
        )
    hop, longest = separator.codec.config.hop, separator.n_ctx
    if args.train.crop % hop or args.train.crop > longest * hop:
        raise ValueError(
            f"--train.crop is {args.train.crop}, expected a multiple of {hop} up to "
            f"{longest * hop} samples (the context of the priors)"
        )


main = program(train_mask_network, defaults)

if __name__ == "__main__":
    sys.exit(main())
