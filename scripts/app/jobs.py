"""Separation jobs: one song at a time becomes stems and pictures.

This module does not use gradio; any thread can submit, watch and cancel jobs.
"""

from __future__ import annotations

import functools
import math
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from jukebox_core.audio import pictures
from jukebox_core.audio.decoding import AudioReader, regular_file
from jukebox_core.audio.stream import AudioWriter, open_audio
from jukebox_core.files import atomic_folder
from jukebox_core.separation.files import check_input, write_stems
from jukebox_core.separation.jobs import failure_of
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.uncertainty import Uncertainty
from jukebox_core.separation.windows import Window
from scripts._methods import MethodName

MIXTURE = "mixture"
UNCERTAINTY = "uncertainty"
SEPARATING = "separating"
"""The stage of a job that has a progress."""
_CHANNELS = 8  # largest number
_VALUES = 2 * 192_000  # decoded per second of the longest song: a small file may hold any number


class Cancelled(Exception):
    """The job was cancelled."""


class Refused(ValueError):
    """The song cannot be separated; scripts.separate prints the same message."""


@dataclass(frozen=True)
class Limits:
    """Largest song: duration in seconds, size of the file in megabytes (10^6 bytes)."""

    seconds: float = 600.0
    megabytes: float = 100.0

    def check_size(self, path: Path) -> None:
        """Refuse a file that is too large."""
        megabytes = path.stat().st_size / 1e6
        if megabytes > self.megabytes:
            raise ValueError(self.too_large(path.name, f"{megabytes:.1f}"))

    def too_large(self, name: str, megabytes: str) -> str:
        """Return the message about a file of this size."""
        return (
            f"{name} has {megabytes} MB, expected at most {self.megabytes:g}: convert it to FLAC "
            "or MP3, cut it, or start the app with a larger --max-megabytes"
        )

    def check_length(self, reader: AudioReader, frames: int) -> None:
        """Refuse audio of so many samples that is too long, or too large when it is decoded."""
        seconds = frames / reader.rate
        if seconds > self.seconds:
            raise ValueError(
                f"{reader.path.name} lasts {seconds:.1f} s, expected at most {self.seconds:g}: cut "
                "it, or start the app with a larger --max-seconds"
            )
        if reader.channels > _CHANNELS or frames * reader.channels > self.seconds * _VALUES:
            raise ValueError(
                f"{reader.path.name} has {reader.channels} channels at {reader.rate:,} Hz, too "
                "much to decode: convert it to stereo at 44,100 Hz"
            )


@dataclass(frozen=True)
class Result:
    """A separated song.

    Attributes:
        job: the same for a song's opening and the whole song.
        seconds: duration of the song.
        took: seconds that the separation took.
        highest: upper edge of the pictures, in Hz.
    """

    job: str
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
        """Return the path of a stem, `SONG - TRACK.wav`, or of its spectrogram (.png).

        The track `MIXTURE` is the decoded song; `UNCERTAINTY` has only a picture.
        """
        return self.folder / f"{self.name} - {track}{suffix}"


