"""Print the bits per code of every variant of the likelihood on validation songs.

    python -m scripts.score_likelihood --models runs/demo/models --data runs/demo/data

Sources and mixture of song crops are encoded; every variant predicts the mixture's code: bits per
code (fewer are better; blind guessing costs log2 K), and bits about the pair at several exponents
(more are better), see `jukebox_core.evaluation.likelihood`. Nothing is trained or chosen
here. Every row is normalised over the mixture's codes; in separation, the Gaussian and products
with it are not.

    python -m scripts.score_likelihood --models ... --data ... --counts gains.safetensors

--counts also scores other files of counts that belong to the same codec, as rows FILE: VARIANT;
for example, counts at several gains, or of fewer iterations.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybrid import GaussianBase, PooledLikelihood
from jukebox_core.checkpoints import fingerprint, load_codec, load_config, provenance
from jukebox_core.checks import require_fields
from jukebox_core.config import VQVAEConfig
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation.likelihood import Information, held_out_bits
from jukebox_core.files import check_replaceable, json_with, write_json
from jukebox_core.machine import free_bytes, set_threads
from jukebox_core.separation.likelihood import (
    Likelihood,
    check_exponent,
    check_sigma,
    check_smoothing,
)
from jukebox_core.separation.loading import prior_folders
from jukebox_core.separation.partial_sums import steps_of
from lass.counts import Counts, CountsFile, load_counts, symmetrise
from lass.likelihood import CountLikelihood, SmoothedLikelihood
from lass.smoothing import Marginals, Overall
from lass.triples import PairCounting
from lqvae.likelihood import LatentGaussianLikelihood
from lqvae.sums import load_sums
from scripts._cli import program
from scripts._results import text_table

FAMILIES = ("reconstruction", "linearisation")


@dataclass(frozen=True)
class Args:
    """Flags of scripts.score_likelihood."""

    models: Path
    """Folder of trained models."""
    data: Path
    """Prepared data set."""
    counts: tuple[Path, ...] = ()
    """Further files of counts to score, named by file name."""
    output: Path | None = None
    """JSON file for the table and the flags."""
    split: str = "validation"
    """Split of the songs."""
    iterations: int = 8
    """Iterations of 8 pairs of 1024 codes each."""
    smoothings: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    """Numbers of pseudo-observations per pair of codes."""
    sigmas: tuple[float, ...] = (0.3, 0.4, 0.6)
    """Standard deviations of the Gaussian."""
    exponents: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 6.0)
    """Exponents (lambda) of the likelihood."""
    compared: int = 2048
    """Random pairs that the pair of a triple is compared with."""
    seed: int = 0
    """Random seed for the crops and the compared pairs."""
    threads: int | None = None
    """CPU threads."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_fields(self, "iterations", "compared", whole=True, at_least=1)
        for name, check in (
            ("smoothings", partial(check_smoothing, or_none=False)),
            ("sigmas", check_sigma),
            ("exponents", check_exponent),
        ):
            for index, value in enumerate(getattr(self, name)):
                check(f"{name}[{index}]", value)


@program
def main(args: Args) -> None:
    """Print a table per family of models, and write the JSON."""
    set_threads(args.threads)
    if args.output is not None:
        written = json_with("variants", "asked.iterations", "asked.compared")
        check_replaceable(args.output, written, "a table of likelihoods")
    families = [f for f in FAMILIES if (args.models / f / "counts.safetensors").is_file()]
    if not families:
        raise FileNotFoundError(
            f"{args.models} has no FAMILY/counts.safetensors: count with scripts.count_sums"
        )
    codecs = {family: fingerprint(args.models / family / "vqvae") for family in families}
    for family in families:
        config, _ = load_config(args.models / family / "vqvae", "vqvae", VQVAEConfig)
        check_memory(args, config.l_bins)
    if not load_manifest(args.data).split(args.split):
        raise ValueError(f"split is {args.split}, but {args.data} has no songs in it")
    further = further_counts(args.counts, codecs)
    tables = {
        family: list(score(args, args.models / family, further[family])) for family in families
    }
    for family, rows in tables.items():
        print(f"{family}: {rows[0][1].n} codes of {args.split} songs\n")
        print(format_rows(rows, args.exponents), end="\n\n")
    print(
        "All rows are normalised over the mixture's codes; in separation, the Gaussian and "
        "products with it are not."
    )
    if args.output is not None:
        as_json = {
            family: {name: _as_json(row) for name, row in rows} for family, rows in tables.items()
        }
        asked = {name: getattr(args, name) for name in ("split", "iterations", "compared", "seed")}
        write_json(args.output, {"variants": as_json, "asked": asked, **provenance()})


def check_memory(args: Args, n_codes: int) -> None:
    """Refuse numbers of triples and compared pairs whose scores do not fit in memory.

    Raises:
        ValueError: The tables are larger than the free memory.
    """
    plan = PairCounting()
    triples = args.iterations * plan.pairs * plan.crop
    needed = 8 * (
        n_codes * (triples + args.compared) + triples * args.compared
    )  # of `held_out_bits`
    free = free_bytes(torch.device("cpu"))
    if needed > free:
        counts = {"iterations": args.iterations, "compared": args.compared}
        first, second = sorted(counts, key=lambda name: -counts[name])
        raise ValueError(
            f"{first} is {counts[first]} and {second} is {counts[second]}: their scores take "
            f"{needed / 2**30:,.1f} GiB, but only {free / 2**30:,.1f} GiB are free"
        )


