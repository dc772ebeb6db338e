"""Many ways to separate the same chunks, scored side by side: what tuning and ablation run.

A `Draw` is what costs: candidates of all chunks under one setting of the sampling. From the same
candidates any number of `Way`s give estimates. Draws are processes of one thread each; the scores
of each are kept on disk, so that a study that was stopped goes on. They are kept by everything they
depend on: chunks, models, the settings as resolved (the tuned ones too), and the code.
"""

from __future__ import annotations

import ast
import functools
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

from jukebox_core.checkpoints import load_codec
from jukebox_core.datasets.manifest import MANIFEST_NAME, load_manifest
from jukebox_core.evaluation import metrics
from jukebox_core.evaluation.estimates import Chunk, choose_chunks, one_of, silence_rule
from jukebox_core.files import check_replaceable, json_with, sha256, write_json
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.rejection import RejectionMarginals, RejectionPair
from jukebox_core.separation.selection import Candidates, PosteriorMean, Selection
from jukebox_core.vqvae.model import VQVAE
from scripts._models import Method, build_separator, sizes_of
from scripts._settings import AFTERWARDS, Settings, resolve
from scripts.evaluate.describe import fingerprints

__all__ = [
    "Draw",
    "Oracle",
    "Picked",
    "PickedApart",
    "Refined",
    "RoundTrip",
    "Scores",
    "Single",
    "Study",
    "Way",
    "run_draws",
]

_BATCH = 4  # chunks sampled together by one process
_CODE = (
    "jukebox_core/separation",
    "jukebox_core/vqvae",
    "jukebox_core/prior",
    "lqvae",
    "lass",
    "hybrid",
    "scripts/_models.py",
    "jukebox_core/evaluation/estimates.py",
    "scripts/_sweep.py",
)
"""What makes candidates, and estimates of them; the settings are identified by their values."""


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
class RoundTrip:
    """Mixtures [B, T] as a codec gives them back, on the CPU.

    codec: its run's folder; scores are kept by its weights, wherever it lies.
    """

    codec: Path = field(repr=False)

    @torch.no_grad()
    def __call__(self, mixture: Tensor) -> Tensor:
        """The round trip, [B, T], T a multiple of the hop.

        Raises:
            FileNotFoundError: there is no codec in the folder.
        """
        codec = _codec(self.codec)
        return codec.decode(codec.encode(mixture)).float()


@functools.lru_cache(maxsize=2)
def _codec(folder: Path) -> VQVAE:
    return load_codec(folder)


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
    tuned: bool = True
    """Take the settings that a draw leaves open from what was tuned; otherwise built in."""

    def load(self, length: int) -> list[Chunk]:
        """The chunks, `length` samples each."""
        manifest = load_manifest(self.data)
        return choose_chunks(
            manifest, self.split, self.chunks, length, self.seed, silence_rule(False)[1]
        )[0]

    def identity(self) -> dict[str, Any]:
        """What scores depend on besides the draw and the ways."""
        return {
            "code": code_digest(),
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

    Draws whose settings come to the same are made once.

    Args:
        study: chunks and models.
        draws: {setting of the sampling: {name: how its candidates become estimates}}.
        folder: of the scores' files.
        jobs: processes, of one thread each; 1: this one does it.

    Raises:
        ValueError: the tuned file is damaged, or the numbers of a draw do not fit the models.
        FileNotFoundError: a part of the models or of the data is missing.
        FileExistsError: a file of another program is in the place of a file of scores.
    """
    resolved = {draw: _resolved(study, draw) for draw in draws}
    wanted: dict[Draw, dict[str, Way]] = {}
    for draw, ways in draws.items():
        wanted.setdefault(resolved[draw], {}).update(ways)
    for draw in wanted:
        options = dict(draw.options)
        candidates, shifts = options.get("candidates"), options.get("shifts")
        sizes_of(draw.method, study.models, candidates, shifts=shifts)
    paths = {draw: _path(study, draw, folder) for draw in wanted}
    stored = {draw: _stored(paths[draw], ways) for draw, ways in wanted.items()}
    found = {draw: scores for draw, scores in stored.items() if scores is not None}
    missing = [(draw, ways, paths[draw]) for draw, ways in wanted.items() if draw not in found]
    for _, _, path in missing:
        check_replaceable(path, json_with("ways", "values", "seconds"), "a file of scores")
    with tqdm(total=len(missing), unit="draw", disable=None) as bar:
        for draw, scores in _scored(study, missing, jobs):
            found[draw] = scores
            bar.update()
    return {draw: found[resolved[draw]] for draw in draws}


def _resolved(study: Study, draw: Draw) -> Draw:
    """The same draw with all settings that its candidates depend on, and no others.

    Those that are left to the likelihood stay so: the code has their values.
    """
    given = dict(draw.options)
    settings = Settings(**{k: v for k, v in given.items() if k in vars(Settings())})
    values = resolve(settings, study.models, draw.method, tuned=study.tuned, strict=False)
    others = {name: value for name, value in given.items() if name not in values}
    known = {k: v for k, v in values.items() if k not in AFTERWARDS and v is not None}
    return Draw.of(draw.method, draw.seed, **others, **known)


@functools.cache
def code_digest() -> str:
    """Of the modules that scores depend on; comments, docstrings and layout do not change it."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for part in _CODE:
        path = root / part
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".py", ".c"):
                text = file.read_text(encoding="utf-8")
                digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
                digest.update((_bare(text) if file.suffix == ".py" else text).encode())
    return digest.hexdigest()


def _bare(text: str) -> str:
    """Python source without what does nothing: comments, layout, strings that stand alone."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_remark(line)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_remark(line: ast.stmt) -> bool:
    value = line.value if isinstance(line, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _scored(
    study: Study, draws: Sequence[tuple[Draw, dict[str, Way], Path]], jobs: int
) -> Iterator[tuple[Draw, Scores]]:
    """The draws as they are done."""
    if jobs == 1 or len(draws) < 2:
        for item in draws:
            yield item[0], _score(study, *item)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(draws)), mp_context=context) as pool:
        running = {pool.submit(_alone, study, *item): item[0] for item in draws}
        for done in as_completed(running):
            yield running[done], done.result()


def _alone(study: Study, draw: Draw, ways: dict[str, Way], path: Path) -> Scores:
    """A draw in a process of its own, which shares the cores with others of one thread each."""
    torch.set_num_threads(1)
    return _score(study, draw, ways, path)


def _path(study: Study, draw: Draw, folder: Path) -> Path:
    """Of the scores of a resolved draw."""
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


def _score(study: Study, draw: Draw, ways: dict[str, Way], path: Path) -> Scores:
    """Sample, estimate, score and store one resolved draw."""
    separator = build_separator(draw.method, study.models, tuned=False, **dict(draw.options))
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
        path,
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
