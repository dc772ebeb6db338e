"""Read, write and resample audio of any length block by block, in constant memory.

Blocks are `[C, t]` float32 with full scale 1.0.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from jukebox_core.audio.decoding import (
    AudioReader,
    UnknownFormat,
    ffmpeg_to_wav,
    reason_of,
    regular_file,
)
from jukebox_core.files import atomic_path

_WAV_LIMIT = (1 << 32) - 1  # largest size in a plain wav, in bytes
_HEADER_BYTES = 58
_DS64_BYTES = 36
_SUBTYPES = {
    ".wav": ("WAV", "FLOAT"),
    ".flac": ("FLAC", "PCM_24"),
    ".aiff": ("AIFF", "PCM_24"),
    ".aif": ("AIFF", "PCM_24"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_BITS = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32}


@contextlib.contextmanager
def open_audio(path: str | Path, longest: float | None = None) -> Iterator[AudioReader]:
    """Open an audio file of any length.

    Formats that only ffmpeg reads (m4a, aac, wma) are decoded to a temporary file first; of audio
    that is longer than `longest` seconds, one more second.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not audio, or damaged.
    """
    path = regular_file(path)
    with contextlib.ExitStack() as stack:
        try:
            reader = AudioReader(path)
        except UnknownFormat as reason:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            decoded, warning = ffmpeg_to_wav(path, folder, reason, longest)
            reader = AudioReader(decoded, path, warning)
        yield stack.enter_context(contextlib.closing(reader))


class Survey(NamedTuple):
    """Length and level of a whole file. level: RMS in dB relative to full scale."""

    frames: int
    level: float


def survey(reader: AudioReader, heard: Callable[[int], None] = lambda frames: None) -> Survey:
    """Decode a whole file, so that damage shows before hours of work on it.

    Args:
        reader: of the file.
        heard: called with the number of samples after each block; may raise to stop.

    Raises:
        ValueError: As `AudioReader.blocks`.
    """
    power, frames, values = 0.0, 0, 0
    for block in reader.blocks():
        samples = block.double()
        power += float(samples.square().sum())
        frames += block.shape[1]
        values += block.numel()
        heard(frames)
    mean = power / values
    return Survey(frames, 10 * math.log10(mean) if mean else -math.inf)


class Resampler:
    """`audio.resample` for a channel in pieces; the joined output has the same samples."""

    def __init__(self, from_rate: int, to_rate: int):
        if from_rate <= 0 or to_rate <= 0:
            raise ValueError(f"cannot resample from {from_rate} to {to_rate} Hz: rates must be > 0")
        self._equal = from_rate == to_rate
        self._stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="VHQ")

    def push(self, piece: Tensor, last: bool = False) -> Tensor:
        """Resample a piece [t] to [t'], delayed by the filter (t' may be 0)."""
        if self._equal:
            return piece
        return torch.from_numpy(self._stream.resample_chunk(piece.cpu().numpy(), last=last))

    def finish(self) -> Tensor:
        """The rest [t']."""
        return self.push(torch.empty(0), last=True)


def check_suffix(path: str | Path) -> None:
    """Raise ValueError unless the file name has a suffix that can be written."""
    path = Path(path)
    if path.suffix.lower() not in _SUBTYPES:
        raise ValueError(
            f"cannot write {path.name}: the suffix is {path.suffix.lower()!r}, expected "
            f"{', '.join(sorted(_SUBTYPES))}"
        )


class AudioWriter:
    """Writes a file block by block; the file appears whole or not at all.

    Integer subtypes hold `round(x * 2^(bits - 1))`, clipped to the range, so that samples on that
    grid are read back unchanged. Equal audio gives equal bytes, except in ogg, for which libsndfile
    writes a random number.
    """

    def __init__(
        self,
        path: str | Path,
        rate: int,
        channels: int,
        *,
        subtype: str | None = None,
        frames: int | None = None,
    ):
        """Open the file; it has a temporary name until it is closed.

        Args:
            path: the suffix selects the format: wav (32-bit float), flac and aiff (24-bit), ogg,
                mp3.
            rate: sample rate in Hz.
            channels: number of channels of every block.
            subtype: libsndfile's name of another encoding, such as `PCM_16`.
            frames: approximate number of samples to come; a float wav beyond 4 GiB becomes an RF64
                file, whose header differs from the start.

        Raises:
            ValueError: The format does not allow this.
            OSError: The file cannot be written.
        """
        self.path = Path(path)
        self.frames = 0
        self._channels = channels
        check_suffix(self.path)
        suffix = self.path.suffix.lower()
        format_, subtype = _SUBTYPES[suffix][0], subtype or _SUBTYPES[suffix][1]
        self._bits = _BITS.get(subtype)
        self._open = contextlib.ExitStack()
        with self._cleaning():
            temporary = self._open.enter_context(atomic_path(self.path))
            file = self._open.enter_context(open(temporary, "wb", buffering=0))
            self._target = _Target(file)
            self._open.callback(self._target.stop)
            self._encoder: _FloatWav | soundfile.SoundFile
            if suffix == ".wav" and subtype == "FLOAT":
                self._encoder = _FloatWav(self._target, self.path, rate, channels, frames)
            else:
                try:
                    self._encoder = soundfile.SoundFile(
                        self._target, "w", rate, channels, subtype, format=format_
                    )
                except (soundfile.LibsndfileError, ValueError, TypeError) as error:
                    self._target.check()
                    raise ValueError(f"cannot write {self.path}: {reason_of(error)}") from error
            self._target.check()

    def write(self, block: Tensor) -> None:
        """Append [C, t] floating point samples.

        Raises:
            ValueError: Another shape, NaN or infinities, or the file grows too large.
            OSError: The file cannot be written, for example because the disk is full; the
                incomplete file is removed.
        """
        if block.ndim != 2 or block.shape[0] != self._channels:
            raise ValueError(
                f"a block for {self.path.name} is {tuple(block.shape)}, expected "
                f"[{self._channels}, t]"
            )
        if not torch.isfinite(block).all():
            raise ValueError(f"audio for {self.path.name} has NaN or infinite samples")
        samples = np.ascontiguousarray(block.detach().cpu().numpy().T)
        with self._cleaning(OSError):
            self._encoder.write(quantised(samples, self._bits) if self._bits else samples)
            self._target.check()
        self.frames += block.shape[1]

    def close(self) -> None:
        """Complete the header and give the file its name. A second call does nothing.

        Raises:
            OSError: As `write`.
        """
        if self._target.stopped:
            return
        with self._cleaning():
            self._encoder.close()
            self._target.check()
            self._open.close()

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self.close()
        else:
            self._open.__exit__(kind, error, trace)

    @contextlib.contextmanager
    def _cleaning(self, kind: type[BaseException] = BaseException) -> Iterator[None]:
        """After an error, remove the incomplete file; name the real file in system errors."""
        try:
            yield
        except kind as error:
            self._open.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, OSError) and error.errno is not None:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            raise


