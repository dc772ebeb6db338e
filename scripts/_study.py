"""Many ways to separate the same chunks, scored side by side: what tuning and ablation run.

A `Draw` is what costs: candidates of all chunks under one setting of the sampling. From the same
candidates any number of `Way`s give estimates. Draws are processes of one thread each; the scores
of each are kept on disk, so that a study that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from jukebox_core.files import sha256, write_json
from jukebox_core.manifest import MANIFEST_NAME, load_manifest
from jukebox_core.separation import metrics
from jukebox_core.separation.refinement import RatioMask
from jukebox_core.separation.rejection import RejectionMarginals, RejectionPair
from jukebox_core.separation.selection import Candidates, PosteriorMean, Selection
from scripts._evaluation import Chunk, choose_chunks, one_of, silence_rule
from scripts._evaluation_meta import fingerprints
from scripts._models import Method, build_separator

__all__ = [
    "Draw",
    "Oracle",
    "Picked",
    "PickedApart",
    "Refined",
    "Scores",
    "Single",
    "Study",
    "Way",
    "run_draws",
]

_BATCH = 4  # chunks sampled together by one process
_VERSION = 1


class Way(Protocol):
    """From candidates of one chunk to estimates {source: [T]} at the sources' scale."""

    def __call__(
        self,
        mixture: Tensor,
        candidates: Candidates,
        alpha: Mapping[str, float],
        truth: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Estimates for a mixture [1, T]; only an oracle looks at the truth {source: [T]}."""
        ...


@dataclass(frozen=True)
class Oracle:
    """Per source the raw candidate of the highest SDR against the truth."""

    def __call__(self, mixture, candidates, alpha, truth):
        """Estimates {source: [T]}."""
        return {
            name: x[0, int(metrics.sdr(truth[name], x[0]).argmax())]
            for name, x in candidates.audio.items()
        }


@dataclass(frozen=True)
class Single:
    """The first candidate, raw."""

    def __call__(self, mixture, candidates, alpha, truth):
        """Estimates {source: [T]}."""
        return {name: x[0, 0] for name, x in candidates.audio.items()}


@dataclass(frozen=True)
class Picked:
    """The raw candidate that a selection picks."""

    pick: Selection

    def __call__(self, mixture, candidates, alpha, truth):
        """Estimates {source: [T]}."""
        best = int(self.pick(mixture, candidates, alpha).argmax(1))
        return {name: x[0, best] for name, x in candidates.audio.items()}


@dataclass(frozen=True)
class PickedApart:
    """Per source the raw candidate that a choice picks for it, {source: [B]}."""

    pick: RejectionPair | RejectionMarginals

    def __call__(self, mixture, candidates, alpha, truth):
        """Estimates {source: [T]}."""
        best = self.pick(mixture, candidates, alpha)
        return {name: x[0, int(best[name][0])] for name, x in candidates.audio.items()}


@dataclass(frozen=True)
class Refined:
    """The mixture masked with the candidates' average."""

    mask: RatioMask = field(default_factory=RatioMask)
    average: Selection = field(default_factory=PosteriorMean)

    def __call__(self, mixture, candidates, alpha, truth):
        """Estimates {source: [T]}."""
        weights = self.average(mixture, candidates, alpha)
        return {
            name: x[0] for name, x in self.mask(mixture, candidates.audio, weights, alpha).items()
        }


class Draw(NamedTuple):
    """Candidates under one setting. options: of `build_separator`, in alphabetical order."""

    method: Method
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, method: Method, seed: int = 0, **options: Any) -> Draw:
        """A draw with these options of `build_separator`."""
        return cls(method, tuple(sorted(options.items())), seed)


class Scores(NamedTuple):
    """Of one draw. values: {way: {source: SDR of every chunk, in dB}}. seconds: per chunk."""

    values: dict[str, dict[str, list[float]]]
    seconds: float

    def mean(self, way: str) -> list[float]:
        """Of every chunk, the mean over the sources."""
        columns = zip(*self.values[way].values(), strict=True)
        return [sum(column) / len(column) for column in columns]


