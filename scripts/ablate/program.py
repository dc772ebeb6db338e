"""What each part adds: the three systems and the steps between, on test songs, with intervals.

    python -m scripts.ablate --models runs/demo/models --data runs/demo/data --output runs/ablation

Every row is a way from the same chunks to estimates, every sampling is done with several seeds; a
chunk's score is the mean over the seeds, intervals are over chunks (paired for differences). Writes
OUTPUT/ablation.json, ablation.md (the tables of docs/results.md) and plots. Stopped, the same
command goes on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from hybrid import POOLED_WEIGHT
from jukebox_core.checkpoints import load_codec, load_mask_estimator, load_meta, provenance
from jukebox_core.checks import require_fields
from jukebox_core.config import PRESETS
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation import baselines, metrics
from jukebox_core.evaluation.bootstrap import bootstrap_mean, paired_difference
from jukebox_core.evaluation.estimates import Chunk, codec_round_trip
from jukebox_core.evaluation.figures import is_figure_of, is_png_of_matplotlib
from jukebox_core.evaluation.nmf import nmf
from jukebox_core.files import check_replaceable, json_with, marked, write_json, write_text
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.rejection import (
    RejectionMarginals,
    RejectionPair,
    RejectionSelection,
)
from jukebox_core.separation.selection import LogPosterior, MinimumBayesRisk, SpectralFit
from lass.likelihood import BACKOFF, WEIGHT
from lqvae.likelihood import SIGMA
from scripts._cli import program
from scripts._models import FAMILY, METHODS, Method, refinement_of
from scripts._results import markdown_table
from scripts._settings import AFTERWARDS, Settings, resolve
from scripts._sweep import (
    Draw,
    Oracle,
    Picked,
    PickedApart,
    Refined,
    RoundTrip,
    Scores,
    Single,
    Study,
    Way,
    run_draws,
)
from scripts.ablate.plots import plot_names, shown, write_plots

PUBLISHED = {
    "sampler": "ancestral",
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "sigma": 0.4,
    "weight": 3.0,
    "backoff": 0.0,
    "kernel": False,
    "symmetric": True,
    "shifts": 1,
}
"""The sampling of the original systems; each method takes the settings that it uses."""
MASK = RatioMask()
_ROWS, _TABLES = "ablation.json", "ablation.md"


class Row(NamedTuple):
    """One line: candidates of a draw, and the way from them to estimates."""

    name: str
    draw: Draw
    way: str


@dataclass(frozen=True)
class Args:
    """Flags of scripts.ablate."""

    models: Path
    """Folder of trained models, with what scripts.tune chose for them."""
    data: Path
    """Prepared data set."""
    output: Path
    """Folder to write to."""
    split: str = "test"
    """Whose songs."""
    chunks: int = 60
    """At most so many chunks, one per song where there are enough songs."""
    candidates: int = 16
    """Joint candidates per chunk."""
    seeds: int = 3
    """Samplings of every row."""
    parts: bool = True
    """Ablate the hybrid's parts; otherwise the three systems alone."""
    seed: int = 0
    """Of the chunks."""
    chunk_codes: int = 1024
    """Codes per chunk, at most the models' window."""
    jobs: int = 4
    """Processes, of one thread each."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_fields(self, "chunks", "candidates", "chunk_codes", "jobs", whole=True, at_least=1)
        require_fields(self, "seeds", whole=True, at_least=1, at_most=1000)


@program
def main(args: Args) -> None:
    """Run every row, write the tables, print them."""
    sources = load_manifest(args.data).sources
    check_outputs(args.output, sources)
    study = Study(args.models, args.data, args.split, args.chunks, args.seed, args.chunk_codes)
    rows = list(plan(args))
    known, wanted = ways(args), defaultdict[Draw, dict[str, Way]](dict)
    for row in rows:
        for draw in _seeded(row.draw, args.seeds):
            wanted[draw][row.way] = known[row.way]
    found = run_draws(study, wanted, args.output / "parts", args.jobs)
    scores = Table(rows, found, args.seeds, sources)
    for name, values in baseline_scores(args, study):
        scores.add(f"baseline: {name}", values)
    lines = [scores.line(name) for name in scores.rows]
    comparisons = list(compare(lines))
    settings = {method: resolve(Settings(), args.models, method) for method in METHODS}
    write_json(
        args.output / _ROWS,
        {
            "rows": lines,
            "comparisons": comparisons,
            "settings": settings,
            "study": study.identity() | {"candidates": args.candidates, "seeds": args.seeds},
            "files": [_TABLES, *plot_names(sources)],
            **provenance(),
        },
    )
    text = markdown(lines, comparisons)
    write_text(args.output / _TABLES, text)
    write_plots(args.output, lines, scores.sources)
    print(text)


def check_outputs(folder: Path, sources: Sequence[str]) -> None:
    """Refuse a folder in which the tables or plots would replace a file of another program.

    Raises:
        FileExistsError: there is such a file, or something that is not a regular file.
        OSError: the folder cannot be written to.
    """
    check_replaceable(folder / _ROWS, is_ablation, "an ablation")
    check_replaceable(folder / _TABLES, marked("| row |", "| seeds ± | s / chunk |"), "a table")
    own = is_figure_of("ablate")
    earlier = _is_of_an_earlier_version(folder / _ROWS)
    for name in plot_names(sources):
        check_replaceable(
            folder / name,
            lambda path: own(path) or (earlier and is_png_of_matplotlib(path)),
            "a plot of an ablation",
        )


is_ablation = json_with("rows.0.row", "comparisons")
"""For `files.check_replaceable`: whether a file is an ablation.json."""


def _is_of_an_earlier_version(path: Path) -> bool:
    """Whether ablation.json lists no files: then the plots beside it have no mark either."""
    return path.is_file() and is_ablation(path) and not json_with("files")(path)


def ways(args: Args) -> dict[str, Way]:
    """Everything that is made of candidates; what is of one method's codec or settings is named so.

    The originals' own choice is that among all pairs, against the mixture as the codec gives it.
    """
    own: dict[str, Way] = {}
    for method in METHODS:
        chosen, family = resolve(Settings(), args.models, method), args.models / FAMILY[method]
        plain = refinement_of({**chosen, "calibration": False}, family)
        own[f"mask, tuned ({method})"] = Refined(plain)
        own[f"mask, tuned and calibrated ({method})"] = Refined(refinement_of(chosen, family))
        published = RejectionPair(RoundTrip(family / "vqvae"))
        own[f"rejection, published ({method})"] = PickedApart(published)
    return {
        "oracle": Oracle(),
        "single": Single(),
        "rejection, best pair": PickedApart(RejectionPair()),
        "rejection, best of each source": PickedApart(RejectionMarginals()),
        "rejection, joint pairs": Picked(RejectionSelection()),
        "spectral fit": Picked(SpectralFit()),
        "log-posterior": Picked(LogPosterior()),
        "minimum Bayes risk": Picked(MinimumBayesRisk()),
        "mask of one": Refined(MASK, SpectralFit()),
        "mask": Refined(MASK),
        **own,
    }


def baseline_scores(args: Args, study: Study) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """(name, {source: SDR of every chunk}) of what gives the systems' scores a meaning."""
    codecs = {m: load_codec(args.models / FAMILY[m] / "vqvae") for m in ("hybrid", "lass")}
    window = PRESETS[str(load_meta(args.models / FAMILY["hybrid"] / "vqvae")["preset"])].window
    chunks = study.load(codecs["hybrid"].config.hop * min(args.chunk_codes, window))
    manifest = load_manifest(args.data)
    alpha = manifest.alpha

    def ideal(chunk: Chunk) -> dict[str, Tensor]:
        truth = {name: x[None] for name, x in chunk.sources.items()}
        return _first(baselines.ideal_ratio_mask(chunk.mixture[None], truth, alpha))

    known: dict[str, Callable[[Chunk], dict[str, Tensor]]] = {
        "mixture": lambda c: baselines.mixture_as_estimate(c.mixture, manifest.sources),
        "HPSS": lambda c: _first(baselines.hpss(c.mixture[None], alpha)),
        "NMF": lambda c: _first(nmf(c.mixture[None], alpha)),
    }
    trained = args.models / "mask_estimator"
    if trained.is_dir():
        estimator = load_mask_estimator(trained)
        known["supervised mask (LSTM)"] = lambda c: _first(estimator.separate(c.mixture[None]))
    known |= {
        "codec's round trip of the truth": lambda c: codec_round_trip(codecs["hybrid"], c),
        "LASS's codec, the same": lambda c: codec_round_trip(codecs["lass"], c),
        "ideal ratio mask": ideal,
    }
    for name, separate in known.items():
        values: dict[str, list[float]] = {source: [] for source in manifest.sources}
        for chunk in chunks:
            for source, stem in separate(chunk).items():
                values[source].append(metrics.sdr(chunk.sources[source], stem).item())
        yield name, values


