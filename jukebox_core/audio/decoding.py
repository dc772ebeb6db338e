"""Decode audio files with libsndfile, or with ffmpeg if libsndfile does not support the format."""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from jukebox_core.audio.layout import Part, find_layout
from jukebox_core.audio.mpeg_frames import find_pattern
from jukebox_core.checks import one_line

BLOCK = 1 << 16
"""Samples of a block."""

_EXACT = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU", "CAF"}
"""libsndfile formats whose headers state the exact length and whose seeks are exact."""
_UNKNOWN = 1 << 62
"""libsndfile gives a larger length than this if the header states none."""
_FLAC = re.compile(rb"fLaC\0\0\0\x22")
"""The beginning of a FLAC file: its magic bytes, then the header of the STREAMINFO block."""
_RATES = (100, 10_000_000)
_BLOCK_VALUES = 1 << 22
"""Largest number of samples, over all channels, that are decoded at once."""


class UnknownFormat(ValueError):
    """libsndfile cannot read the format; ffmpeg might."""


def regular_file(path: str | Path) -> Path:
    """Refuse a path that is not a non-empty regular file, without opening pipes or devices.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a folder, a pipe, a socket or a device, or empty.
    """
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no audio file {path}") from None
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        names = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
        raise ValueError(f"{path} is a {names.get(kind, 'device')}, expected an audio file")
    if status.st_size == 0:
        raise ValueError(f"{path} cannot be read as audio: it is empty")
    return path


