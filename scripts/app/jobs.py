"""What scripts.app does behind its page: one song at a time becomes stems, pictures and a record.

Nothing here knows of gradio: jobs are submitted, watched and cancelled from any thread.
"""

from __future__ import annotations

import math
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from jukebox_core.audio.stream import AudioReader, AudioWriter, open_audio
from jukebox_core.checks import one_line
from jukebox_core.files import atomic_folder
from jukebox_core.separation.files import check_input, write_stems
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.settings import Settings
from scripts._inputs import failure_of
from scripts._methods import DEFAULT_METHOD, METHODS, MethodName
from scripts.app.pictures import Undecided, levels, spectrogram

__all__ = ["Cancelled", "Job", "Limits", "Refused", "Result", "Studio", "usable"]

MIXTURE = "mixture"
UNDECIDED = "undecided"


class Cancelled(Exception):
    """The job was stopped before its end."""


class Refused(ValueError):
    """A song that cannot be separated; the message is that of scripts.separate."""


@dataclass(frozen=True)
class Limits:
    """Of a song: seconds, and megabytes (10^6 bytes) as a file."""

    seconds: float = 600.0
    megabytes: float = 100.0

    def check_size(self, path: Path) -> None:
        """Raise ValueError where the file is too large."""
        came = path.stat().st_size / 1e6
        if came > self.megabytes:
            raise ValueError(self.too_large(path.name, f"{came:.1f}"))

    def too_large(self, name: str, megabytes: str) -> str:
        """What is said of a file of so many megabytes."""
        return (
            f"{name} has {megabytes} MB, expected at most {self.megabytes:g}: convert it to flac "
            "or mp3, cut it, or start the app with a larger --max-megabytes"
        )

    def check_length(self, reader: AudioReader, frames: int) -> None:
        """Raise ValueError where so many samples are too long."""
        came = frames / reader.rate
        if came > self.seconds:
            raise ValueError(
                f"{reader.path.name} lasts {came:.1f} s, expected at most {self.seconds:g}: cut "
                "it, or start the app with a larger --max-seconds"
            )


@dataclass(frozen=True)
class Result:
    """A separated song.

    seconds: of audio; took: of work. highest: Hz of the pictures' upper edge.
    """

    name: str
    method: MethodName
    folder: Path
    sources: tuple[str, ...]
    rate: int
    channels: int
    seconds: float
    took: float
    highest: float

    def file(self, track: str, suffix: str = ".wav") -> Path:
        """SONG - TRACK.wav, the stem as scripts.separate writes it, or .png, its spectrogram.

        The track `MIXTURE` is the song as it was decoded, `UNDECIDED` has a picture alone.
        """
        return self.folder / f"{self.name} - {track}{suffix}"


