"""The stages of an experiment: train all systems, score them. Programs run them with a `Runner`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from data.composer import PARTS
from data.slakh import OTHER
from jukebox_core.checkpoints import WEIGHTS
from jukebox_core.neural.method import RUN, mask_folder
from jukebox_core.separation.settings import Settings, tuned_path
from jukebox_core.stages import Stage
from scripts._methods import METHODS, PUBLISHED_METHODS, RECOMMENDED, MethodName

SOURCES = ("bass", "drums")
"""The sources that the programs take where none are named."""
OBJECTIVES = ("reconstruction", "linearisation")
SYSTEMS: tuple[MethodName, ...] = (*PUBLISHED_METHODS, RECOMMENDED)
"""The systems that an experiment trains."""
NETWORKS: MethodName = "neural"
"""The method that has only the networks: no pair likelihood, hence neither tables nor priors."""
WITHOUT_PRIORS = ("--prior", "unigram")
"""Flags that make the codes' frequencies the priors."""
VARIETY: tuple[object, ...] = ("--style", "wide", "--programs", "all")
VARIETY += ("--production", "all", "--level", "loudness")
"""All variety of generated songs that needs no files."""
DRAWN_WITH: tuple[object, ...] = (*WITHOUT_PRIORS, "--neural-exponent", 1.0)
DRAWN_WITH += ("--temperature", 1.0, "--sampler", "ancestral")
"""Settings of the candidates that the mask network learns from."""


class SourceFlags(NamedTuple):
    """What the programs are told of the sources: nothing of the usual ones that is not needed.

    songs: to make_synthetic. data: to prepare_slakh. sums: to precompute_sums.
    """

    songs: tuple[object, ...]
    data: tuple[object, ...]
    sums: tuple[object, ...]


def check_parts(sources: Sequence[str]) -> None:
    """Raise ValueError unless these are sources of composed songs."""
    names = {*sources}
    if not names <= {*PARTS, OTHER} or len(names) < max(2, len(sources)):
        raise ValueError(
            f"sources are {' '.join(sources) or 'empty'}, expected two or more of "
            f"{', '.join((*PARTS, OTHER))}, each once"
        )


def source_flags(sources: Sequence[str]) -> SourceFlags:
    """The flags of the programs for these sources."""
    more = len(sources) > 2
    return SourceFlags(
        # All parts play if one of the sources is the rest.
        () if OTHER in sources else ("--parts", *sources),
        () if tuple(sources) == SOURCES else ("--sources", *sources, *["--keep-silent"] * more),
        ("--alpha", *[1 / len(sources)] * len(sources)) if more else (),
    )


def stage(
    name: str,
    script: str,
    flags: Sequence[object],
    after: Sequence[str] = (),
    share: float = 1.0,
    product: Path | None = None,
) -> Stage:
    """A stage that runs a program with flags of any type."""
    return Stage(name, (script, *map(str, flags)), tuple(after), share, product)


