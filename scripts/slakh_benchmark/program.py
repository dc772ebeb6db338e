"""Score models on real Slakh2100 beside the reference report, or repeat its experiment.

    python -m scripts.slakh_benchmark --slakh slakh2100_flac_redux
    python -m scripts.slakh_benchmark --slakh slakh2100_flac_redux --models runs/demo/models
    python -m scripts.slakh_benchmark --slakh slakh2100_flac_redux --train --preset small

Without --train it prepares the test songs of SLAKH (all of Slakh2100, a part of it, or excerpts)
and scores every method that the models have. With --train it prepares 300 songs of the train
folder, 210 to train on and 90 to test on, trains the three systems and the recommended one, and
scores them. The models tell which sources are scored; --sources is for training. The mixture is the
mean of these sources: for all of a song, name other last, which is the rest.

There are two measurements: with one chunk of each of the first 30 test songs, as in the reference
report, and with several chunks of every test song. Both score the best candidate by the truth, as
the report does, and the stems that a user gets; by the report's metric and window, and by SDR.
Intervals are bootstrapped by song. OUTPUT/benchmark.json (with --train,
OUTPUT/experiment/benchmark.json) records scores, tracks, models and machine. The same command
resumes an interrupted run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import scripts
from data.slakh import track_folders
from hybrid import PRETRAINED
from jukebox_core.checkpoints import load_meta
from jukebox_core.checks import require_fields
from jukebox_core.datasets.manifest import MANIFEST_NAME, load_manifest
from jukebox_core.evaluation.outputs import BASELINES, EXAMPLES, Outputs
from jukebox_core.evaluation.results import load_results
from jukebox_core.files import check_replaceable, json_with, sha256, write_json
from jukebox_core.machine import available_cores, pick_device
from jukebox_core.presets import PRESETS, PresetName
from jukebox_core.stages import Runner, Stage
from scripts._cli import program
from scripts._methods import METHODS, MethodName, complete_methods
from scripts._plan import (
    SOURCES,
    SYSTEMS,
    Experiment,
    needs,
    prior_flags,
    scoring,
    source_flags,
)
from scripts.slakh_benchmark.record import Measured, describe
from scripts.slakh_benchmark.tables import text

SPLIT = (0.7, 0, 0.3)
"""Shares of the experiment's songs: the reference report has 210 and 90 of 300."""
RESULTS = {"reference": "results_reference.json", "all": "results.json"}
"""{measurement: file}: chosen as in the reference report, and from all songs."""


@dataclass(frozen=True)
class Args:
    """Flags of scripts.slakh_benchmark."""

    slakh: Path
    """Folder of Slakh2100: it contains train, validation and test, or TrackNNNNN folders."""
    output: Path = Path("runs/slakh")
    """Folder of all outputs; --train writes to OUTPUT/experiment."""
    models: Path = PRETRAINED
    """Folder of the models to score, by default those that ship with the package; ignored with
    --train."""
    train: bool = False
    """Train models on SLAKH as the reference report did, and score them."""
    preset: PresetName = "small"
    """Size of the models to train."""
    sources: tuple[str, ...] = SOURCES
    """Sources of the models to train: instruments of Slakh2100, or other for all that are not
    named."""
    songs: int = 300
    """Songs of the experiment, from the train folder: 70% to train on, 30% to test on."""
    count_iterations: int = 1000
    """Iterations of counting in the experiment, each with 8 pairs of 1024 codes."""
    methods: tuple[MethodName, ...] | None = None
    """Methods to score; default: all that the models have, or that --train trains."""
    chunks: int = 30
    """Maximum number of chunks in the first measurement: one of each of the first songs."""
    chunks_per_song: int = 4
    """Maximum number of chunks per song in the second measurement, spread evenly over the song."""
    candidates: int | None = None
    """Joint candidates per chunk; default: the number of the models' preset."""
    seed: int = 0
    """Random seed of all stages."""
    cores: int | None = None
    """CPU cores to use; default: all."""

    def __post_init__(self) -> None:
        """Refuse values that a stage would refuse after others have run."""
        numbers = ("songs", "count_iterations", "chunks", "chunks_per_song")
        require_fields(self, *numbers, whole=True, at_least=1)
        require_fields(self, "candidates", "cores", optional=True, whole=True, at_least=1)
        require_fields(self, "seed", whole=True, at_least=0)
        names = self.methods
        if names is not None and (not names or len({*names}) != len(names)):
            raise ValueError(f"methods is {' '.join(names) or 'empty'}, expected each once")
        if not self.train and self.sources != SOURCES:
            raise ValueError("sources are for --train; without it, those of the models are scored")
        if len(self.sources) < 2 or len({*self.sources}) != len(self.sources):
            chosen = " ".join(self.sources) or "empty"
            raise ValueError(f"sources are {chosen}, expected two or more, each once")
        if self.train and names is not None and not {*names} <= {*SYSTEMS}:
            raise ValueError(f"methods is {' '.join(names)}, --train has {', '.join(SYSTEMS)}")


