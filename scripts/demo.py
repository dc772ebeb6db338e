"""Compose songs, train all systems small, separate, score and write the report.

    python -m scripts.demo --output runs/demo

Every stage is a program of the project in its own process; independent stages run side by side. You
can stop the demo at any time: started again, it resumes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import scripts
from data.synthetic import MOST_SECONDS
from jukebox_core.checks import require_fields
from jukebox_core.evaluation.outputs import BASELINES, EXAMPLES, Outputs
from jukebox_core.evaluation.results import load_results
from jukebox_core.files import check_replaceable
from jukebox_core.neural.method import RUN, mask_folder
from jukebox_core.presets import PRESETS
from jukebox_core.stages import Runner, Stage
from scripts._cli import program
from scripts._methods import METHODS, PUBLISHED_METHODS, RECOMMENDED
from scripts._results import format_table, is_report

SOURCES = ("bass", "drums")
OBJECTIVES = ("reconstruction", "linearisation")
WEIGHTS = "weights.safetensors"
DRAWN_WITH: tuple[object, ...] = ("--prior", "unigram", "--neural-exponent", 1.0)
DRAWN_WITH += ("--temperature", 1.0, "--sampler", "ancestral")
"""Settings of the candidates that the mask network learns from."""


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
    chunks: int = 24
    """Test chunks, one per song if there are enough songs."""
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


def stages(args: Args) -> list[Stage]:
    """Return the plan."""
    out = args.output
    slakh, data, models = out / "slakh", out / "data", out / "models"
    results, report = out / "results.json", out / "report.html"
    half = 1 / len(OBJECTIVES)
    quarter = half / len(SOURCES)  # the priors train side by side
    plan: list[Stage] = []

    def add(
        name: str,
        script: str,
        flags: Sequence[object],
        after: Sequence[str] = (),
        share: float = quarter,
        product: Path | None = None,
    ) -> None:
        plan.append(Stage(name, (script, *map(str, flags)), tuple(after), share, product))

    seed = ("--seed", args.seed)
    songs = ("--output", slakh, "--tracks", args.tracks, "--seconds", args.seconds)
    add("songs", "make_synthetic", (*songs, "--parts", *SOURCES, *seed), share=1, product=slakh)
    prepare = ("--slakh", slakh, "--output", data)
    add("data", "prepare_slakh", prepare, ["songs"], share=1, product=data / "manifest.json")

    # The first stage that fits starts: the codecs, which the rest waits for, then the longest.
    common = ("--data", data, "--preset", args.preset, *seed)
    for objective in OBJECTIVES:
        codec = models / objective / "vqvae"
        train: tuple[object, ...] = ("--objective", objective, "--output", codec, *common)
        add(f"codec {objective}", "train_vqvae", train, ["data"], half, codec / WEIGHTS)
    mask = models / "mask_estimator"
    train = ("--output", mask, *common)
    add("mask estimator", "train_mask", train, ["data"], product=mask / WEIGHTS)
    for objective in OBJECTIVES:
        family, after = models / objective, [f"codec {objective}"]
        from_codec = ("--vqvae", family / "vqvae")
        for source in SOURCES:
            run = family / f"prior_{source}"
            train = (*from_codec, "--source", source, "--output", run, *common)
            add(f"prior {objective} {source}", "train_prior", train, after, product=run / WEIGHTS)
        iterations = ("--shifts", 1, "--iterations", args.count_iterations)
        tables = {"counts": ("count_sums", iterations), "calibration": ("calibrate", ())}
        for name, (script, more) in tables.items():
            table = family / f"{name}.safetensors"
            flags = (*from_codec, "--data", data, "--output", table, *more, *seed)
            add(f"{name} {objective}", script, flags, after, product=table)
    linear = models / "linearisation"
    sums = linear / "sums.safetensors"
    compute = ("--vqvae", linear / "vqvae", "--output", sums)
    add("code sums", "precompute_sums", compute, ["codec linearisation"], product=sums)
    # The recommended system: the network's own draws are enough for the last stage to learn from.
    network = linear / RUN
    train = ("--vqvae", linear / "vqvae", "--output", network, *common)
    after = ["codec linearisation"]
    add("neural likelihood", "train_likelihood", train, after, product=network / WEIGHTS)
    last = mask_folder(models, RECOMMENDED)
    train = ("--models", models, "--method", "neural", *DRAWN_WITH, "--output", last, *common)
    after = [
        "neural likelihood",
        "mask estimator",
        *(f"prior linearisation {source}" for source in SOURCES),
    ]
    add("mask network", "train_mask_network", train, after, product=last / WEIGHTS)

    # One method per process. All get the number of threads, since it identifies the parts.
    systems = (*PUBLISHED_METHODS, RECOMMENDED)
    threads = max(1, (args.cores or os.cpu_count() or 1) // len(systems))
    inputs = ("--models", models, "--data", data)
    score = (*inputs, "--output", results, "--chunks", args.chunks, "--threads", threads, *seed)
    for method in systems:
        trained = METHODS[method].family
        after = [f"prior {trained} {source}" for source in SOURCES]
        after += [f"counts {trained}", f"calibration {trained}", "code sums"]
        after += ["mask network"] * (method == RECOMMENDED)
        flags = (*score, "--methods", method, "--parts-only")
        add(f"scores {method}", "evaluate", flags, after, share=1 / len(systems))
    parts = [f"scores {method}" for method in systems]
    add("scores", "evaluate", score, ["mask estimator", *parts], share=1, product=results)
    add("report", "report", ("--runs", out, "--output", report), ["scores"], 1, report)
    return plan


@program
def main(args: Args) -> None:
    """Run the plan, then print the table."""
    results, report = args.output / "results.json", args.output / "report.html"
    # evaluate and report check this too, but only after the training.
    systems = (*PUBLISHED_METHODS, RECOMMENDED)
    Outputs(results, SOURCES, METHODS).check(systems, BASELINES, min(EXAMPLES, args.chunks))
    check_replaceable(report, is_report, "a report")
    Runner(stages(args), args.output, args.cores or os.cpu_count() or 1, scripts).run()
    print(format_table(load_results(results)))
    print(f"\nresults: {results}\nreport:  {report}")


if __name__ == "__main__":
    sys.exit(main())
