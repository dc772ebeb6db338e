"""Train the models that ship with the package, on varied generated songs.

    python -m scripts.pretrain --groove groove --output runs/pretrained

Songs are composed or arranged by MMA, and played by all installed soundfonts and drum kits, with
production effects (docs/data.md names the Debian packages). They train one codec with the
LQ-VAE's objective, its priors and tables, the neural likelihood, the mask estimator and the mask
network: all that lqvae, hybrid and hybrid-neural need. --method neural leaves priors and tables
out. At the end it writes a copy for inference to --package, by default where the models that ship
for these sources are, and so replaces them. You can stop at any time: started again, it resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import scripts
from data.groove import read_takes
from data.synthetic import MOST_TRACKS
from hybrid.pretrained import models_of
from hybrid.separator import neural_method
from jukebox_core.checks import require_fields
from jukebox_core.files import check_writable
from jukebox_core.machine import available_cores
from jukebox_core.separation.export import CARD, RECORD, check_export, export_models
from jukebox_core.stages import Runner, Stage
from scripts._cli import program
from scripts._methods import METHODS, MethodName
from scripts._plan import (
    SOURCES,
    VARIETY,
    Experiment,
    check_parts,
    required,
    source_flags,
    stage,
)

COUNT_ITERATIONS = 400
MIDI_SHARE = 0.3
"""Share of the songs that MMA arranges."""
SOUNDS: tuple[object, ...] = ("--soundfont", "installed", "--drumkit", "installed")


@dataclass(frozen=True)
class Args:
    """Flags of scripts.pretrain."""

    groove: Path | None = None
    """Folder of the Groove MIDI Dataset; without it, all drum parts are composed."""
    output: Path = Path("runs/pretrained")
    """Folder of songs, data, trained models and logs."""
    package: Path | None = None
    """Folder for the copy for inference; default: that of the models that ship for these sources,
    which it replaces."""
    tracks: int = 1800
    """Number of songs, of 20 s each."""
    sources: tuple[str, ...] = SOURCES
    """Sources to separate: parts of the songs (bass, drums, piano, guitar, strings); other is the
    sum of the rest."""
    method: Literal["hybrid-neural", "neural"] = "hybrid-neural"
    """Method to train; neural has no pair likelihood and code frequencies as priors: no tables and
    no autoregressive priors."""
    length: float = 1.0
    """Multiply the training steps of every network by this."""
    seed: int = 10
    """Random seed of all stages; test songs are made with other seeds."""
    cores: int | None = None
    """CPU cores to use; default: all."""

    def __post_init__(self) -> None:
        """Refuse values that a stage would refuse after others have run."""
        require_fields(self, "tracks", whole=True, at_least=20, at_most=MOST_TRACKS)
        require_fields(self, "length", above=0)
        require_fields(self, "seed", whole=True, at_least=0)
        require_fields(self, "cores", optional=True, whole=True, at_least=1)
        check_parts(self.sources)


def longer(length: float) -> dict[str, tuple[object, ...]]:
    """{program: flags beyond the preset's}; the learning rate falls over most of the steps."""

    def steps(number: int, falling: float = 0.7) -> tuple[object, ...]:
        number = max(10, round(length * number))
        return ("--train.steps", number, "--optim.decay-steps", round(falling * number))

    augmented = ("--gain-db", 6, "--production", 0.3)
    large = ("--mask.hidden", 256, "--mask.layers", 2)
    items = ("--items", 8 * max(2, round(length * 150)))
    return {
        "train_vqvae": (*steps(1800), *augmented),
        "train_mask": (*steps(5000), *large, *augmented),
        "train_prior": steps(800),
        "train_likelihood": (*steps(3200), "--optim.ema-decay", 0.99, *augmented),
        "train_mask_network": (*steps(900), *items, *augmented),
    }


def stages(args: Args) -> list[Stage]:
    """Return the plan."""
    out, seed = args.output, ("--seed", args.seed)
    for_sources = source_flags(args.sources)
    arrangements, slakh, data, models = (
        out / name for name in ("arrangements", "slakh", "data", "models")
    )
    # Some arrangements fail, and shares are met only on average.
    count = round(1.2 * MIDI_SHARE * args.tracks) + 20
    arrange = ("--output", arrangements, "--songs", count, *seed)
    songs: tuple[object, ...] = ("--output", slakh, "--tracks", args.tracks, "--seconds", 20)
    songs += (*for_sources.songs, "--split", 0.94, 0.06, 0)
    songs += ("--midi-dir", arrangements, "--midi-share", MIDI_SHARE)
    songs += ("--groove", args.groove) if args.groove else ()
    songs += (*VARIETY, *SOUNDS, *seed)
    prepare = ("--slakh", slakh, "--output", data, *for_sources.data)
    experiment = Experiment(
        data,
        models,
        "demo",
        COUNT_ITERATIONS,
        args.seed,
        more=longer(args.length),
        objectives=("linearisation",),
        sources=tuple(sorted(args.sources)),
        method=args.method,
    )
    plan = [
        stage("arrangements", "make_arrangements", arrange, product=arrangements),
        stage("songs", "make_synthetic", songs, ["arrangements"], product=slakh),
        stage("data", "prepare_slakh", prepare, ["songs"], product=data / "manifest.json"),
        *experiment.stages(),
        experiment.tuning("--chunks", 12, "--budget", 8, "--candidates", 16),
    ]
    return required(plan, "settings")


def default_package(sources: Sequence[str], method: MethodName) -> Path:
    """The folder of the models that ship for these sources.

    Raises:
        ValueError: there are none, or they are for another method.
    """
    folder = models_of(sources)
    if (ships := neural_method(folder).name) != method:
        raise ValueError(
            f"method is {method}, but the models of {' '.join(sources)} that ship are for {ships}: "
            "give --package a folder for these"
        )
    return folder


@program
def main(args: Args) -> None:
    """Run the plan, then write the copy."""
    if args.groove is not None:
        read_takes(args.groove)
    package = args.package or default_package(args.sources, args.method)
    check_export(args.output / "models", package)
    check_writable(package / RECORD)
    Runner(stages(args), args.output, args.cores or available_cores(), scripts).run()
    files = export_models(METHODS[args.method], args.output / "models", package)
    size = sum((package / file).stat().st_size for file in files)
    print(f"{len(files)} files, {size / 1e6:.1f} MB in {package}")
    if (card := package / CARD).is_file():
        print(f"{card} was not changed: it describes the models that were there before")


if __name__ == "__main__":
    sys.exit(main())