def quantised(samples: np.ndarray, bits: int) -> np.ndarray:
    """Nearest integers, in the upper bits of int32.

    libsndfile would scale floats by 2^(bits - 1) - 1 when it writes and by 2^(bits - 1) when it
    reads, so that samples would not survive the round trip.
    """
    top = 2 ** (bits - 1)
    whole = np.rint(samples.astype(np.float64) * top).clip(-top, top - 1)
    return whole.astype(np.int32) << np.int32(32 - bits)


class _Target(io.RawIOBase):
    """The file that an encoder writes to; keeps the first error, which libsndfile would lose.

    After an error or `stop`, it accepts data but writes nothing.
    """

    def __init__(self, file: io.RawIOBase):
        self._file = file
        self._error: OSError | None = None
        self.stopped = False

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ignore all further writes."""
        self.stopped = True

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        while len(rest):
            rest = rest[self._try(partial(self._file.write, rest), len(rest)) :]
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._try(lambda: self._file.seek(offset, whence), 0)

    def tell(self) -> int:
        return self._try(self._file.tell, 0)

    def readinto(self, buffer: Any) -> int:
        return 0

    def _try(self, action: Callable[[], int | None], otherwise: int) -> int:
        if self._error is None and not self.stopped:
            try:
                return action() or 0
            except OSError as error:
                self._error = error
        return otherwise


class _FloatWav:
    """A 32-bit float wav without libsndfile's PEAK chunk, which holds the time of writing."""

    def __init__(self, file: _Target, path: Path, rate: int, channels: int, frames: int | None):
        self._file, self._path, self._rate, self._channels = file, path, rate, channels
        expected = (frames or 0) * 4 * channels
        self._large = expected + _HEADER_BYTES + (1 << 20) > _WAV_LIMIT
        self._bytes = 0
        self._file.write(self._header())

    def write(self, samples: np.ndarray) -> None:
        """Append [t, C]."""
        data = samples.astype("<f4", copy=False).tobytes()
        if not self._large and self._bytes + len(data) + _HEADER_BYTES > _WAV_LIMIT:
            raise ValueError(
                f"{self._path.name} exceeds the 4 GiB limit of wav (the input's header understated "
                "its length); write flac instead"
            )
        self._file.write(data)
        self._bytes += len(data)

    def close(self) -> None:
        """Write the header again, now that the length is known."""
        self._file.seek(0)
        self._file.write(self._header())

    def _header(self) -> bytes:
        """RIFF, or RF64 (EBU Tech 3306) with 64-bit sizes."""
        step = 4 * self._channels
        frames = self._bytes // step
        form = struct.pack(
            "<HHIIHHH", 3, self._channels, self._rate, self._rate * step, step, 32, 0
        )
        riff = self._bytes + _HEADER_BYTES - 8
        if self._large:
            ds64 = struct.pack("<QQQI", riff + _DS64_BYTES, self._bytes, frames, 0)
            start = b"RF64" + struct.pack("<I", _WAV_LIMIT) + b"WAVE" + _chunk(b"ds64", ds64)
            counts = (_WAV_LIMIT, _WAV_LIMIT)
        else:
            start = b"RIFF" + struct.pack("<I", riff) + b"WAVE"
            counts = (frames, self._bytes)
        fact = _chunk(b"fact", struct.pack("<I", counts[0]))
        return start + _chunk(b"fmt ", form) + fact + b"data" + struct.pack("<I", counts[1])


def _chunk(name: bytes, content: Any) -> bytes:
    return name + struct.pack("<I", len(content)) + content