def _as_json(row: Information) -> dict[str, Any]:
    """bits_per_code: null where they are infinite; pair_bits by lambda, as a string."""
    finite = math.isfinite(row.bits_per_code)
    pair_bits = {f"{weight:g}": bits for weight, bits in row.pair_bits.items()}
    bits_per_code = row.bits_per_code if finite else None
    return row._asdict() | {"bits_per_code": bits_per_code, "pair_bits": pair_bits}


def further_counts(paths: Sequence[Path], codecs: Mapping[str, str]) -> dict[str, dict[str, Path]]:
    """{family: {`STEM: `: file}} of further counts.

    Args:
        paths: written by scripts.count_sums.
        codecs: {family: fingerprint of its codec}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of no family's codec, or has the stem of another of the family.
    """
    further: dict[str, dict[str, Path]] = {family: {} for family in codecs}
    for path in paths:
        codec, prefix = CountsFile(path).metadata.get("codec"), f"{path.stem}: "
        if codec not in codecs.values():
            raise ValueError(f"{path} was counted with another codec than {' or '.join(codecs)}")
        for family in (family for family in codecs if codecs[family] == codec):
            if prefix in further[family]:
                raise ValueError(f"several --counts of {family} are called {path.stem}: rename one")
            further[family][prefix] = path
    return further


def score(
    args: Args, family: Path, further: Mapping[str, Path]
) -> Iterator[tuple[str, Information]]:
    """(name, information) of every variant that the family has the tables for.

    further: {prefix of the names: other counts of the family's codec}.
    """
    codec = load_codec(family / "vqvae")
    manifest = load_manifest(args.data)
    identity = fingerprint(family / "vqvae")
    sources = tuple(prior_folders(family, manifest.sources))
    alpha = {name: manifest.alpha[name] for name in sources}
    plan = PairCounting(pairing="song", seed=args.seed)
    last = steps_of(alpha)[-1]
    weights = dict(zip(last.names, last.weights, strict=True))
    parts = {last.names[0]: last.first}
    drawn = plan.iterate(codec, manifest.split(args.split), weights, parts=parts)
    first, second, mixture = (
        torch.from_numpy(np.concatenate([np.ravel(x) for x in codes]).astype(np.int64))
        for codes in zip(*islice(drawn, args.iterations), strict=True)
    )
    generator = torch.Generator().manual_seed(args.seed)
    others = torch.stack(
        [x[torch.randint(len(x), (args.compared,), generator=generator)] for x in (first, second)]
    )
    sums = family / "sums.safetensors"
    table = load_sums(sums, identity, last.place) if sums.is_file() else None
    for prefix, path in {"": family / "counts.safetensors", **further}.items():
        counts, _ = load_counts(path, identity, last.names)
        for name, likelihood in variants(args, counts, codec.codebook, table):
            if prefix and name.startswith("Gaussian"):
                continue  # it has no counts
            triples = (first, second, mixture)
            yield prefix + name, held_out_bits(likelihood, *triples, others, args.exponents)


def variants(
    args: Args, counts: Counts, codebook: Tensor, sums: Tensor | None
) -> Iterator[tuple[str, Likelihood]]:
    """(name, likelihood) of every variant, at lambda 1."""

    def smoothed(
        name: str, base: Any, product: str = "", **options: Any
    ) -> Iterator[tuple[str, SmoothedLikelihood]]:
        for s in args.smoothings:
            likelihood = SmoothedLikelihood(counts, base, 1.0, concentration=s, **options)
            yield f"{name}, {s:g}{product}", likelihood

    marginals = Marginals(counts)
    yield "counts, symmetric (LASS)", CountLikelihood(counts, 1.0)
    yield "counts, class-ordered", CountLikelihood(counts, 1.0, symmetric=False)
    yield from smoothed("to p(m)", Overall(counts))
    yield from smoothed("to marginals", marginals)
    both = Marginals(symmetrise(counts))
    yield from smoothed("to marginals, symmetric", both, symmetric=True)
    if sums is None:
        return
    for sigma in args.sigmas:
        gaussian = LatentGaussianLikelihood(codebook, sums, sigma)
        yield f"Gaussian (LQ-VAE), sigma {sigma:g}", gaussian
        yield from smoothed(f"to Gaussian {sigma:g}", GaussianBase(gaussian, counts))
        for name, counted in smoothed("to marginals", marginals):
            yield f"{name}, times Gaussian {sigma:g}", PooledLikelihood(counted, gaussian)


def format_rows(rows: list[tuple[str, Information]], exponents: tuple[float, ...]) -> str:
    """The table as aligned text."""
    head = ["variant", "impossible", "bits / code", *(f"pair, {w:g}" for w in exponents)]
    body = [
        [
            name,
            f"{scores.impossible:.1%}",
            f"{scores.bits_per_code:.3f}",
            *(f"{scores.pair_bits[w]:.2f}" for w in exponents),
        ]
        for name, scores in rows
    ]
    return text_table([head, *body])


if __name__ == "__main__":
    sys.exit(main())