def _first(stems: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x[0] for name, x in stems.items()}


def plan(args: Args) -> Iterator[Row]:
    """The rows, in the order of the tables."""

    def draw(method: Method, **options: Any) -> Draw:
        return Draw.of(method, candidates=args.candidates, **options)

    for method in METHODS:
        published, default = draw(method, **PUBLISHED), draw(method)
        yield Row(f"{method}, published: oracle, raw", published, "oracle")
        rejection = f"rejection, published ({method})"
        yield Row(f"{method}, published: rejection, raw", published, rejection)
        yield Row(f"{method}, published: refined", published, "mask")
        yield Row(f"{method}, default: oracle, raw", default, "oracle")
        yield Row(f"{method}, default: selected, raw", default, "spectral fit")
        refined = f"mask, tuned and calibrated ({method})"
        yield Row(f"{method}, default: refined", default, refined)
    if not args.parts:
        return
    chosen = resolve(Settings(), args.models, "hybrid")
    steps: dict[str, Any] = dict(PUBLISHED)
    yield Row("parts: as published", draw("hybrid", **steps), "mask")
    rest = ("sampler", "temperature", "top_k", "top_p", "shifts")  # no part of the likelihood
    changes: tuple[tuple[str, dict[str, Any]], ...] = (
        ("counts class-ordered", {"symmetric": False}),
        ("counts backed off", {"weight": WEIGHT, "backoff": BACKOFF}),
        ("times the kernel", {"kernel": True, "weight": POOLED_WEIGHT, "sigma": SIGMA}),
        ("weights tuned", {k: v for k, v in chosen.items() if k not in (*rest, *AFTERWARDS)}),
        (
            "particles for independent draws",
            {name: chosen[name] for name in rest if name != "shifts"},
        ),
    )
    for name, change in changes:
        steps |= change
        yield Row(f"parts: {name}", draw("hybrid", **steps), "mask")
    yield Row("parts: shifted encodings", draw("hybrid"), "mask")
    yield Row("parts: the mask tuned", draw("hybrid"), "mask, tuned (hybrid)")
    calibrated = "mask, tuned and calibrated (hybrid)"
    yield Row("parts: spectra calibrated", draw("hybrid"), calibrated)
    for way in ways(args):
        if not way.endswith(("(lqvae)", "(lass)")):
            yield Row(f"ways: {way}", draw("hybrid"), way)