@program
def main(args: Args, command: str) -> None:
    """Prepare, train if asked to, score; write benchmark.json and print the tables."""
    out = args.output / "experiment" if args.train else args.output
    models = out / "models" if args.train else args.models
    methods, sources = to_score(args, models)
    prepare = preparation(args, out, sources, sample_rate(args, models, methods))
    record = out / "benchmark.json"
    check_replaceable(record, json_with("measurements", "data", "models"), "a benchmark")
    for file in RESULTS.values():
        Outputs(out / file, sources, METHODS).check(methods, BASELINES, EXAMPLES)
    cores = args.cores or available_cores()
    Runner([prepare], out, cores, scripts).run()
    manifest = load_manifest(out / "data")
    if args.train and len(manifest.tracks) < args.songs:
        raise ValueError(too_few(args, len(manifest.tracks), "usable songs"))
    # What a runner cannot see: other songs, or other models of the same name.
    state = sha256(out / "data" / MANIFEST_NAME) + ("" if args.train else state_of(models))
    test_songs = len(manifest.split("test"))
    plan = stages(args, out, models, methods, cores, test_songs)
    plan = [prepare, *(replace(stage, state=state) for stage in plan)]
    Runner(plan, out, cores, scripts).run()
    measured = {name: Measured(file, load_results(out / file)) for name, file in RESULTS.items()}
    benchmark = describe(args.slakh, models, methods, manifest, measured) | {"command": command}
    write_json(record, benchmark)
    print(text(benchmark, measured))
    print(f"\n{record}")


def to_score(args: Args, models: Path) -> tuple[tuple[MethodName, ...], tuple[str, ...]]:
    """The methods and the sources.

    Raises:
        FileNotFoundError: the models have no method, or lack one that is asked for.
        ValueError: the methods' models are of different sources.
    """
    if args.train:
        return args.methods or SYSTEMS, args.sources
    if args.methods is not None:
        complete = {name: METHODS[name].check(models) for name in args.methods}
    else:
        complete, lacking = complete_methods(models)
        for name, what in lacking.items():
            print(f"{name} is left out: {what}", file=sys.stderr, flush=True)
    if len({*complete.values()}) > 1:
        found = "; ".join(f"{name}: {' '.join(sources)}" for name, sources in complete.items())
        raise ValueError(f"the models are of different sources ({found}): choose --methods")
    return tuple(complete), next(iter(complete.values()))


def state_of(models: Path) -> str:
    """Names and digests of the files that a method may read."""
    files = (path for path in sorted(models.rglob("*")) if path.suffix in (".safetensors", ".json"))
    return str([(str(path), sha256(path)) for path in files if path.is_file()])


def sample_rate(args: Args, models: Path, methods: Sequence[MethodName]) -> int:
    """The sample rate of the models, in Hz."""
    if args.train:
        return PRESETS[args.preset].vqvae.sample_rate
    return load_meta(METHODS[methods[0]].folder(models) / "vqvae")["config"]["sample_rate"]


def preparation(args: Args, out: Path, sources: Sequence[str], rate: int) -> Stage:
    """The stage `data`.

    Raises:
        FileNotFoundError: there is no folder SLAKH.
        ValueError: it has too few songs to train on, or none to test on.
    """
    if not args.slakh.is_dir():
        raise FileNotFoundError(f"there is no folder {args.slakh}")
    train, test, plain = (track_folders(args.slakh / name) for name in ("train", "test", ""))
    more: tuple[object, ...]
    if args.train:
        tracks, folder = train or plain, args.slakh
        more = ("--split", *SPLIT, "--limit", args.songs)
        if len(tracks) < args.songs:
            raise ValueError(too_few(args, len(tracks), "songs"))
    else:
        # Only the test folder: the other songs need not be prepared.
        tracks, folder = test or plain, args.slakh / "test" if test else args.slakh
        more = ("--split", 0, 0, 1, "--find-songs")
        if not tracks:
            hint = f"; to score its train folder, choose {args.slakh / 'train'}" if train else ""
            raise ValueError(
                f"{args.slakh} has no TrackNNNNN folders, neither in test nor itself{hint}"
            )
    flags = ("--slakh", folder, "--output", out / "data", "--sample-rate", rate, *more)
    flags += source_flags(sources).data
    words = ("prepare_slakh", *map(str, flags))
    product = out / "data" / MANIFEST_NAME
    return Stage("data", words, product=product, state=str([track.name for track in tracks]))


def too_few(args: Args, songs: int, what: str) -> str:
    """The message for a folder that the experiment cannot be repeated with."""
    return (
        f"{args.slakh} has {songs} {what} in its train folder, the experiment takes {args.songs}: "
        "use all of Slakh2100, or lower --songs (excerpts are only scored, without --train)"
    )


def stages(
    args: Args,
    out: Path,
    models: Path,
    methods: Sequence[MethodName],
    cores: int,
    test_songs: int,
) -> list[Stage]:
    """The stages after `data`."""
    gpu = pick_device("auto").type == "cuda"  # one stage at a time has its memory
    data = out / "data"
    plan: list[Stage] = []
    if args.train:
        size = (args.preset, args.count_iterations, args.seed, 1 if gpu else 4)
        more = {"train_prior": prior_flags(args.preset)}
        plan += Experiment(data, models, *size, more, sources=tuple(sorted(args.sources))).stages()
    at_once = 1 if gpu else min(cores, len(methods))
    common: tuple[object, ...] = ("--models", models, "--data", data, "--by-song")
    common += ("--seed", args.seed, "--threads", cores // at_once)
    if args.candidates is not None:
        common += ("--candidates", args.candidates)
    # In the reference measurement, a song has no second chunk.
    chosen: dict[str, tuple[object, ...]] = {
        "reference": (
            *("--chunks", min(args.chunks, test_songs), "--examples", 0),
            "--reference-silence-rule",
        ),
        "all": ("--chunks-per-song", args.chunks_per_song),
    }
    for name, file in RESULTS.items():
        plan += scoring(
            f"{name} scores",
            methods,
            ("--output", out / file, *chosen[name], *common),
            out / file,
            partial(needs, sources=args.sources) if args.train else lambda _: ["data"],
            joined=("--methods", *methods),
            beside=["mask estimator"] * args.train,
            side_by_side=at_once,
        )
    return plan
