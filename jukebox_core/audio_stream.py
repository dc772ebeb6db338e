"""Audio of any length in flat memory: files read and written block by block, streamed resampling.

Blocks are `[C, t]` float32, full scale 1.0, as `audio` has whole files.
"""

from __future__ import annotations

import contextlib
import math
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from jukebox_core.audio import (
    BITS,
    LOSSY,
    SEEKABLE,
    SUBTYPES,
    check_complete,
    existing,
    ffmpeg_to_wav,
    one_line,
    open_sound,
    quantised,
)

__all__ = ["BLOCK", "AudioReader", "AudioWriter", "Resampler", "Survey", "open_audio", "survey"]

BLOCK = 1 << 16
"""Samples of a block."""

_WAV_LIMIT = (1 << 32) - 1  # bytes that a plain wav's sizes can say
_HEADER_BYTES = 58
_DS64_BYTES = 36


class AudioReader:
    """An open audio file, decoded from the start to the end, once per call of `blocks`."""

    def __init__(self, path: Path, decoded: Path):
        """Open what `open_audio` prepared.

        Args:
            path: the file, as errors name it.
            decoded: what libsndfile reads: the file itself, or what ffmpeg made of it.
        """
        self.path = path
        self._decoded = decoded
        with open_sound(decoded) as file:
            self.rate: int = file.samplerate
            self.channels: int = file.channels
            self.frames: int = file.frames  # of lossy formats an estimate

    def blocks(self, size: int = BLOCK) -> Iterator[Tensor]:
        """All samples in blocks [C, t] of at most `size`.

        Raises:
            ValueError: damaged, without samples, or with NaN or infinite ones.
        """
        done = 0
        with open_sound(self._decoded) as file:
            while True:
                try:
                    samples = file.read(size, dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    raise ValueError(
                        f"{self.path} is damaged after {done / self.rate:.1f} s: {one_line(error)}"
                    ) from error
                if not len(samples):
                    break
                if not np.isfinite(samples).all():
                    raise ValueError(f"{self.path} has NaN or infinite samples")
                done += len(samples)
                yield torch.from_numpy(np.ascontiguousarray(samples.T))
            if file.format in SEEKABLE:
                check_complete(self.path, done, file.frames)
        if done == 0:
            raise ValueError(f"{self.path} has no samples")


@contextlib.contextmanager
def open_audio(path: str | Path) -> Iterator[AudioReader]:
    """A reader of an audio file, of any length.

    What only ffmpeg reads (m4a, aac, wma) is decoded to a temporary file first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not audio.
    """
    path = existing(path)
    with contextlib.ExitStack() as stack:
        try:
            reader = AudioReader(path, path)
        except (soundfile.LibsndfileError, TypeError) as error:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            reader = AudioReader(path, ffmpeg_to_wav(path, folder, error))
        yield reader


class Survey(NamedTuple):
    """What a file holds, found by decoding all of it. level: RMS in dB below full scale."""

    frames: int
    level: float


def survey(reader: AudioReader) -> Survey:
    """Decode a file to its end: that it is sound is known before hours are spent on it.

    Raises:
        ValueError: as `AudioReader.blocks`.
    """
    power, frames, values = 0.0, 0, 0
    for block in reader.blocks():
        samples = block.double()
        power += float(samples.square().sum())
        frames += block.shape[1]
        values += block.numel()
    mean = power / values
    return Survey(frames, 10 * math.log10(mean) if mean else -math.inf)


class Resampler:
    """`audio.resample` of one channel that comes in pieces: the same samples, joined."""

    def __init__(self, from_rate: int, to_rate: int):
        if from_rate <= 0 or to_rate <= 0:
            raise ValueError(f"cannot resample from {from_rate} to {to_rate} Hz: rates must be > 0")
        self._stream = None
        if from_rate != to_rate:
            self._stream = soxr.ResampleStream(
                from_rate, to_rate, 1, dtype="float32", quality="VHQ"
            )

    def push(self, piece: Tensor) -> Tensor:
        """What is known after piece [t], [t'] (t' may be 0)."""
        if self._stream is None:
            return piece
        return torch.from_numpy(self._stream.resample_chunk(piece.cpu().numpy()))

    def finish(self) -> Tensor:
        """The rest [t']."""
        if self._stream is None:
            return torch.empty(0)
        return torch.from_numpy(
            self._stream.resample_chunk(np.empty(0, dtype=np.float32), last=True)
        )


class _Encoder(Protocol):
    def write(self, samples: np.ndarray) -> None: ...

    def close(self) -> None: ...


class AudioWriter:
    """Writes a file block by block; closed, it has the bytes that `audio.save` writes.

    (All but ogg, which libsndfile gives a random number.)
    Write to a temporary path (`files.atomic_path`, `atomic_folder`): half a file is left otherwise.
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
        """Open the file.

        Args:
            path: the suffix chooses the format, as in `audio.save`.
            rate: in Hz.
            channels: of every block.
            subtype: libsndfile's name of another encoding, such as `PCM_16`.
            frames: the samples to come, about: float wav beyond 4 GiB needs RF64, which must be
                known at the start.

        Raises:
            ValueError: the format cannot be written so.
        """
        self.path = Path(path)
        self.frames = 0
        self._channels = channels
        suffix = self.path.suffix.lower()
        if suffix not in SUBTYPES | LOSSY:
            known = ", ".join(sorted(SUBTYPES | LOSSY))
            raise ValueError(
                f"cannot write {self.path.name}: the suffix is {suffix!r}, expected {known}"
            )
        subtype = subtype or (SUBTYPES | LOSSY)[suffix]
        self._bits = BITS.get(subtype)
        self._file: _Encoder
        try:
            if suffix == ".wav" and subtype == "FLOAT":
                self._file = _FloatWav(self.path, rate, channels, frames)
            else:
                self._file = soundfile.SoundFile(self.path, "w", rate, channels, subtype)
        except (soundfile.LibsndfileError, TypeError) as error:
            raise ValueError(f"cannot write {self.path}: {one_line(error)}") from error

    def write(self, block: Tensor) -> None:
        """Append [C, t] floating point samples.

        Raises:
            ValueError: another shape, NaN or infinities, or the file grows too large.
        """
        if block.ndim != 2 or block.shape[0] != self._channels:
            raise ValueError(
                f"a block for {self.path.name} is {tuple(block.shape)}, expected "
                f"[{self._channels}, t]"
            )
        if not torch.isfinite(block).all():
            raise ValueError(f"audio for {self.path.name} has NaN or infinite samples")
        samples = np.ascontiguousarray(block.detach().cpu().numpy().T)
        self._file.write(quantised(samples, self._bits) if self._bits else samples)
        self.frames += block.shape[1]

    def close(self) -> None:
        """Complete the header."""
        self._file.close()

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _FloatWav:
    """A 32-bit float wav without libsndfile's PEAK chunk, which holds the time of writing."""

    def __init__(self, path: Path, rate: int, channels: int, frames: int | None):
        self._path, self._rate, self._channels = path, rate, channels
        expected = (frames or 0) * 4 * channels
        self._large = expected + _HEADER_BYTES + (1 << 20) > _WAV_LIMIT
        self._bytes = 0
        self._file: BinaryIO = open(path, "wb")
        self._file.write(self._header())

    def write(self, samples: np.ndarray) -> None:
        """Append [t, C]."""
        data = samples.astype("<f4", copy=False).tobytes()
        if not self._large and self._bytes + len(data) + _HEADER_BYTES > _WAV_LIMIT:
            raise ValueError(
                f"{self._path.name} grows beyond the 4 GiB of a wav, which its length as the input "
                "states it did not foretell; write flac (--format flac)"
            )
        self._file.write(data)
        self._bytes += len(data)

    def close(self) -> None:
        """Write the header again, now that the length is known."""
        if not self._file.closed:
            self._file.seek(0)
            self._file.write(self._header())
            self._file.close()

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