class Table:
    """Scores by row, source and chunk, as means over the seeds."""

    def __init__(
        self, rows: Sequence[Row], found: Mapping[Draw, Scores], seeds: int, sources: Sequence[str]
    ):
        self.sources = tuple(sources)
        self.seconds = {
            row.name: float(np.mean([found[d].seconds for d in _seeded(row.draw, seeds)]))
            for row in rows
        }
        self._ways = {row.name: row.way for row in rows}
        self._values: dict[str, np.ndarray] = {
            row.name: np.array(
                [
                    [found[d].values[row.way][source] for source in self.sources]
                    for d in _seeded(row.draw, seeds)
                ]
            )  # [seeds, sources, chunks]
            for row in rows
        }

    @property
    def rows(self) -> list[str]:
        """Their names, in order."""
        return list(self._values)

    def add(self, row: str, values: Mapping[str, Sequence[float]]) -> None:
        """A row that nothing is drawn for: {source: SDR of every chunk}."""
        self._values[row] = np.array([[values[source] for source in self.sources]])

    def per_chunk(self, row: str, source: str) -> np.ndarray:
        """SDR of every chunk, `mean` for the mean over the sources."""
        values = self._values[row].mean(0)
        return values.mean(0) if source == "mean" else values[self.sources.index(source)]

    def line(self, row: str) -> dict[str, Any]:
        """A row as JSON: {source: mean and interval}, spread of the seeds, seconds, every chunk."""
        intervals = {
            source: bootstrap_mean(self.per_chunk(row, source))._asdict()
            for source in (*self.sources, "mean")
        }
        means = self._values[row].mean((1, 2))
        return {
            "row": row,
            "way": self._ways.get(row),
            "sdr": intervals,
            "seed_spread": float(means.std(ddof=1)) if len(means) > 1 else None,
            "seconds": self.seconds.get(row),
            "chunks": {source: self.per_chunk(row, source).tolist() for source in self.sources},
        }


