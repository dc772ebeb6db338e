"""Compare codecs and priors at equal steps: train and score variants that differ in one setting.

    python -m scripts.ablate_training --data runs/demo/data --output runs/ablation_training

All variants train for equally many steps. A variant of the codec has its own priors and
counts; a variant of the prior shares the base's codec and counts. Scores are on validation songs:
SDR of the codec's round trip, used codes (perplexity), the priors' bits per code and per second,
and the hybrid's separation as paired differences to the base. It writes OUTPUT/training.json and
prints the table. The same command resumes an interrupted run. It takes an hour or more on a
CPU; `--variants` and `--steps-share` shorten it. The demo's codec has one level: the two variants
with two levels show the effect of training only the top level.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import scripts
from jukebox_core.checkpoints import load_codec, provenance
from jukebox_core.checks import require_fields, require_types
from jukebox_core.config import TrainConfig
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation.bootstrap import paired_difference
from jukebox_core.evaluation.chunks import Chunk, choose_chunks, silence_rule
from jukebox_core.evaluation.metrics import sdr
from jukebox_core.evaluation.results import find_row, load_results, series
from jukebox_core.files import atomic_folder, check_replaceable, json_with, write_json
from jukebox_core.machine import available_cores
from jukebox_core.presets import PRESETS, PresetName
from jukebox_core.stages import Runner, Stage
from jukebox_core.training.tracking import METRICS, read_metrics
from scripts._cli import program
from scripts._results import text_table

BASE = "base"
TWO_LEVELS = "--vqvae.levels 2 --vqvae.downs-t 1 2 --vqvae.strides-t 4 4 --vqvae.multipliers 1 1"
"""The base's hop at the top level, and a level of hop 4 below it."""
CODEC = {
    BASE: "",
    "codec trained on mixtures": "--train-on mixtures",
    # Items of three rows, in two halves: a batch of 8 is impossible.
    "codec trained on both, batch 6": "--train-on both --train.batch-size 6",
    "256 codes": "--vqvae.l-bins 256",
    "1024 codes": "--vqvae.l-bins 1024",
    "codec: gain and polarity": "--gain-db 6 --polarity",
    "codec: transposed": "--transpose-semitones 2",
    "codec: songs paired at random": "--pairing random",
    "two levels": TWO_LEVELS,
    "two levels, the top alone": f"{TWO_LEVELS} --vqvae.top-only",
}
"""Flags of scripts.train_vqvae, by variant."""
PRIOR = {
    "prior of half the width": "--prior.width 64",
    "prior of twice the depth": "--prior.depth 8",
    "prior: dropout 0.1": "--prior.dropout 0.1",
    "prior: transposed": "--transpose-semitones 2",
}
"""Flags of scripts.train_prior, by variant."""
SHOWN = {
    "oracle, raw": ("oracle", False),
    "selected, raw": ("selected", False),
    "refined": ("selected", True),
}


@dataclass(frozen=True)
class Args:
    """Flags of scripts.ablate_training."""

    data: Path
    """Prepared data set."""
    output: Path
    """Folder for all models and results."""
    preset: PresetName = "demo"
    """Size of the base model."""
    variants: tuple[str, ...] = (*CODEC, *PRIOR)
    """Variants by name; the base is always included."""
    steps_share: float = 1.0
    """Share of the preset's steps that every variant takes."""
    count_iterations: int = 250
    """Iterations of scripts.count_sums."""
    chunks: int = 24
    """Number of validation chunks."""
    candidates: int = 16
    """Joint candidates per chunk."""
    chunk_codes: int = 1024
    """Codes per chunk, at most the models' window."""
    seed: int = 0
    """Random seed."""
    cores: int | None = None
    """CPU cores to use; default: all."""

    def __post_init__(self) -> None:
        require_types(self)
        require_fields(self, "steps_share", above=0, at_most=1)
        counts = ("count_iterations", "chunks", "candidates", "chunk_codes")
        require_fields(self, *counts, whole=True, at_least=1)
        require_fields(self, "cores", optional=True, whole=True, at_least=1)