@dataclass(frozen=True)
class Study:
    """The chunks and the models that every draw shares."""

    models: Path
    data: Path
    split: str
    chunks: int
    seed: int = 0
    """Of the chunks."""
    chunk_codes: int = 1024

    def load(self, length: int) -> list[Chunk]:
        """The chunks, `length` samples each."""
        manifest = load_manifest(self.data)
        return choose_chunks(
            manifest, self.split, self.chunks, length, self.seed, silence_rule(False)[1]
        )[0]

    def identity(self) -> dict[str, Any]:
        """What scores depend on besides the draw and the ways."""
        return {
            "version": _VERSION,
            "torch": torch.__version__,
            "data": sha256(self.data / MANIFEST_NAME),
            "split": self.split,
            "chunks": self.chunks,
            "seed": self.seed,
            "chunk_codes": self.chunk_codes,
        }


def run_draws(
    study: Study, draws: Mapping[Draw, Mapping[str, Way]], folder: Path, jobs: int
) -> dict[Draw, Scores]:
    """The scores of every draw; those that `folder` holds already are not made again.

    Args:
        study: chunks and models.
        draws: {setting of the sampling: {name: how its candidates become estimates}}.
        folder: of the scores' files.
        jobs: processes, of one thread each; 1: this one does it.
    """
    found: dict[Draw, Scores] = {}
    missing: dict[Draw, dict[str, Way]] = {}
    for draw, ways in draws.items():
        stored = _stored(_path(study, draw, folder), ways)
        if stored is None:
            missing[draw] = dict(ways)
        else:
            found[draw] = stored
    with tqdm(total=len(missing), unit="draw", disable=None) as bar:
        for draw, scores in _scored(study, missing, folder, jobs):
            found[draw] = scores
            bar.update()
    return found


def _scored(
    study: Study, draws: Mapping[Draw, dict[str, Way]], folder: Path, jobs: int
) -> Iterator[tuple[Draw, Scores]]:
    """The draws as they are done."""
    if jobs == 1 or len(draws) < 2:
        for draw, ways in draws.items():
            yield draw, _score(study, draw, ways, folder)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(draws)), mp_context=context) as pool:
        running = {pool.submit(_alone, study, *item, folder): item[0] for item in draws.items()}
        for done in as_completed(running):
            yield running[done], done.result()


def _alone(study: Study, draw: Draw, ways: dict[str, Way], folder: Path) -> Scores:
    """A draw in a process of its own, which shares the cores with others of one thread each."""
    torch.set_num_threads(1)
    return _score(study, draw, ways, folder)


def _path(study: Study, draw: Draw, folder: Path) -> Path:
    known = study.identity() | {
        "models": fingerprints(study.models, draw.method),
        "draw": draw,
    }
    key = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()
    return folder / f"{draw.method}_{draw.seed}_{key[:16]}.json"


def _stored(path: Path, ways: Mapping[str, Way]) -> Scores | None:
    """Scores of these very ways, if they are there."""
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
        if any(part["ways"][name] != repr(way) for name, way in ways.items()):
            return None
        return Scores({name: part["values"][name] for name in ways}, part["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _score(study: Study, draw: Draw, ways: dict[str, Way], folder: Path) -> Scores:
    """Sample, estimate, score and store one draw."""
    separator = build_separator(draw.method, study.models, **dict(draw.options))
    length = separator.codec.config.hop * min(study.chunk_codes, separator.window)
    chunks = study.load(length)
    values: dict[str, dict[str, list[float]]] = {
        name: {source: [] for source in separator.sources} for name in ways
    }
    seconds = 0.0
    for chunk, candidates, took in _candidates(separator, chunks, draw.seed):
        seconds += took
        for name, way in ways.items():
            stems = way(chunk.mixture[None], candidates, separator.alpha, chunk.sources)
            for source, stem in stems.items():
                score = metrics.sdr(chunk.sources[source], stem)
                values[name][source].append(score.item())
    scores = Scores(values, seconds / len(chunks))
    write_json(
        _path(study, draw, folder),
        {"ways": {name: repr(way) for name, way in ways.items()}, **scores._asdict()},
    )
    return scores


def _candidates(separator, chunks: Sequence[Chunk], seed: int) -> Iterator:
    """(chunk, its candidates, seconds) one by one."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(0, len(chunks), _BATCH):
        group = chunks[i : i + _BATCH]
        began = time.perf_counter()
        drawn = separator.candidates(torch.stack([c.mixture for c in group]), generator)
        took = (time.perf_counter() - began) / len(group)
        for b, chunk in enumerate(group):
            yield chunk, one_of(drawn, b), took
