"""Compare the stems of several models on the same songs, for the sources that all of them have.

    python -m scripts.compare_models --models runs/three runs/two --data runs/three/data

All models separate the same mixtures, as scripts.separate does, whatever else sounds in them:
models of bass and drums may stand beside models of bass, drums and other. Prints the SDR of the
refined stems, and paired differences of the first models to the others; 95% intervals are
bootstrapped by song.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jukebox_core.checkpoints import provenance
from jukebox_core.checks import require_fields
from jukebox_core.datasets.manifest import Manifest, load_manifest
from jukebox_core.evaluation.bootstrap import (
    Interval,
    bootstrap_mean,
    finite,
    paired_difference,
)
from jukebox_core.evaluation.chunks import Chunk, consecutive_chunks, silence_rule
from jukebox_core.evaluation.results import mean_of_sources
from jukebox_core.evaluation.scores import sdr
from jukebox_core.files import check_replaceable, json_with, write_json
from jukebox_core.machine import set_threads
from jukebox_core.separation.separator import Separator
from scripts._cli import program
from scripts._methods import METHODS, MethodFlag, method_of
from scripts._results import interval_cell, text_table


@dataclass(frozen=True)
class Args:
    """Flags of scripts.compare_models."""

    models: tuple[Path, ...]
    """Folders of trained models, two or more; the first are compared with each of the others."""
    data: Path
    """Prepared data set, whose mixtures are separated."""
    output: Path | None = None
    """JSON file for the tables, the score of every chunk, and the flags."""
    method: MethodFlag = "auto"
    """Separation method; auto: the best one that the models have the parts of."""
    split: str = "test"
    """Split of the songs."""
    chunks_per_song: int = 1
    """Score up to so many chunks of every song, spread evenly over it."""
    candidates: int = 32
    """Joint candidates per chunk."""
    seed: int = 0
    """Random seed of the sampling."""
    threads: int | None = None
    """CPU threads."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if len({*self.models}) < max(2, len(self.models)):
            names = " ".join(map(str, self.models)) or "empty"
            raise ValueError(f"models is {names}, expected two folders or more, each once")
        require_fields(self, "chunks_per_song", "candidates", whole=True, at_least=1)
        require_fields(self, "seed", whole=True, at_least=0)


@program
def main(args: Args) -> None:
    """Separate the chunks with every model, print the tables, write the JSON."""
    set_threads(args.threads)
    if args.output is not None:
        check_replaceable(args.output, json_with("rows", "differences", "methods"), "a comparison")
    methods = {str(folder): method_of(args.method, folder) for folder in args.models}
    separators = {
        folder: METHODS[method].load_separator(folder, candidates=args.candidates)
        for folder, method in methods.items()
    }
    manifest = load_manifest(args.data)
    sources = shared_sources(separators, manifest)
    length = max(each.window * each.codec.config.hop for each in separators.values())
    rule = silence_rule(False)[1]
    chunks, _ = consecutive_chunks(manifest, args.split, args.chunks_per_song, length, rule)
    songs = {track.name: track.song for track in manifest.tracks}
    table = Comparison(
        sources,
        {
            folder: score_stems(separator, chunks, sources, args.seed)
            for folder, separator in separators.items()
        },
        [songs[chunk.track] for chunk in chunks],
    )
    print(f"SDR in dB: {len(chunks)} chunks of {len({*table.songs})} songs of {args.data}\n")
    print(table.text())
    if args.output is not None:
        asked = ("split", "chunks_per_song", "candidates", "seed")
        content = {"methods": methods, **{name: getattr(args, name) for name in asked}}
        write_json(args.output, table.content() | content | provenance())


def shared_sources(separators: Mapping[str, Separator], manifest: Manifest) -> list[str]:
    """The sources that all models have.

    Raises:
        ValueError: there is none, the data lack one, or have another sample rate.
    """
    each = [separator.sources for separator in separators.values()]
    shared = [source for source in each[0] if all(source in other for other in each)]
    if not shared:
        found = "; ".join(" ".join(sources) for sources in each)
        raise ValueError(f"the models have no source in common ({found})")
    if missing := [source for source in shared if source not in manifest.sources]:
        raise ValueError(
            f"{manifest.root} has {', '.join(manifest.sources)}, the models separate "
            f"{', '.join(missing)} too: prepare the data with all of them"
        )
    for folder, separator in separators.items():
        if separator.sample_rate != manifest.sample_rate:
            raise ValueError(
                f"{folder} is for {separator.sample_rate} Hz, {manifest.root} has "
                f"{manifest.sample_rate} Hz: prepare the data at the rate of the models"
            )
    return shared


def score_stems(
    separator: Separator, chunks: Sequence[Chunk], sources: Sequence[str], seed: int
) -> np.ndarray:
    """SDR of the refined stems, [sources, chunks], NaN for a silent source."""
    scores = []
    for chunk in tqdm(chunks, unit="chunk", disable=None):
        stems = separator(chunk.mixture, separator.sample_rate, seed=seed)
        # The stems are as loud as in the mixture.
        scores.append([sdr(chunk, name, stems[name] / chunk.alpha[name]) for name in sources])
    return np.array(scores, dtype=float).T


@dataclass(frozen=True)
class Comparison:
    """Scores of several models on the same chunks.

    sources: S names. scores: {models: SDR [S, chunks]}. songs: the song of every chunk.
    """

    sources: Sequence[str]
    scores: Mapping[str, np.ndarray]
    songs: Sequence[str]

    def rows(self) -> dict[str, dict[str, Interval]]:
        """{models: {source: mean and interval}}, `mean` for the mean of the sources."""
        return {
            name: {
                source: bootstrap_mean(values, groups=self.songs)
                for source, values in self._columns(own).items()
            }
            for name, own in self.scores.items()
        }

    def differences(self) -> dict[str, dict[str, Interval]]:
        """{other models: {source: paired difference, the first models minus these}}."""
        first, *others = map(self._columns, self.scores.values())
        names = [*self.scores][1:]
        return {
            name: {s: paired_difference(first[s], other[s], self.songs) for s in first}
            for name, other in zip(names, others, strict=True)
        }

    def _columns(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        means = np.array([mean_of_sources(chunk) for chunk in scores.T.tolist()])
        return dict(zip((*self.sources, "mean"), (*scores, means), strict=True))

    def text(self) -> str:
        """Both tables."""
        first = next(iter(self.scores))
        lines = [["models", *self.sources, "mean"]]
        lines += [
            [name, *(interval_cell(each.as_json()) for each in row.values())]
            for name, row in self.rows().items()
        ]
        for name, row in self.differences().items():
            lines.append(
                [f"{first} - {name}", *(interval_cell(gap.as_json(), "+") for gap in row.values())]
            )
        return text_table(lines, left=1)

    def content(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "rows": [
                {
                    "models": name,
                    "sdr": {source: interval.as_json() for source, interval in row.items()},
                    "chunks": {
                        source: [*map(finite, own.tolist())]
                        for source, own in zip(self.sources, self.scores[name], strict=True)
                    },
                }
                for name, row in self.rows().items()
            ],
            "differences": [
                {
                    "first": next(iter(self.scores)),
                    "second": name,
                    "difference": {source: gap.as_json() for source, gap in row.items()},
                }
                for name, row in self.differences().items()
            ],
            "songs": list(self.songs),
        }


if __name__ == "__main__":
    sys.exit(main())