@dataclass(frozen=True)
class Experiment:
    """Models of one size, trained on one data set.

    data: prepared data set, which the stage `data` makes. models: folder for all of them.
    side_by_side: number of trainings that run at a time, at most one per core; None: four, or one
    of the method `neural`, where one waits for another. more: {program: additional flags}.
    objectives: of the codecs; without `reconstruction` there is no LASS. sources: of the data.
    method: that the mask network is for.
    """

    data: Path
    models: Path
    preset: str
    count_iterations: int
    seed: int
    side_by_side: int | None = None
    more: Mapping[str, Sequence[object]] | None = None
    objectives: tuple[str, ...] = OBJECTIVES
    sources: tuple[str, ...] = SOURCES
    method: MethodName = RECOMMENDED

    def stages(self) -> list[Stage]:
        """Train the parts of the systems and the mask estimator."""
        data, models = self.data, self.models
        quarter = 1 / (self.side_by_side or (1 if self.method == NETWORKS else 4))
        half = min(1.0, 2 * quarter)  # the priors train side by side
        seed = ("--seed", self.seed)
        plan: list[Stage] = []

        def add(
            name: str,
            script: str,
            flags: Sequence[object],
            after: Sequence[str] = (),
            share: float = quarter,
            product: Path | None = None,
        ) -> None:
            flags = (*flags, *(self.more or {}).get(script, ()))
            plan.append(stage(name, script, flags, after, share, product))

        # The first stage that fits starts: the codecs, which the rest waits for, then the longest
        # chain of the demo, the neural likelihood and the mask network.
        common = ("--data", data, "--preset", self.preset, *seed)
        for objective in self.objectives:
            codec = models / objective / "vqvae"
            train: tuple[object, ...] = ("--objective", objective, "--output", codec, *common)
            add(f"codec {objective}", "train_vqvae", train, ["data"], half, codec / WEIGHTS)
        mask = models / "mask_estimator"
        train = ("--output", mask, *common)
        add("mask estimator", "train_mask", train, ["data"], product=mask / WEIGHTS)
        # The recommended system: the network's own draws are enough for the last stage to learn
        # from.
        linear = models / "linearisation"
        network = linear / RUN
        train = ("--vqvae", linear / "vqvae", "--output", network, *common)
        after = ["codec linearisation"]
        add("neural likelihood", "train_likelihood", train, after, product=network / WEIGHTS)
        last = mask_folder(models, self.method)
        train = ("--models", models, "--method", NETWORKS, *DRAWN_WITH, "--output", last, *common)
        after = ["neural likelihood", "mask estimator"]
        add("mask network", "train_mask_network", train, after, product=last / WEIGHTS)
        for objective in self.objectives:
            family, after = models / objective, [f"codec {objective}"]
            from_codec = ("--vqvae", family / "vqvae")
            for source in self.sources:
                run = family / f"prior_{source}"
                train = (*from_codec, "--source", source, "--output", run, *common)
                name = f"prior {objective} {source}"
                add(name, "train_prior", train, after, product=run / WEIGHTS)
            iterations = ("--shifts", 1, "--iterations", self.count_iterations)
            tables = {"counts": ("count_sums", iterations), "calibration": ("calibrate", ())}
            for name, (script, more) in tables.items():
                table = family / f"{name}.safetensors"
                flags = (*from_codec, "--data", data, "--output", table, *more, *seed)
                add(f"{name} {objective}", script, flags, after, product=table)
        sums = linear / "sums.safetensors"
        compute = ("--vqvae", linear / "vqvae", "--output", sums, *source_flags(self.sources).sums)
        add("code sums", "precompute_sums", compute, ["codec linearisation"], product=sums)
        return plan

    def tuning(self, *flags: object) -> Stage:
        """The stage `settings`: tune the method, and record that there are no priors if so."""
        words = ("--models", self.models, "--data", self.data, "--method", self.method, *flags)
        words += WITHOUT_PRIORS if self.method == NETWORKS else ()
        after = needs(self.method, self.sources)
        product = tuned_path(self.models, self.method)
        return stage("settings", "tune", words, after, product=product)


def prior_flags(preset: str) -> tuple[str, ...]:
    """Flags that save time and memory when this machine's GPU trains large priors."""
    if preset not in ("small", "t4") or not torch.cuda.is_available():
        return ()
    # Older GPUs such as a T4 have only float16; PyTorch emulates bfloat16, but slowly.
    recent = torch.cuda.get_device_capability() >= (8, 0)
    return ("--batch", "auto", "--precision", "bf16-mixed" if recent else "16-mixed")


def needs(method: MethodName, sources: Sequence[str] = SOURCES) -> list[str]:
    """The stages of an `Experiment` that train what a method needs."""
    own = METHODS[method]
    names = [f"calibration {own.family}"]
    if own.tables(Settings(), len(sources)):  # without, the posterior needs no trained priors
        names += [f"prior {own.family} {source}" for source in sources]
        names += [f"counts {own.family}", "code sums"]
    return names + ["mask network"] * bool(own.runs())


def required(plan: Sequence[Stage], *names: str) -> list[Stage]:
    """The stages of those names, and all that must finish before them, in the plan's order."""
    by_name = {stage.name: stage for stage in plan}
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += by_name[name].after
    return [stage for stage in plan if stage.name in found]


def scoring(
    title: str,
    methods: Sequence[MethodName],
    flags: Sequence[object],
    results: Path,
    after: Callable[[MethodName], Sequence[str]],
    *,
    joined: Sequence[object] = (),
    beside: Sequence[str] = (),
    side_by_side: int | None = None,
) -> list[Stage]:
    """Score methods, one per process, then the baselines; join the scores.

    Args:
        title: of the stages.
        methods: to score.
        flags: of scripts.evaluate, without the methods.
        results: the JSON file that it writes.
        after: {method: names of stages that must finish before}.
        joined: more flags of the stage that joins.
        beside: names of other stages that must finish before that one.
        side_by_side: methods that are scored at a time; None: all.
    """
    score = ("evaluate", *map(str, flags))
    parts = [
        Stage(
            f"{title} {method}",
            (*score, "--methods", method, "--parts-only"),
            tuple(after(method)),
            1 / (side_by_side or len(methods)),
        )
        for method in methods
    ]
    names = (*beside, *(part.name for part in parts))
    return [*parts, Stage(title, (*score, *map(str, joined)), names, 1.0, results)]
