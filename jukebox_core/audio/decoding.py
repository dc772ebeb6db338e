"""Decode audio files with libsndfile, or with ffmpeg if libsndfile does not support the format.

Samples are `[t, C]` float32 arrays.
"""

from __future__ import annotations

import io
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from jukebox_core.audio.layout import Part, find_layout
from jukebox_core.checks import one_line

__all__ = ["Sound", "UnknownFormat", "ffmpeg_to_wav", "reason_of", "regular_file"]

_EXACT = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU", "CAF"}
"""libsndfile formats whose headers state the exact length and whose seeks are exact."""
_UNKNOWN = 1 << 62
"""libsndfile gives a larger length than this if the header states none."""
_FLAC = b"fLaC\0\0\0\x22"
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
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is {_name(status.st_mode)}, expected an audio file")
    if status.st_size == 0:
        raise ValueError(f"{path} cannot be read as audio: it is empty")
    return path


def _name(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
    }
    return next((name for test, name in kinds.items() if test(mode)), "a device")


class Sound:
    """An audio file that is open for decoding."""

    def __init__(self, path: Path, name: Path | None = None):
        """Open a file and look at its headers.

        Args:
            path: the file, checked by `regular_file`.
            name: the file's name in error messages; default: `path`.

        Raises:
            UnknownFormat: libsndfile cannot read it.
            ValueError: It is damaged.
            OSError: It cannot be opened.
        """
        self._name = name or path
        self._file = open(path, "rb")
        try:
            self._layout = find_layout(self._file, self._name)
            with self._open(self._layout.parts[0]) as first:
                self.rate: int = first.samplerate
                self.channels: int = first.channels
                self.exact = first.format in _EXACT and first.frames < _UNKNOWN
                """Whether the header states the exact length, and seeks are exact."""
                self.frames = first.frames if first.frames < _UNKNOWN else 0
                """Samples according to the header, or 0 if it states none. If not `exact`, only
                decoding gives the true number."""
            for part in self._layout.parts[1:]:
                with self._open(part) as sound:
                    self.frames += sound.frames
            if not _RATES[0] <= self.rate <= _RATES[1]:
                raise ValueError(
                    f"{self._name} has a sample rate of {self.rate:,} Hz in its header, expected "
                    f"{_RATES[0]} to {_RATES[1]:,} Hz"
                )
        except BaseException:
            self._file.close()
            raise

    @property
    def warning(self) -> str | None:
        """Damage to a file that still plays; None if there is none."""
        return self._layout.warning

    def __enter__(self) -> Sound:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """All samples in blocks [t, C] of at most `size`.

        Raises:
            ValueError: The file is damaged, or its format changes.
        """
        size = min(size, max(1, _BLOCK_VALUES // self.channels))
        done = 0
        for part in self._layout.parts:
            with self._open(part) as sound:
                self._check_format(sound, done)
                before = done
                while done - before < sound.frames:
                    left = sound.frames - (done - before)
                    samples = self._read(sound, min(size, left), done)
                    sound.source.check(self._name)
                    if not len(samples):
                        break
                    done += len(samples)
                    yield samples
                self._check_complete(sound, done - before)

    def segment(self, start: int, length: int) -> np.ndarray:
        """Samples `start` to `start + length`, [length, C].

        If the format seeks exactly, only these are decoded; otherwise everything before them too.

        Raises:
            ValueError: The file is shorter, or damaged there.
        """
        if self.exact:
            self._check_inside(start, length, self.frames)
            # Not `_Forward`, which cannot seek.
            source = _Bytes(self._file, self._layout.parts[0])
            with soundfile.SoundFile(source) as sound:
                try:
                    sound.seek(start)
                    samples = sound.read(length, dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    source.check(self._name)
                    raise ValueError(f"{self._name} is damaged: {reason_of(error)}") from error
            source.check(self._name)
            if len(samples) != length:
                raise ValueError(
                    f"{self._name} is damaged: {len(samples)} of {length} samples could be decoded"
                )
            return samples
        pieces, done = [], 0
        for block in self.blocks(1 << 16):
            pieces.append(block[max(0, start - done) : max(0, start + length - done)])
            done += len(block)
            if done >= start + length:
                return np.concatenate(pieces)
        self._check_inside(start, length, done)
        raise AssertionError("unreachable")

    def _open(self, part: Part) -> _Forward:
        source = _Bytes(self._file, part)
        try:
            return _Forward(source)
        except (soundfile.LibsndfileError, TypeError) as error:
            source.check(self._name)
            if self._layout.final:
                raise ValueError(
                    f"{self._name} cannot be read as audio: {reason_of(error)}"
                ) from error
            raise UnknownFormat(self._reason(error)) from error

    def _reason(self, error: Exception) -> str:
        if self._layout.audio:
            return reason_of(error)
        mp3 = self._name.suffix.lower() == ".mp3"
        return "it has no MPEG frames" if mp3 else "its format is unknown"

    def _read(self, sound: _Forward, size: int, done: int) -> np.ndarray:
        try:
            return sound.read(size, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            sound.source.check(self._name)
            raise ValueError(
                f"{self._name} is damaged after {done / self.rate:.1f} s and cannot be read as "
                f"audio from there: {reason_of(error)}"
            ) from error

    def _check_format(self, sound: soundfile.SoundFile, done: int) -> None:
        came, expected = (sound.samplerate, sound.channels), (self.rate, self.channels)
        if came != expected:
            raise ValueError(
                f"{self._name} changes from {expected[0]} Hz, {expected[1]} channel(s), to "
                f"{came[0]} Hz, {came[1]} channel(s), after {done / self.rate:.1f} s; "
                "expected one format: split the file"
            )

    def _check_complete(self, sound: soundfile.SoundFile, done: int) -> None:
        if sound.frames >= _UNKNOWN or sound.format == "MP3":
            return
        if done != sound.frames:
            raise ValueError(
                f"{self._name} is damaged: {done} of {sound.frames} samples could be decoded"
            )
        if sound.format == "FLAC" and sound.source.has_ahead(_FLAC):
            raise ValueError(
                f"{self._name} is damaged: another FLAC file begins in it after "
                f"{done / self.rate:.1f} s; split it into separate files"
            )

    def _check_inside(self, start: int, length: int, frames: int) -> None:
        if start + length > frames:
            raise ValueError(
                f"{self._name} has {frames} samples, requested {start} to {start + length}"
            )


class _Forward(soundfile.SoundFile):
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
        self._file = file
        self._head = part.head
        self._pieces: list[tuple[int, int, int]] = []  # (start here, end here, start in the file)
        size = len(part.head)
        for start, end in part.spans:
            self._pieces.append((size, size + end - start, start))
            size += end - start
        self._size = size
        self._claimed = max(size, part.claimed)
        self._position = 0
        self._piece = 0
        self._error: OSError | None = None

    def has_ahead(self, beginning: bytes) -> bool:
        """Whether these bytes follow; the decoder may have read some of them already."""
        position, before = self._position, b""
        self._position = max(1, position - (1 << 16))
        while block := self.read(1 << 20):
            if beginning in before + block:
                return True
            before = block[-len(beginning) :]
        self._position = position
        return False

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
        if self._position < len(self._head):
            return self._head[self._position : self._position + size]
        while self._position >= self._pieces[self._piece][1]:
            self._piece += 1
        while self._position < self._pieces[self._piece][0]:
            self._piece -= 1
        start, end, place = self._pieces[self._piece]
        self._file.seek(place + self._position - start)
        return self._file.read(min(size, end - self._position))


_LIST = re.compile(
    rb"(\xef\xbb\xbf)?\s*(#EXTM3U|ffconcat|\[playlist\]|<\?xml|<MPD|<asx|<smil|v=0)", re.I
)
"""Beginnings of text files that refer to other files or addresses, which ffmpeg would read."""


def ffmpeg_to_wav(path: Path, folder: Path, reason: UnknownFormat) -> tuple[Path, str | None]:
    """Decode a format that libsndfile cannot read (m4a, aac, wma, video) to a float wav.

    Args:
        path: the file.
        folder: where the wav is written.
        reason: why libsndfile cannot read it.

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
    decoded = folder / "decoded.wav"
    command = [
        ffmpeg,
        "-v",
        "error",
        "-nostdin",
        "-protocol_whitelist",
        "file",
        "-i",
        str(path.resolve()),
    ]
    command += ["-map", "0:a:0", "-c:a", "pcm_f32le", "-rf64", "auto", str(decoded)]
    result = subprocess.run(command, capture_output=True, check=False)
    lines = result.stderr.decode(errors="replace").strip().splitlines()
    message = (lines or [str(reason)])[-1].removeprefix(f"{path.resolve()}: ")
    if result.returncode != 0 or not decoded.exists():
        raise ValueError(
            f"{path} cannot be read as audio: neither libsndfile nor ffmpeg can read it ({message})"
        ) from reason
    return decoded, f"{path} is damaged: ffmpeg reports {message!r}" if lines else None


def reason_of(error: Exception) -> str:
    """The message of an error of soundfile, without the words around it."""
    text = getattr(error, "error_string", None) or one_line(error)
    return " ".join(text.split()).removeprefix("Error : ").rstrip(".")