@program
def main(args: Args) -> None:
    """Train and score the unfinished variants; write and print the table."""
    names = check(args)
    cores = args.cores or available_cores()
    sources = load_manifest(args.data).sources
    table = args.output / "training.json"
    check_replaceable(table, json_with("variants.0.codec_sdr_mixtures"), "a table of variants")
    first, rest = ([name for name in names if name in group] for group in (CODEC, PRIOR))
    codecs, priors = (
        Runner([s for name in some for s in stages(args, name, sources)], at, cores, scripts)
        for some, at in ((first, args.output), (rest, args.output / "priors"))
    )
    codecs.run()
    for name in rest:
        share_base(args, name)
    if rest:
        priors.run()
    rows = list(measure(args, names, sources))
    write_json(table, {"variants": rows, **provenance()})
    print(format_rows(rows, sources))


def check(args: Args) -> list[str]:
    """The variants in the order of the tables; refuses unknown names."""
    unknown = [name for name in args.variants if name not in (*CODEC, *PRIOR)]
    if unknown:
        names = ", ".join(repr(name) for name in (*CODEC, *PRIOR))
        raise ValueError(f"--variants names {', '.join(unknown)}; there are {names}")
    return [name for name in (*CODEC, *PRIOR) if name in (BASE, *args.variants)]


def folder(args: Args, name: str) -> Path:
    """The folder of a variant."""
    return args.output / re.sub(r"\W+", "_", name)


def stages(args: Args, name: str, sources: Sequence[str]) -> Iterator[Stage]:
    """The commands of a variant; a variant of the prior uses a copy of the base's codec."""
    family = folder(args, name) / "models" / "linearisation"
    codec, results = family / "vqvae", folder(args, name) / "results.json"
    preset = PRESETS[args.preset]
    common = {"data": args.data, "preset": args.preset, "seed": args.seed, "wandb": "disabled"}
    tables: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    if name in CODEC:
        after = (f"{name}, codec",)
        decay = preset.vqvae_optim.decay_steps
        yield stage(
            after[0],
            codec / "weights.safetensors",
            (),
            "train_vqvae",
            {"objective": "linearisation", "output": codec} | common,
            (*schedule(args, preset.vqvae_train, decay), *CODEC[name].split()),
        )
        counts, sums = family / "counts.safetensors", family / "sums.safetensors"
        tables = (f"{name}, counts", f"{name}, sums")
        counting = {"vqvae": codec, "data": args.data, "output": counts, "shifts": 1}
        counting |= {"iterations": args.count_iterations, "seed": args.seed}
        yield stage(tables[0], counts, after, "count_sums", counting)
        yield stage(tables[1], sums, after, "precompute_sums", {"vqvae": codec, "output": sums})
    priors = tuple(f"{name}, prior {source}" for source in sources)
    decay = preset.prior_optim.decay_steps
    for prior, source in zip(priors, sources, strict=True):
        run = family / f"prior_{source}"
        yield stage(
            prior,
            run / "weights.safetensors",
            after,
            "train_prior",
            {"vqvae": codec, "source": source, "output": run} | common,
            (*schedule(args, preset.prior_train, decay), *PRIOR.get(name, "").split()),
        )
    scoring = {"models": family.parent, "data": args.data, "output": results, "methods": "hybrid"}
    scoring |= {"baselines": ("mixture", "codec"), "split": "validation", "chunks": args.chunks}
    scoring |= {"examples": 0, "candidates": args.candidates, "chunk-codes": args.chunk_codes}
    scoring |= {"seed": args.seed, "threads": 1}
    yield stage(f"{name}, scores", results, (*tables, *priors), "evaluate", scoring)


def stage(
    name: str,
    product: Path,
    after: tuple[str, ...],
    program: str,
    flags: Mapping[str, Any],
    more: tuple[str, ...] = (),
) -> Stage:
    """A stage on a quarter of the cores."""
    words = [program]
    for flag, value in flags.items():
        words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return Stage(name, (*words, *more), after, share=0.25, product=product)


