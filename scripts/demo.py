"""Compose songs, train all systems small, separate, score and write the report.

    python -m scripts.demo --output runs/demo

Every stage is a program of the project in its own process; independent stages run side by side. You
can stop the demo at any time: started again, it resumes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import scripts
from data.synthetic import MOST_SECONDS, RECORD
from jukebox_core.checks import require_fields
from jukebox_core.evaluation.outputs import BASELINES, EXAMPLES, Outputs
from jukebox_core.evaluation.results import load_results
from jukebox_core.files import check_replaceable, json_with
from jukebox_core.machine import available_cores
from jukebox_core.presets import PRESETS
from jukebox_core.stages import Runner, Stage
from scripts._cli import program
from scripts._methods import METHODS, RECOMMENDED, MethodName
from scripts._plan import (
    NETWORKS,
    OBJECTIVES,
    SOURCES,
    SYSTEMS,
    VARIETY,
    Experiment,
    check_parts,
    needs,
    required,
    scoring,
    source_flags,
    stage,
)
from scripts._results import format_table, is_report


@dataclass(frozen=True)
class Args:
    """Flags of scripts.demo."""

    output: Path = Path("runs/demo")
    """Folder of all outputs."""
    preset: str = "demo"
    """Size of the models."""
    tracks: int = 360
    """Number of songs to compose."""
    seconds: float = 20.0
    """Length of a song, in seconds."""
    songs: Literal["varied", "plain"] = "varied"
    """varied: many styles, all basses and kits of the embedded soundfont, production effects;
    plain: simpler songs with five basses and kits, as for earlier results."""
    chunks: int = 24
    """Test chunks, one per song if there are enough songs."""
    sources: tuple[str, ...] = SOURCES
    """Sources to separate: parts of the songs (bass, drums, piano, guitar, strings); other is the
    sum of the rest."""
    methods: tuple[MethodName, ...] = SYSTEMS
    """Systems to train and score, one or more of these; hybrid-neural alone takes half the time.
    Or neural alone, without tables and with code frequencies as priors: the fastest, for any number
    of sources."""
    count_iterations: int = 250
    """Iterations of counting, each with 8 pairs of 1024 codes."""
    seed: int = 0
    """Random seed of all stages."""
    cores: int | None = None
    """CPU cores to use; default: all."""

    def __post_init__(self) -> None:
        """Refuse values that a stage would refuse after others have run."""
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, expected one of {', '.join(PRESETS)}")
        require_fields(self, "tracks", "chunks", "count_iterations", whole=True, at_least=1)
        require_fields(self, "seconds", at_least=1, at_most=MOST_SECONDS)
        require_fields(self, "seed", whole=True, at_least=0)
        require_fields(self, "cores", optional=True, whole=True, at_least=1)
        check_parts(self.sources)
        known = len({*self.methods} & {*SYSTEMS}) == len(self.methods) > 0
        if not known and self.methods != (NETWORKS,):
            raise ValueError(
                f"methods is {' '.join(self.methods) or 'empty'}, expected some of "
                f"{', '.join(SYSTEMS)}, each once, or {NETWORKS} alone"
            )
        if not any(METHODS[name].family == "linearisation" for name in self.methods):
            raise ValueError("methods is lass: choose another one too, the demo trains its codec")


def stages(args: Args) -> list[Stage]:
    """Return the plan."""
    out = args.output
    slakh, data, models = out / "slakh", out / "data", out / "models"
    results, report = out / "results.json", out / "report.html"
    seed = ("--seed", args.seed)
    for_sources = source_flags(args.sources)
    songs: tuple[object, ...] = ("--output", slakh, "--tracks", args.tracks)
    songs += ("--seconds", args.seconds, *for_sources.songs, *seed)
    songs += VARIETY if args.songs == "varied" else ()
    prepare = ("--slakh", slakh, "--output", data, *for_sources.data)
    # One method per process. All get the number of threads, since it identifies the parts.
    threads = max(1, (args.cores or available_cores()) // len(args.methods))
    score = ("--models", models, "--data", data, "--output", results, "--chunks", args.chunks)
    alone = args.methods == (NETWORKS,)
    flags = (*score, "--threads", threads, *seed)
    write = ("--runs", out, "--output", report)
    size = (args.preset, args.count_iterations, args.seed)
    families = {METHODS[name].family for name in args.methods}
    experiment = Experiment(
        data,
        models,
        *size,
        objectives=tuple(name for name in OBJECTIVES if name in families),
        sources=tuple(sorted(args.sources)),
        method=NETWORKS if alone else RECOMMENDED,
    )
    tuning = experiment.tuning("--chunks", 8, "--budget", 4, "--candidates", 8, *seed)
    after = partial(needs, sources=args.sources)
    plan = [
        stage("songs", "make_synthetic", songs, product=slakh),
        stage("data", "prepare_slakh", prepare, ["songs"], product=data / "manifest.json"),
        *experiment.stages(),
        *[tuning] * alone,
        *scoring(
            "scores",
            args.methods,
            flags,
            results,
            (lambda _: ["settings"]) if alone else after,
            joined=() if args.methods == SYSTEMS else ("--methods", *args.methods),
            beside=["mask estimator"],
        ),
        stage("report", "report", write, ["scores"], product=report),
    ]
    return required(plan, "report") if alone else plan


@program
def main(args: Args) -> None:
    """Run the plan, then print the table."""
    results, report = args.output / "results.json", args.output / "report.html"
    songs = args.output / "slakh" / RECORD
    if args.songs == "varied" and songs.is_file() and not json_with("style")(songs):
        raise ValueError(
            f"{args.output} holds plain songs, as earlier versions composed them: continue it with "
            "--songs plain, or choose another --output"
        )
    # evaluate and report check this too, but only after the training.
    Outputs(results, args.sources, METHODS).check(
        args.methods, BASELINES, min(EXAMPLES, args.chunks)
    )
    check_replaceable(report, is_report, "a report")
    Runner(stages(args), args.output, args.cores or available_cores(), scripts).run()
    print(format_table(load_results(results)))
    print(f"\nresults: {results}\nreport:  {report}")


if __name__ == "__main__":
    sys.exit(main())