class Job:
    """A separation that is waiting, running or done.

    Attributes:
        opening: the result of the first window of a song of two windows or more, once it can be
            heard.
    """

    def __init__(self, song: Path) -> None:
        """Start as waiting."""
        self.song = song
        self.name = secrets.token_hex(8)
        self.opening: Result | None = None
        self.fraction = 0.0
        self.stage = "waiting"
        self.started: float | None = None
        self.future: Future[Result] = Future()
        self._stop = threading.Event()

    @property
    def done(self) -> bool:
        """Whether the job has ended, with or without a result."""
        return self.future.done()

    @property
    def left(self) -> float | None:
        """Estimated seconds until the end; None at the start."""
        if self.started is None or self.fraction < 0.02:
            return None
        return (time.perf_counter() - self.started) * (1 - self.fraction) / self.fraction

    def cancel(self) -> None:
        """End the job soon, with `Cancelled`."""
        self._stop.set()
        self.future.cancel()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the result.

        Raises:
            Cancelled: `cancel` was called in time.
            Refused: the song cannot be read or exceeds a limit.
            Exception: the models cannot be used.
        """
        if self.future.cancelled():
            raise Cancelled
        return self.future.result(timeout)

    def enter(self, stage: str) -> None:
        """Set the stage that the page shows."""
        self._check()
        self.stage = stage

    def advance(self, done: int, total: int) -> None:
        """Set the progress of the sampling of the whole song, in steps."""
        self._check()
        if self.stage == SEPARATING:
            self.started = self.started or time.perf_counter()
            self.fraction = done / total

    def _check(self) -> None:
        if self._stop.is_set():
            raise Cancelled


class JobQueue:
    """Separates songs one after the other in its own thread."""

    def __init__(
        self,
        folder: Path,
        build: Callable[[MethodName], Separator],
        limits: Limits,
        *,
        seed: int = 0,
        keep: int = 4,
    ):
        """Start the thread.

        Args:
            folder: receives a folder per result; the caller removes it.
            build: builds a method's separator; called once per method.
            limits: largest song.
            seed: random seed for sampling.
            keep: number of songs whose results are kept; older ones are removed. As many songs that
                were stopped keep their opening.
        """
        self.limits = limits
        self._folder, self._build = folder, functools.cache(build)
        self._seed, self._keep = seed, keep
        self._results: list[list[Path]] = []  # folders of a song each
        self._stopped: list[list[Path]] = []
        self._jobs: list[Job] = []
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "separation")

    def prepare(self, method: MethodName) -> None:
        """Load a method's models before a song comes; the first song's job tells what fails."""
        self._worker.submit(self._build, method)

    def submit(self, path: Path, method: MethodName) -> Job:
        """Add a song to the queue."""
        job = Job(Path(path))
        with self._lock:
            self._jobs = [other for other in self._jobs if not other.done] + [job]
            job.future = self._worker.submit(self._attempt, job.song, method, job)
        return job

    def ahead(self, job: Job) -> int:
        """Return the number of jobs before this one."""
        with self._lock:
            waiting = [other for other in self._jobs if not other.done]
        return waiting.index(job) if job in waiting else 0

    def songs(self) -> set[Path]:
        """Return the songs of jobs that wait or run."""
        with self._lock:
            return {job.song for job in self._jobs if not job.done}

    def close(self) -> None:
        """Cancel all jobs and stop the thread."""
        with self._lock:
            for job in self._jobs:
                job.cancel()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _attempt(self, path: Path, method: MethodName, job: Job) -> Result:
        job.enter("loading the models")
        separator = self._build(method)
        folders: list[Path] = []
        kept = self._stopped
        try:
            result = self._separate(path, method, separator, job, folders)
            kept = self._results
            return result
        except Cancelled:
            raise
        except Exception as error:
            # Visitors know the file by its name, not by the path of the upload.
            raise Refused(failure_of(path, error).message.replace(str(path), path.name)) from None
        finally:  # what was heard of a song that was stopped can still be heard
            kept += [folders] if folders else []
            while len(kept) > self._keep:
                for folder in kept.pop(0):
                    shutil.rmtree(folder, ignore_errors=True)

    def _separate(
        self, path: Path, method: MethodName, separator: Separator, job: Job, folders: list[Path]
    ) -> Result:
        """The result; `folders` gets what is written."""
        job.enter("reading the file")
        self.limits.check_size(regular_file(path))
        with open_audio(path, longest=self.limits.seconds) as reader:

            def heard(frames: int) -> None:
                job.enter("reading the file")
                self.limits.check_length(reader, frames)

            heard(reader.frames)
            examination = check_input(reader, heard)  # a header may understate the length
            if reader.warning:
                print(f"warning: {reader.warning}", file=sys.stderr, flush=True)
            window = separator.window * separator.codec.config.hop
            # One sample more would be two windows.
            opening = window * reader.rate // separator.sample_rate
            if 2 * opening <= examination.frames:
                job.enter("separating the first seconds")
                job.opening = self._write(reader, opening, method, separator, job)
                folders.append(job.opening.folder)
            job.enter(SEPARATING)
            result = self._write(reader, examination.frames, method, separator, job)
            folders.append(result.folder)
            job.enter("done")
            return replace(result, took=result.took + (job.opening.took if job.opening else 0.0))

    def _write(
        self,
        reader: AudioReader,
        frames: int,
        method: MethodName,
        separator: Separator,
        job: Job,
    ) -> Result:
        """Stems and pictures of a song's first samples."""
        result = Result(
            job.name,
            job.song.stem,
            method,
            self._folder / secrets.token_hex(16),  # other visitors cannot guess it
            separator.sources,
            reader.rate,
            reader.channels,
            frames / reader.rate,
            math.nan,
            min(reader.rate, separator.sample_rate) / 2,
        )
        uncertainty = _PictureRows(result.highest)
        with atomic_folder(result.folder) as temporary:
            written = replace(result, folder=temporary)
            start = time.perf_counter()
            write_stems(
                separator,
                reader,
                frames,
                {source: written.file(source) for source in separator.sources},
                seed=self._seed,
                progress=job.advance,
                uncertainty=uncertainty,
            )
            took = time.perf_counter() - start
            if job.stage == SEPARATING:
                job.enter("drawing")
            _write_wav(written.file(MIXTURE), reader, frames)
            for source in separator.sources:
                _draw(written, source, frames)
            level = _draw(written, MIXTURE, frames)
            picture = pictures.uncertainty(uncertainty.values, level)
            written.file(UNCERTAINTY, ".png").write_bytes(picture)
        return replace(result, took=took)


class _PictureRows(Uncertainty):
    """Uncertainty of the rows of a picture only: flat memory at any length of the song."""

    def __init__(self, highest: float):
        """Set the frequency of the last row, in Hz."""
        super().__init__()
        self._highest = highest

    def add(self, window: Window, values: Tensor, mask: RatioMask, rate: int) -> None:
        """Reduce a window's uncertainty [F, frames] to rows and add it."""
        rows = pictures.log_rows(values, rate / mask.n_fft, self._highest, "mean")
        super().add(window, rows, mask, rate)


def _write_wav(path: Path, reader: AudioReader, frames: int) -> None:
    """Write a song's first samples: every browser plays WAV, in step with the stems."""
    with AudioWriter(path, reader.rate, reader.channels, frames=frames) as writer:
        for block in reader.blocks(frames=frames):
            writer.write(block)


def _draw(result: Result, track: str, frames: int) -> Tensor:
    """Write the spectrogram of a track; return its `pictures.levels`."""
    with open_audio(result.file(track)) as reader:
        level = pictures.levels(reader.blocks(), frames, reader.rate, result.highest)
    result.file(track, ".png").write_bytes(pictures.spectrogram(level))
    return level