def schedule(args: Args, train: TrainConfig, decay: int) -> tuple[str, ...]:
    """Flags for a share of the steps, with the same shape of the learning rate."""
    if args.steps_share == 1:
        return ()
    steps = max(1, round(train.steps * args.steps_share))
    decayed = str(round(decay * steps / train.steps))
    return ("--train.steps", str(steps), "--optim.decay-steps", decayed)


def share_base(args: Args, name: str) -> None:
    """Copy the base's codec and tables into a variant of the prior."""
    base, copy = (folder(args, n) / "models" / "linearisation" for n in (BASE, name))
    if copy.is_dir():
        return
    with atomic_folder(copy) as temporary:
        for table in ("counts.safetensors", "sums.safetensors"):
            shutil.copyfile(base / table, temporary / table)
        ignored = shutil.ignore_patterns("state.pt")
        shutil.copytree(base / "vqvae", temporary / "vqvae", ignore=ignored)


def measure(args: Args, names: Sequence[str], sources: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row per variant."""
    manifest = load_manifest(args.data)
    base = load_results(folder(args, BASE) / "results.json")
    chunks: list[Chunk] = []
    for name in names:
        family = folder(args, name) / "models" / "linearisation"
        results = load_results(folder(args, name) / "results.json")
        codec = load_codec(family / "vqvae")
        if not chunks:
            length = results["meta"]["data"]["chunk_samples"]
            rule = silence_rule(False)[1]
            split = (manifest, "validation", args.chunks, length, args.seed, rule)
            chunks, _ = choose_chunks(*split)
        with torch.no_grad():
            codes = [codec.encode(chunk.mixture[None]) for chunk in chunks]
            trips = [
                sdr(chunk.mixture, codec.decode(code)[0]).item()
                for chunk, code in zip(chunks, codes, strict=True)
            ]
        used = torch.bincount(torch.cat(codes, 1).flatten(), minlength=codec.config.l_bins)
        share = used[used > 0] / used.sum()
        bits = {source: last_bits(family / f"prior_{source}") for source in sources}
        scores = {}
        for shown, (estimate, refined) in SHOWN.items():
            own, before = (
                series(table, "hybrid", estimate, refined, "mean", "sdr")
                for table in (results, base)
            )
            gap = paired_difference(list(own.values()), list(before.values()))
            scores[shown] = {"sdr": sum(own.values()) / len(own), "to_base": gap._asdict()}
        ceiling = find_row(results, "codec", "oracle", False, "mean", "sdr")
        yield {
            "variant": name,
            "codec_sdr_sources": ceiling["mean"] if ceiling else None,
            "codec_sdr_mixtures": sum(trips) / len(trips),
            "perplexity_mixtures": float((-(share * share.log()).sum()).exp()),
            "bits_per_code": bits,
            "bits_per_second": {
                source: value * codec.config.sample_rate / codec.config.hop
                for source, value in bits.items()
            },
            "scores": scores,
        }


def last_bits(run: Path) -> float:
    """A prior's last bits per code on validation songs, with averaged weights."""
    bits = [
        row.value
        for row in read_metrics(run / METRICS)
        if (row.split, row.metric) == ("validation", "bits_per_code")
    ]
    if not bits:
        raise ValueError(f"{run / METRICS} has no validation of the prior")
    return bits[-1]


def format_rows(rows: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> str:
    """The table as aligned text."""
    head = ["variant", "", "codec, sources", "codec, mixtures", "perplexity"]
    head += [f"bits, {source}" for source in sources]
    head += [*SHOWN, "refined, to the base"]
    body = []
    for row in rows:
        gap = row["scores"]["refined"]["to_base"]
        body.append(
            [
                row["variant"],
                "",
                f"{row['codec_sdr_sources']:.2f}",
                f"{row['codec_sdr_mixtures']:.2f}",
                f"{row['perplexity_mixtures']:.0f}",
                *(f"{row['bits_per_code'][source]:.2f}" for source in sources),
                *(f"{row['scores'][shown]['sdr']:.2f}" for shown in SHOWN),
                f"{gap['mean']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]",
            ]
        )
    return text_table([head, *body])


if __name__ == "__main__":
    sys.exit(main())
