"""Print rank correlations between the uncertainty of a bin and the error of its mask.

    python -m scripts.score_uncertainty --models runs/demo/models --data runs/demo/data

For every validation chunk, it computes Spearman's correlation of the uncertainty (needs no truth)
with the distance of the mask from the true sources' mask, over bins within `--within` dB of the
loudest. It compares independent draws with particles, and one encoding of the window with several:
particles with a common past agree whether they are right or not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from jukebox_core.audio.spectra import stft
from jukebox_core.checkpoints import provenance
from jukebox_core.checks import require_fields
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation.bootstrap import bootstrap_mean, finite
from jukebox_core.evaluation.chunks import Chunk, choose_chunks, silence_rule
from jukebox_core.evaluation.estimates import draw_candidates
from jukebox_core.files import check_replaceable, json_with, write_json
from jukebox_core.machine import set_threads
from jukebox_core.separation.samplers import SamplerName
from jukebox_core.separation.samples import Candidates
from jukebox_core.separation.selection import PosteriorMean
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.settings import Settings
from scripts._cli import program
from scripts._methods import METHODS, MethodFlag, method_of
from scripts._results import text_table

VARIANTS: tuple[tuple[SamplerName, int], ...] = (
    ("ancestral", 1),
    ("ancestral", 4),
    ("particle", 1),
    ("particle", 4),
)


@dataclass(frozen=True)
class Args:
    """Flags of scripts.score_uncertainty."""

    models: Path
    """Folder of trained models."""
    data: Path
    """Prepared data set."""
    output: Path | None = None
    """JSON file for the table, the value of every chunk, and the flags."""
    method: MethodFlag = "auto"
    """Separation method; auto: the best one that the models have the parts of."""
    split: str = "validation"
    """Split of the songs."""
    chunks: int = 24
    """Maximum number of chunks, one per song if there are enough songs."""
    candidates: int = 32
    """Joint candidates per chunk, a multiple of 4."""
    chunk_codes: int = 1024
    """Codes per chunk, at most the models' window."""
    within: float = 20.0
    """Range of the compared bins, in decibels below the loudest bin of the chunk."""
    seed: int = 0
    """Random seed for chunks and sampling."""
    threads: int | None = None
    """CPU threads."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_fields(self, "chunks", "candidates", "chunk_codes", whole=True, at_least=1)
        most = max(shifts for _, shifts in VARIANTS)
        if self.candidates % most:
            raise ValueError(
                f"candidates is {self.candidates}, expected a multiple of {most}, so that "
                "every shift has equally many"
            )
        require_fields(self, "within", at_least=0)


@program
def main(args: Args) -> None:
    """Print one line per way of drawing, and write the JSON."""
    set_threads(args.threads)
    if args.output is not None:
        written = json_with("variants.0.correlation", "asked.within")
        check_replaceable(args.output, written, "a table of uncertainties")
    manifest, rule = load_manifest(args.data), silence_rule(False)[1]
    rows = [["sampler", "shifts", "rank correlation", "95%", "median uncertainty"]]
    variants: list[dict[str, Any]] = []
    for sampler, shifts in VARIANTS:
        settings = Settings(sampler=sampler, shifts=shifts)
        separator = METHODS[method_of(args.method, args.models)].load_separator(
            args.models, settings, "cpu", candidates=args.candidates
        )
        length = separator.codec.config.hop * min(args.chunk_codes, separator.window)
        chunks, _ = choose_chunks(manifest, args.split, args.chunks, length, args.seed, rule)
        values, typical = correlations(separator, chunks, args.within, args.seed)
        interval = bootstrap_mean(values)
        variants.append(
            {
                "sampler": sampler,
                "shifts": shifts,
                "correlation": interval.as_json(),
                "chunks": [*map(finite, values)],
                "median_disagreement": typical,
            }
        )
        mean, low, high, _ = interval
        cells = [f"{mean:.2f}", f"{low:.2f} to {high:.2f}", f"{typical:.3f}"]
        rows.append([sampler, str(shifts), *cells])
    print(text_table(rows))
    if args.output is not None:
        asked = ("method", "split", "candidates", "chunk_codes", "within", "seed")
        flags = {name: getattr(args, name) for name in asked}
        flags["method"] = method_of(args.method, args.models)
        write_json(args.output, {"variants": variants, "asked": flags, **provenance()})


def correlations(
    separator: Separator, chunks: Sequence[Chunk], within: float, seed: int
) -> tuple[list[float], float]:
    """(correlation of every chunk, NaN where nothing varies; median disagreement of all bins)."""
    values, uncertainties = [], []
    for chunk, candidates, _ in draw_candidates(separator, chunks, seed, 1):
        mixture = chunk.mixture[None]
        uncertainty = separator.uncertainty(mixture, candidates)[0]
        wrong = mask_error(separator, mixture, candidates, chunk.sources)
        loud = loud_bins(separator, mixture, within)
        values.append(float(spearmanr(uncertainty[loud], wrong[loud]).statistic))
        uncertainties.append(uncertainty[loud])
    return values, torch.cat(uncertainties).median().item()


def mask_error(
    separator: Separator, mixture: Tensor, candidates: Candidates, truth: dict[str, Tensor]
) -> Tensor:
    """Error of the candidates' mask against the true sources' mask, [F, frames], 0 to 1."""
    mask = separator.mask
    name = next(iter(candidates.audio))
    true = Candidates({source: x[None, None] for source, x in truth.items()}, candidates.alpha)
    ideal = replace(mask, calibration=None)  # the truth was not decoded
    weights = PosteriorMean()(mixture, candidates)
    own = mask.estimate(mixture, candidates, weights)[name][0]
    share = ideal.masks(ideal.mean_powers(true, torch.ones(1, 1)))[name][0]
    return (own - share).abs()


def loud_bins(separator: Separator, mixture: Tensor, within: float) -> Tensor:
    """Which bins of a mixture [1, T] are within so many decibels of its loudest, [F, frames]."""
    power = stft(mixture, separator.mask.n_fft, separator.mask.hop)[0].abs().square()
    return power >= power.max() * 10 ** (-within / 10)


if __name__ == "__main__":
    sys.exit(main())