def _seeded(draw: Draw, seeds: int) -> list[Draw]:
    return [draw._replace(seed=seed) for seed in range(seeds)]


def compare(lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The questions about rows, as `Table.line` gives them, of the same chunks.

    Every one is a paired difference with its interval, per source and in the mean: the systems
    against each other, what is got against the published, every step of the parts against the one
    before, every choice against the default one. Questions about missing rows are left out.
    """
    rows = {line["row"]: line["chunks"] for line in lines}
    for first, second in _questions(list(rows)):
        if first in rows and second in rows:
            a, b = (_columns(rows[name]) for name in (first, second))
            gaps = {name: paired_difference(a[name], b[name])._asdict() for name in a}
            yield {"first": first, "second": second, "difference": gaps}


def _questions(rows: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(first, second): how much is the first above the second?"""
    of_both = [(e, kind) for e in ("oracle, raw", "refined") for kind in ("published", "default")]
    for estimate, kind in [*of_both, ("selected, raw", "default")]:
        for other in ("lqvae", "lass"):
            yield f"hybrid, {kind}: {estimate}", f"{other}, {kind}: {estimate}"
    for method in METHODS:
        for second in ("published: oracle, raw", "default: oracle, raw", "published: refined"):
            yield f"{method}, default: refined", f"{method}, {second}"
    for row in rows:
        if row.startswith("baseline:"):
            yield "hybrid, default: refined", row
    for before, after in pairwise(row for row in rows if row.startswith("parts:")):
        yield after, before
    for row in rows:
        if row.startswith("ways:") and not ("mask" in row or row in ("ways: oracle", _DEFAULT)):
            yield row, _DEFAULT
    yield "ways: mask", "ways: mask of one"


_DEFAULT = "ways: spectral fit"


def _columns(chunks: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """{source: SDR of every chunk}, and their mean."""
    columns = {source: np.array(values) for source, values in chunks.items()}
    return columns | {"mean": np.mean(list(columns.values()), 0)}


def markdown(lines: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The tables of docs/results.md: rows, differences, steps, choices."""
    names = list(lines[0]["sdr"])
    text = markdown_table(["row", *names, "seeds ±", "s / chunk"], map(row_cells, lines))
    kinds = dict.fromkeys(kind_of(item) for item in comparisons)
    for kind in kinds:
        some = [difference_cells(item) for item in comparisons if kind_of(item) == kind]
        text += "\n" + markdown_table([kind, *names], some)
    return text


def row_cells(line: Mapping[str, Any]) -> list[str]:
    """A row's name, scores, spread between seeds and seconds per chunk."""
    spread = "-" if line["seed_spread"] is None else f"{line['seed_spread']:.2f}"
    seconds = "-" if line["seconds"] is None else f"{line['seconds']:.1f}"
    return [shown(line["row"]), *map(interval_cell, line["sdr"].values()), spread, seconds]


def kind_of(item: Mapping[str, Any]) -> str:
    """`step` between consecutive parts, `choice` among ways, or `difference`."""
    group = item["first"].partition(":")[0]
    return {"parts": "step", "ways": "choice"}.get(group, "difference")


def difference_cells(item: Mapping[str, Any]) -> list[str]:
    """A comparison's name and intervals."""
    first, second = shown(item["first"]), shown(item["second"])
    name = f"{first} − {second}"
    if kind_of(item) == "step":
        name = first.removeprefix("parts: ")
    elif kind_of(item) == "choice":
        name = f"{first} − {second}".replace("ways: ", "")
    return [name, *(interval_cell(gap, "+") for gap in item["difference"].values())]


def interval_cell(interval: Mapping[str, float], sign: str = "") -> str:
    """Mean and interval of dB, as the documents write it."""
    mean, low, high = (format(interval[key], f"{sign}.2f") for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