class Job:
    """A separation that waits, runs or is over; see `result` for how it ended."""

    def __init__(self) -> None:
        """Not submitted yet."""
        self.fraction = 0.0
        self.stage = "waiting"
        self.started: float | None = None
        self.future: Future[Result] = Future()
        self._stop = threading.Event()

    @property
    def done(self) -> bool:
        """Whether it is over, one way or the other."""
        return self.future.done()

    @property
    def left(self) -> float | None:
        """Seconds until the end, about; None where that is not known yet."""
        if self.started is None or self.fraction < 0.02:
            return None
        return (time.perf_counter() - self.started) * (1 - self.fraction) / self.fraction

    def cancel(self) -> None:
        """Have it end soon, with `Cancelled`."""
        self._stop.set()
        self.future.cancel()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for it.

        Raises:
            Cancelled: `cancel` was called in time.
            Refused: the song, or a limit of the app, does not allow it.
            Exception: the models cannot be used.
        """
        if self.future.cancelled():
            raise Cancelled
        return self.future.result(timeout)

    def enter(self, stage: str) -> None:
        """Say what is being done."""
        self._check()
        self.stage = stage

    def advance(self, done: int, total: int) -> None:
        """Say how much of the sampling is done, in steps."""
        self._check()
        self.started = self.started or time.perf_counter()
        self.fraction = done / total

    def _check(self) -> None:
        if self._stop.is_set():
            raise Cancelled


class Studio:
    """Separates songs, one after the other, in a thread of its own.

    Example:
        >>> studio = Studio(folder, lambda method: build_separator(method, models))
        >>> studio.submit(Path("song.mp3"), "hybrid").result().folder
    """

    def __init__(
        self,
        folder: Path,
        build: Callable[[MethodName], Separator],
        limits: Limits | None = None,
        *,
        seed: int = 0,
        keep: int = 4,
    ):
        """Open for work.

        Args:
            folder: results go into folders of it; the caller removes it.
            build: makes a method's separator, once.
            limits: of the songs.
            seed: of the sampling.
            keep: results that stay; older ones are removed.
        """
        self.limits = limits or Limits()
        self._folder, self._build = folder, build
        self._seed, self._keep = seed, keep
        self._separators: dict[MethodName, Separator] = {}
        self._results: list[Path] = []
        self._jobs: list[Job] = []
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "separation")

    def submit(self, path: Path, method: MethodName) -> Job:
        """Have a song separated, after those submitted before."""
        job = Job()
        with self._lock:
            self._jobs = [other for other in self._jobs if not other.done] + [job]
            job.future = self._worker.submit(self._attempt, Path(path), method, job)
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs are to end before this one begins."""
        with self._lock:
            waiting = [other for other in self._jobs if not other.done]
        return waiting.index(job) if job in waiting else 0

    def close(self) -> None:
        """Stop what runs and waits."""
        with self._lock:
            for job in self._jobs:
                job.cancel()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _attempt(self, path: Path, method: MethodName, job: Job) -> Result:
        job.enter("loading the models")
        if method not in self._separators:
            self._separators[method] = self._build(method)
        try:
            result = self._separate(path, method, job)
        except Cancelled:
            raise
        except Exception as error:
            # The person knows the file by its name; where the upload lies is the app's own affair.
            raise Refused(failure_of(path, error).message.replace(str(path), path.name)) from None
        self._results.append(result.folder)
        while len(self._results) > self._keep:
            shutil.rmtree(self._results.pop(0), ignore_errors=True)
        return result

    def _separate(self, path: Path, method: MethodName, job: Job) -> Result:
        separator = self._separators[method]
        job.enter("reading the file")
        with open_audio(path) as reader:
            self.limits.check_size(path)
            self.limits.check_length(reader, reader.frames)
            found = check_input(reader)
            self.limits.check_length(reader, found.frames)
            result = Result(
                path.stem,
                method,
                self._folder / secrets.token_hex(16),  # not to be guessed by another visitor
                separator.sources,
                reader.rate,
                reader.channels,
                found.frames / reader.rate,
                math.nan,
                min(reader.rate, separator.sample_rate) / 2,
            )
            undecided = Undecided(result.highest)
            with atomic_folder(result.folder) as temporary:
                written = replace(result, folder=temporary)
                job.enter("separating")
                start = time.perf_counter()
                write_stems(
                    separator,
                    reader,
                    found.frames,
                    {source: written.file(source) for source in separator.sources},
                    seed=self._seed,
                    batch=separator.fitting_batch(),
                    progress=job.advance,
                    uncertainty=undecided,
                )
                took = time.perf_counter() - start
                job.enter("drawing")
                _write_wav(written.file(MIXTURE), reader, found.frames)
                for source in separator.sources:
                    _draw(written, source, found.frames)
                level = _draw(written, MIXTURE, found.frames)
                written.file(UNDECIDED, ".png").write_bytes(undecided.picture(level))
                job.enter("done")
        return replace(result, took=took)


def usable(
    models: Path, settings: Settings | None = None
) -> tuple[dict[MethodName, tuple[str, ...]], dict[MethodName, str]]:
    """Methods whose parts are in a models folder: {method: sources}; the others: {method: why}.

    Raises:
        FileNotFoundError: there is none.
    """
    ready: dict[MethodName, tuple[str, ...]] = {}
    missing: dict[MethodName, str] = {}
    for method in sorted(METHODS, key=lambda method: method != DEFAULT_METHOD):  # it comes first
        try:
            ready[method] = METHODS[method].check(models, settings)
        except (ValueError, OSError) as error:
            missing[method] = one_line(error)
    if not ready:
        raise FileNotFoundError(f"{models} has no complete method: {next(iter(missing.values()))}")
    return ready, missing


def _write_wav(path: Path, reader: AudioReader, frames: int) -> None:
    """The file as it was decoded: every browser plays it, in step with the stems."""
    with AudioWriter(path, reader.rate, reader.channels, frames=frames) as writer:
        for block in reader.blocks():
            writer.write(block)


def _draw(result: Result, track: str, frames: int) -> Tensor:
    """Write the spectrogram of a track and return its levels."""
    with open_audio(result.file(track)) as reader:
        level = levels(reader.blocks(), frames, reader.rate, result.highest)
    result.file(track, ".png").write_bytes(spectrogram(level))
    return level
