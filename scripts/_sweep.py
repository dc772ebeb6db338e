"""Score many settings on the same chunks, for tuning and ablation.

A `Draw` is the expensive part: candidates of all chunks with one setting of the sampling. Any
number of estimators can be applied to the same candidates. Draws run in processes of one thread
each, and the scores of each are kept on disk, so that a stopped sweep continues.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from jukebox_core.datasets.manifest import MANIFEST_NAME, load_manifest
from jukebox_core.evaluation.chunks import Chunk, choose_chunks, consecutive_chunks, silence_rule
from jukebox_core.evaluation.estimates import Estimator, draw_candidates
from jukebox_core.evaluation.results import mean_of_sources
from jukebox_core.evaluation.scores import sdr
from jukebox_core.files import check_replaceable, sha256
from jukebox_core.kept import is_kept, kept, key_of, read_kept
from jukebox_core.parent import end_with_parent
from jukebox_core.separation.loading import sizes_of
from jukebox_core.separation.settings import AFTER_SAMPLING, Settings
from scripts._methods import METHODS, MethodName

_BATCH = 4  # chunks sampled together by one process


class Draw(NamedTuple):
    """Candidates of all chunks with one setting of the sampling.

    candidates: per chunk; None: the number of the models' preset. seed: random seed for sampling.
    """

    method: MethodName
    settings: Settings = Settings()
    candidates: int | None = None
    seed: int = 0


class Scores(NamedTuple):
    """values: {estimator: {source: SDR of every chunk in dB, None for silence}}.

    seconds: per chunk.
    """

    values: dict[str, dict[str, list[float | None]]]
    seconds: float

    def mean(self, estimator: str) -> list[float]:
        """The `mean_of_sources` of every chunk, in dB."""
        columns = np.array([*self.values[estimator].values()], dtype=float)
        return [mean_of_sources(column) for column in columns.T.tolist()]


@dataclass(frozen=True)
class Sweep:
    """The chunks and the models that all draws share.

    seed: random seed for the choice of chunks. chunks_per_song: score up to so many consecutive
    chunks of every song instead, whatever `chunks` and `seed` are. tuned: settings without a value
    are the tuned ones, otherwise the defaults.
    """

    models: Path
    data: Path
    split: str
    chunks: int
    seed: int = 0
    chunk_codes: int = 1024
    tuned: bool = True
    chunks_per_song: int | None = None

    def load(self, length: int) -> list[Chunk]:
        """The chunks, of `length` samples each."""
        manifest, rule = load_manifest(self.data), silence_rule(False)[1]
        if self.chunks_per_song is not None:
            return consecutive_chunks(manifest, self.split, self.chunks_per_song, length, rule)[0]
        return choose_chunks(manifest, self.split, self.chunks, length, self.seed, rule)[0]

    def identity(self) -> dict[str, Any]:
        """Everything that the chunks depend on."""
        per_song = self.chunks_per_song
        return {
            "data": sha256(self.data / MANIFEST_NAME),
            "split": self.split,
            **({"chunks": self.chunks} if per_song is None else {"chunks_per_song": per_song}),
            "seed": self.seed,
            "chunk_codes": self.chunk_codes,
        }

    def resolve(self, draw: Draw) -> Draw:
        """The same draw with all settings that its candidates depend on, and no others."""
        models = self.models if self.tuned else None
        full = METHODS[draw.method].resolve(draw.settings, models, strict=False)
        return draw._replace(settings=full.without(*AFTER_SAMPLING))


def run_draws(
    sweep: Sweep, draws: Mapping[Draw, Mapping[str, Estimator]], folder: Path, jobs: int
) -> dict[Draw, Scores]:
    """The scores of every draw; scores that `folder` holds are reused.

    Draws whose resolved settings are equal are made once.

    Args:
        sweep: chunks and models.
        draws: {draw: {name: estimator}}.
        folder: of the files of scores.
        jobs: processes, of one thread each; 1: no further process.

    Raises:
        ValueError: the file of tuned settings is damaged, or the numbers of a draw do not fit the
            models.
        FileNotFoundError: a part of the models or of the data is missing.
        FileExistsError: a file of another program has the name of a file of scores.
    """
    resolved = {draw: sweep.resolve(draw) for draw in draws}
    needed: dict[Draw, dict[str, Estimator]] = {}
    for draw, estimators in draws.items():
        needed.setdefault(resolved[draw], {}).update(estimators)
    for draw in needed:
        method = METHODS[draw.method]
        family = method.folder(sweep.models)
        priors = method.priors(family, draw.settings)
        sizes_of(family, priors, draw.candidates, shifts=draw.settings.shifts)
    tasks = [_Task(sweep, draw, estimators, folder) for draw, estimators in needed.items()]
    missing = [task for task in tasks if read_kept(task.path, task.key) is None]
    for task in missing:
        check_replaceable(task.path, is_kept, "a file of scores")
    with tqdm(total=len(missing), unit="draw", disable=None) as bar:
        for _ in _finished(missing, jobs):
            bar.update()
    scores = {task.draw: task.run() for task in tasks}
    return {draw: scores[resolved[draw]] for draw in draws}


class _Task:
    """A resolved draw with its estimators, and the file that keeps its scores."""

    def __init__(self, sweep: Sweep, draw: Draw, estimators: Mapping[str, Estimator], folder: Path):
        self.sweep, self.draw, self.estimators = sweep, draw, dict(estimators)
        method = METHODS[draw.method]
        identity = sweep.identity() | {
            "models": method.fingerprints(method.folder(sweep.models), draw.settings),
            "draw": [draw.method, draw.settings.explicit(), draw.candidates, draw.seed],
            "estimators": {name: repr(each) for name, each in self.estimators.items()},
        }
        self.key = key_of(identity, _Task, *map(type, METHODS.values()))
        self.path = folder / f"{draw.method}_{draw.seed}_{self.key[:16]}.json"

    def run(self) -> Scores:
        """The scores, from the disk if they are there."""
        return Scores(**kept(self.path, self.key, lambda: self._score()._asdict()))

    def run_alone(self) -> None:
        """`run` in a process of its own, of one thread: others run beside it."""
        torch.set_num_threads(1)
        self.run()

    def _score(self) -> Scores:
        sweep, draw = self.sweep, self.draw
        separator = METHODS[draw.method].load_separator(
            sweep.models, draw.settings, "cpu", candidates=draw.candidates, tuned=False
        )
        length = separator.codec.config.hop * min(sweep.chunk_codes, separator.window)
        chunks = sweep.load(length)
        values: dict[str, dict[str, list[float | None]]] = {
            name: {source: [] for source in separator.sources} for name in self.estimators
        }
        seconds = 0.0
        for chunk, candidates, took in draw_candidates(separator, chunks, draw.seed, _BATCH):
            seconds += took
            for name, estimator in self.estimators.items():
                for source, stem in estimator(chunk, candidates).items():
                    values[name][source].append(sdr(chunk, source, stem))
        return Scores(values, seconds / len(chunks))


def _finished(tasks: Sequence[_Task], jobs: int) -> Iterator[_Task]:
    """The tasks as they finish."""
    if jobs == 1 or len(tasks) < 2:
        for task in tasks:
            task.run()
            yield task
        return
    context = multiprocessing.get_context("spawn")
    workers = min(jobs, len(tasks))
    with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
        running = {pool.submit(task.run_alone): task for task in tasks}
        for done in as_completed(running):
            done.result()
            yield running[done]
