"""Audio files as float32 tensors, resampling, and the measures of silence.

Audio is `[C, T]` (channels, samples) or `[T]`, full scale 1.0.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
import torch
from torch import Tensor

from jukebox_core.audio.decoding import AudioReader
from jukebox_core.audio.stream import AudioWriter, check_suffix, open_audio


class DamagedAudioWarning(UserWarning):
    """A file lacks its end or other parts; the audio that is there was decoded."""


class AudioInfo(NamedTuple):
    """The size and the rate of an audio file."""

    frames: int
    rate: int
    channels: int


def info(path: str | Path) -> AudioInfo:
    """Length in samples, sample rate and number of channels.

    If the header states the exact length (wav, flac, aiff), nothing is decoded. Otherwise (mp3,
    ogg, a flac written to a pipe) the file is decoded to count its samples.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not audio, or damaged.
    """
    with open_audio(path) as reader:
        frames = reader.frames
        if not reader.exact:
            frames = sum(block.shape[1] for block in reader.blocks())
        return AudioInfo(frames, reader.rate, reader.channels)


def load(path: str | Path) -> tuple[Tensor, int]:
    """Decode a whole audio file.

    Args:
        path: wav, flac, ogg, mp3 or aiff, judged by content, not by name; anything else (m4a, aac,
            wma) if ffmpeg is installed.

    Returns:
        The samples, `[C, T]` float32, and the sample rate.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not audio, or damaged, or has no samples, or NaN or infinite ones.

    Warns:
        DamagedAudioWarning: The file is damaged but still plays, such as an mp3 without its end.
    """
    with open_audio(path) as reader:
        _warn(reader)
        return torch.cat(list(reader.blocks()), 1), reader.rate


def load_segment(path: str | Path, start: int, length: int) -> Tensor:
    """Samples `start` to `start + length` of an audio file, `[C, length]` float32.

    In formats that seek exactly (wav, flac, aiff) only the segment is decoded; in the others, such
    as mp3, everything before it as well.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not audio, is too short, or is damaged or not finite in the segment.

    Warns:
        DamagedAudioWarning: As `load`.
    """
    if start < 0 or length < 1:
        raise ValueError(f"start is {start} and length {length}, expected start >= 0, length >= 1")
    with open_audio(path) as reader:
        _warn(reader)
        return reader.segment(start, length)


def _warn(reader: AudioReader) -> None:
    if reader.warning:
        warnings.warn(reader.warning, DamagedAudioWarning, stacklevel=3)


def save(path: str | Path, audio: Tensor, rate: int, *, subtype: str | None = None) -> None:
    """Write audio; the file appears whole or not at all.

    Integer subtypes hold `round(x * 2^(bits - 1))`, clipped to the range: samples on that grid are
    read back unchanged.

    Args:
        path: The suffix selects the format: wav (32-bit float), flac and aiff (24-bit), ogg, mp3.
        audio: `[C, T]` or `[T]` floating point.
        rate: Sample rate in Hz.
        subtype: libsndfile's name of another encoding, such as `PCM_16`.

    Raises:
        ValueError: A suffix that cannot be written, another shape, no samples, NaN or infinities.
        OSError: The file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    if audio.ndim not in (1, 2) or audio.numel() == 0:
        raise ValueError(
            f"audio for {path.name} has shape {tuple(audio.shape)}, expected [T] or [C, T], T > 0"
        )
    if not audio.is_floating_point():
        raise ValueError(f"audio for {path.name} is {audio.dtype}, expected floating point")
    channels = audio[None] if audio.ndim == 1 else audio
    count, frames = channels.shape
    with AudioWriter(path, rate, count, subtype=subtype, frames=frames) as writer:
        writer.write(channels)


def resample(audio: Tensor, from_rate: int, to_rate: int, *, length: int | None = None) -> Tensor:
    """Resample with soxr at its highest quality.

    Args:
        audio: `[..., T]`.
        from_rate: Sample rate of `audio` in Hz.
        to_rate: New sample rate in Hz.
        length: Exact number of samples to return; zeros are added or samples dropped at the end.

    Returns:
        `[..., T']` float32.
    """
    if from_rate <= 0 or to_rate <= 0:
        raise ValueError(f"cannot resample from {from_rate} to {to_rate} Hz: rates must be > 0")
    audio = audio.float()
    if from_rate != to_rate and audio.numel() > 0:
        flat = audio.reshape(-1, audio.shape[-1]).cpu().numpy()  # [N, T]
        out = soxr.resample(np.ascontiguousarray(flat.T), from_rate, to_rate, quality="VHQ")
        resampled = torch.from_numpy(np.ascontiguousarray(out.T))
        audio = resampled.reshape(*audio.shape[:-1], -1).to(audio.device)
    if length is not None:
        audio = torch.nn.functional.pad(audio[..., :length], (0, max(0, length - audio.shape[-1])))
    return audio


def to_mono(audio: Tensor) -> Tensor:
    """The mean of the channels: `[C, T]` to `[T]`."""
    if audio.ndim != 2:
        raise ValueError(f"audio has shape {tuple(audio.shape)}, expected [C, T]")
    return audio[0] if audio.shape[0] == 1 else audio.mean(0)


def rms_dbfs(audio: Tensor) -> Tensor:
    """Root mean square of `[..., T]` in decibels below full scale, `[...]`; -inf for zeros."""
    return 10 * audio.square().mean(-1).log10()


def is_silent(audio: Tensor, threshold_dbfs: float = -60.0) -> bool:
    """Whether the RMS over all of `audio` lies below the threshold."""
    return audio.numel() == 0 or rms_dbfs(audio.flatten()).item() < threshold_dbfs


def reference_is_silent(audio: Tensor, threshold: float = 1.5e-5) -> bool:
    """Return whether norm / length is below the threshold, as in the reference report.

    The rule depends on the length: use it only to compare with that report, else `is_silent`.
    """
    return audio.numel() == 0 or audio.norm().item() / audio.shape[-1] < threshold