class AudioReader:
    """An open audio file; each call of `blocks` decodes it from start to end."""

    def __init__(self, path: Path, name: Path | None = None, warning: str | None = None):
        """Open a file and look at its headers.

        Args:
            path: the file, checked by `regular_file`.
            name: the file's name in error messages; default: `path`.
            warning: damage that ffmpeg reported.

        Raises:
            UnknownFormat: libsndfile cannot read it.
            ValueError: It is damaged.
            OSError: It cannot be opened.
        """
        self.path = name or path
        self._file = open(path, "rb")
        try:
            self._layout = find_layout(self._file, self.path)
            self.warning = warning or self._layout.warning
            """Damage to a file that still plays, such as a missing end; None if there is none."""
            first, *others = self._layout.parts
            with self._open(first) as sound:
                self.rate: int = sound.samplerate
                self.channels: int = sound.channels
                self.exact = sound.format in _EXACT and sound.frames < _UNKNOWN
                """Whether the header states the exact length, and seeks are exact."""
                self.frames = sound.frames if sound.frames < _UNKNOWN else 0
                """Samples according to the header, or 0 if it has none; an estimate unless
                `exact`."""
            for part in others:
                with self._open(part) as sound:
                    self.frames += sound.frames
            if not _RATES[0] <= self.rate <= _RATES[1]:
                raise ValueError(
                    f"{self.path} has a sample rate of {self.rate:,} Hz in its header, expected "
                    f"{_RATES[0]} to {_RATES[1]:,} Hz"
                )
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def blocks(self, size: int = BLOCK, frames: int | None = None) -> Iterator[Tensor]:
        """All samples, or the first `frames` (at least 1), in blocks [C, t] of at most `size`.

        Raises:
            ValueError: It is damaged, changes its format, has no samples, or NaN or infinite ones.
        """
        block = None
        for block in self._blocks(size):
            if frames is not None and frames <= len(block):
                yield self._checked(block[:frames])
                return
            frames = None if frames is None else frames - len(block)
            yield self._checked(block)
        if block is None:
            raise ValueError(f"{self.path} has no samples")

    def segment(self, start: int, length: int) -> Tensor:
        """Samples `start` to `start + length`, [C, length].

        If the format seeks exactly, only these are decoded; otherwise everything before them too.

        Raises:
            ValueError: The file is shorter, or the samples are damaged or not finite.
        """
        end, frames, pieces = start + length, 0, []
        if not self.exact:
            for block in self._blocks(BLOCK):
                pieces.append(block[max(0, start - frames) : max(0, end - frames)])
                frames += len(block)
                if frames >= end:
                    return self._checked(np.concatenate(pieces))
        elif end <= (frames := self.frames):
            source = _Bytes(self._file, self._layout.parts[0])
            with soundfile.SoundFile(source) as sound, self._errors(source):
                sound.seek(start)
                samples = sound.read(length, dtype="float32", always_2d=True)
            self._check_count(len(samples), length)
            return self._checked(samples)
        raise ValueError(f"{self.path} has {frames} samples, requested {start} to {end}")

    def _blocks(self, size: int) -> Iterator[np.ndarray]:
        """All samples, [t, C]."""
        size = min(size, max(1, _BLOCK_VALUES // self.channels))
        done = 0
        for part in self._layout.parts:
            with self._open(part) as sound:
                if (sound.samplerate, sound.channels) != (self.rate, self.channels):
                    raise ValueError(
                        f"{self.path} changes from {self.rate} Hz, {self.channels} channel(s), to "
                        f"{sound.samplerate} Hz, {sound.channels} channel(s), after "
                        f"{done / self.rate:.1f} s; expected one format: split the file"
                    )
                left = sound.frames
                while left > 0:
                    after = (
                        f" after {done / self.rate:.1f} s and cannot be read as audio from there"
                    )
                    with self._errors(sound.source, after):
                        samples = sound.read(min(size, left), dtype="float32", always_2d=True)
                    if not len(samples):
                        break
                    done += len(samples)
                    left -= len(samples)
                    yield samples
                if sound.frames < _UNKNOWN and sound.format != "MP3":
                    self._check_count(sound.frames - left, sound.frames)
                    if sound.format == "FLAC" and sound.source.has_ahead(_FLAC):
                        raise ValueError(
                            f"{self.path} is damaged: another FLAC file begins in it after "
                            f"{done / self.rate:.1f} s; split it into separate files"
                        )

    def _open(self, part: Part) -> _Forward:
        source = _Bytes(self._file, part)
        try:
            return _Forward(source)
        except (soundfile.LibsndfileError, TypeError) as error:
            source.check(self.path)
            if self._layout.final:
                raise ValueError(
                    f"{self.path} cannot be read as audio: {reason_of(error)}"
                ) from error
            reason = reason_of(error)
            if not self._layout.audio:
                mp3 = self.path.suffix.lower() == ".mp3"
                reason = "it has no MPEG frames" if mp3 else "its format is unknown"
            raise UnknownFormat(reason) from error

    @contextlib.contextmanager
    def _errors(self, source: _Bytes, where: str = "") -> Iterator[None]:
        """Raise OSError or ValueError after a read that failed."""
        try:
            yield
        except soundfile.LibsndfileError as error:
            source.check(self.path)
            raise ValueError(f"{self.path} is damaged{where}: {reason_of(error)}") from error
        source.check(self.path)

    def _check_count(self, count: int, expected: int) -> None:
        if count != expected:
            raise ValueError(
                f"{self.path} is damaged: {count} of {expected} samples could be decoded"
            )

    def _checked(self, samples: np.ndarray) -> Tensor:
        """[t, C] to [C, t]."""
        if not np.isfinite(samples).all():
            raise ValueError(f"{self.path} has NaN or infinite samples")
        return torch.from_numpy(np.ascontiguousarray(samples.T))


class _Forward(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """Reads from the beginning to the end, without seeking.

    After every read of a seekable file, soundfile seeks to the current position. This empties an
    mp3 decoder's bit reservoir and makes an audible click.
    """

    def __init__(self, source: _Bytes):
        super().__init__(source)
        self.source = source

    def seekable(self) -> bool:
        return False


class _Bytes(io.RawIOBase):
    """A part of a file, as a file for libsndfile."""

    def __init__(self, file: BinaryIO, part: Part):
        self._file, self._part = file, part
        lengths = (end - start for start, end in part.spans)
        self._ends = list(itertools.accumulate(lengths, initial=len(part.head)))
        self._size = self._ends[-1]
        self._claimed = max(self._size, part.claimed)
        self._position = 0
        self._error: OSError | None = None

    def has_ahead(self, pattern: re.Pattern[bytes]) -> bool:
        """Whether these bytes follow; the decoder may have read some of them already."""
        start = max(1, self._position - (1 << 16))
        return any(find_pattern(self, pattern, start, self._size))

    def check(self, name: Path) -> None:
        """Raise the system's error of a read, if any: libsndfile would lose it."""
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, str(name)) from self._error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._claimed}[whence]
        self._position = min(max(0, base + offset), _UNKNOWN)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, up to the end of the part."""
        view = memoryview(buffer).cast("B")
        if self._size < self._position < self._claimed:  # libsndfile looks for tags at the end
            view[:] = bytes(len(view))
            return len(view)
        done = 0
        while done < len(view) and self._position < self._size:
            try:
                data = self._next(len(view) - done)
            except OSError as error:
                self._error = error
                data = b""
            if not data:  # the file was shortened meanwhile
                break
            view[done : done + len(data)] = data
            done += len(data)
            self._position += len(data)
        return done

    def _next(self, size: int) -> bytes:
        number = bisect.bisect_right(self._ends, self._position)
        if number == 0:
            return self._part.head[self._position : self._position + size]
        end = self._part.spans[number - 1][1]
        left = self._ends[number] - self._position
        self._file.seek(end - left)
        return self._file.read(min(size, left))


_LIST = re.compile(
    rb"(\xef\xbb\xbf)?\s*(#EXTM3U|ffconcat|\[playlist\]|<\?xml|<MPD|<asx|<smil|v=0)", re.I
)
"""Beginnings of text files that refer to other files or addresses, which ffmpeg would read."""


def ffmpeg_to_wav(
    path: Path, folder: Path, reason: UnknownFormat, longest: float | None = None
) -> tuple[Path, str | None]:
    """Decode a format that libsndfile cannot read (m4a, aac, wma, video) to a float wav.

    Args:
        path: the file.
        folder: where the wav is written.
        reason: why libsndfile cannot read it.
        longest: seconds; of longer audio, one more second is decoded.

    Returns:
        The wav, and the damage that ffmpeg reported, if any.

    Raises:
        ValueError: ffmpeg is not installed, or cannot read it either; or the file is a playlist.
    """
    with open(path, "rb") as file:
        if _LIST.match(file.read(1024)):
            raise ValueError(
                f"{path} cannot be read as audio: it is a playlist; name the files in it instead"
            ) from reason
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise ValueError(
            f"{path} cannot be read as audio ({reason}): expected wav, flac, ogg, mp3 or "
            "aiff; install ffmpeg to read other formats (m4a, aac, wma)"
        ) from reason
    source, decoded = str(path.resolve()), folder / "decoded.wav"
    command = [ffmpeg, *"-v error -nostdin -protocol_whitelist file -i".split(), source]
    command += [] if longest is None else ["-t", f"{longest + 1:.3f}"]
    command += [*"-map 0:a:0 -c:a pcm_f32le -rf64 auto".split(), str(decoded)]
    result = subprocess.run(command, capture_output=True, check=False)
    lines = result.stderr.decode(errors="replace").strip().splitlines()
    message = (lines or [str(reason)])[-1].removeprefix(f"{source}: ")
    if result.returncode != 0 or not decoded.exists():
        raise ValueError(
            f"{path} cannot be read as audio: neither libsndfile nor ffmpeg can read it ({message})"
        ) from reason
    return decoded, f"{path} is damaged: ffmpeg reports {message!r}" if lines else None


def reason_of(error: Exception) -> str:
    """The message of an error of soundfile, without the words around it."""
    text = getattr(error, "error_string", None) or one_line(error)
    return " ".join(text.split()).removeprefix("Error : ").rstrip(".")
