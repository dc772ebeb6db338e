"""Audio files as float32 tensors, resampling, and the measures of silence.

Audio is `[C, T]` (channels, samples) or `[T]`, full scale 1.0.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from scipy.io import wavfile
from torch import Tensor

from jukebox_core.files import atomic_path

__all__ = [
    "AudioInfo",
    "info",
    "is_silent",
    "load",
    "load_segment",
    "resample",
    "rms_dbfs",
    "save",
    "seed_is_silent",
    "to_mono",
]

SUBTYPES = {".wav": "FLOAT", ".flac": "PCM_24", ".aiff": "PCM_24", ".aif": "PCM_24"}
LOSSY = {".ogg": "VORBIS", ".mp3": "MPEG_LAYER_III"}
BITS = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
SEEKABLE = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU", "CAF"}  # sample-exact


class AudioInfo(NamedTuple):
    """What an audio file's header says."""

    frames: int
    rate: int
    channels: int


def info(path: str | Path) -> AudioInfo:
    """Length in samples, sample rate and number of channels, without decoding the audio.

    Formats that only ffmpeg reads are decoded.
    """
    path = existing(path)
    try:
        with open_sound(path) as file:
            return AudioInfo(file.frames, file.samplerate, file.channels)
    except (soundfile.LibsndfileError, TypeError):
        audio, rate = load(path)
        return AudioInfo(audio.shape[1], rate, audio.shape[0])


def load(path: str | Path) -> tuple[Tensor, int]:
    """Decode a whole audio file.

    Args:
        path: wav, flac, ogg, mp3 or aiff; anything else (m4a, aac, wma) where ffmpeg is installed.

    Returns:
        The samples, `[C, T]` float32, and the sample rate.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not audio, or damaged, or has no samples, or NaN or infinite ones.
    """
    path = existing(path)
    try:
        samples, rate = _decode(path)
    except soundfile.LibsndfileError as error:
        # What ffmpeg makes of a damaged file may be half of it, without a word.
        if path.suffix.lower() in SUBTYPES:
            raise ValueError(f"{path} cannot be read as audio: {one_line(error)}") from error
        samples, rate = _decode_with_ffmpeg(path, error)
    except TypeError as error:
        samples, rate = _decode_with_ffmpeg(path, error)
    return _checked(samples, path), rate


def load_segment(path: str | Path, start: int, length: int) -> Tensor:
    """Samples `start` to `start + length` of an audio file, `[C, length]` float32.

    Reads only what is asked for from formats that seek exactly (wav, flac, aiff); the others, mp3
    among them, are decoded whole.
    """
    path = existing(path)
    if start < 0 or length < 1:
        raise ValueError(f"start is {start} and length {length}, expected start >= 0, length >= 1")
    try:
        with open_sound(path) as file:
            if file.format in SEEKABLE:
                _check_inside(path, start, length, file.frames)
                file.seek(start)
                samples = file.read(length, dtype="float32", always_2d=True)
                check_complete(path, len(samples), length)
                return _checked(samples, path)
    except soundfile.LibsndfileError as error:
        if path.suffix.lower() in SUBTYPES:
            raise ValueError(f"{path} cannot be decoded: {one_line(error)}") from error
    except TypeError:
        pass  # a suffix that libsndfile takes for headerless data: left to ffmpeg
    audio, _ = load(path)
    _check_inside(path, start, length, audio.shape[1])
    return audio[:, start : start + length].clone()


def save(path: str | Path, audio: Tensor, rate: int, *, subtype: str | None = None) -> None:
    """Write audio; the file appears whole or not at all.

    Integer subtypes hold `round(x * 2^(bits - 1))`, clipped to the range: samples that lie on
    that grid are read back as they were.

    Args:
        path: The suffix chooses the format: wav (32-bit float), flac and aiff (24-bit), ogg, mp3.
        audio: `[C, T]` or `[T]` floating point.
        rate: Sample rate in Hz.
        subtype: libsndfile's name of another encoding, such as `PCM_16`.

    Raises:
        ValueError: A suffix that cannot be written, another shape, no samples, NaN or infinities.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUBTYPES | LOSSY:
        known = ", ".join(sorted(SUBTYPES | LOSSY))
        raise ValueError(f"cannot write {path.name}: the suffix is {suffix!r}, expected {known}")
    if audio.ndim not in (1, 2) or audio.numel() == 0:
        raise ValueError(
            f"audio for {path.name} has shape {tuple(audio.shape)}, expected [T] or [C, T], T > 0"
        )
    if not audio.is_floating_point():
        raise ValueError(f"audio for {path.name} is {audio.dtype}, expected floating point")
    if not torch.isfinite(audio).all():
        raise ValueError(f"audio for {path.name} has NaN or infinite samples: nothing was written")
    subtype = subtype or (SUBTYPES | LOSSY)[suffix]
    samples = audio.detach().cpu().numpy()
    samples = samples[:, None] if samples.ndim == 1 else samples.T  # [T, C]
    if subtype in BITS:
        samples = quantised(samples, BITS[subtype])
    with atomic_path(path) as temporary:
        try:
            _encode(temporary, samples, rate, subtype)
        except (soundfile.LibsndfileError, ValueError, TypeError) as error:
            raise ValueError(f"cannot write {path}: {one_line(error)}") from error


def resample(audio: Tensor, from_rate: int, to_rate: int, *, length: int | None = None) -> Tensor:
    """Resample with soxr at its highest quality.

    Args:
        audio: `[..., T]`.
        from_rate: Sample rate of `audio`.
        to_rate: Sample rate wanted.
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


def seed_is_silent(audio: Tensor, threshold: float = 1.5e-5) -> bool:
    """The original systems' rule: norm / length below a threshold, so it depends on the length.

    For seed-compatible scores only; elsewhere `is_silent`.
    """
    return audio.numel() == 0 or audio.norm().item() / audio.shape[-1] < threshold


def existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no audio file {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected an audio file")
    with open(path, "rb") as file:  # a PermissionError that says so: libsndfile's would not
        if not file.read(1):
            raise ValueError(f"{path} cannot be read as audio: it is empty")
        return path


def open_sound(path: Path) -> soundfile.SoundFile:
    """Open for reading; refuses at once an mp3 without an MPEG frame, as mpg123 would chatter."""
    if path.suffix.lower() == ".mp3":
        with open(path, "rb") as file:
            head = file.read(1 << 16)
        if not head.startswith(b"ID3") and re.search(rb"\xff[\xe0-\xff]", head) is None:
            raise ValueError(f"{path} cannot be read as audio: it has no MPEG frames")
    return soundfile.SoundFile(path)


def _decode(path: Path) -> tuple[np.ndarray, int]:
    """Samples `[T, C]` float32 and the rate."""
    with open_sound(path) as file:
        samples = file.read(dtype="float32", always_2d=True)
        if file.format in SEEKABLE:  # lossy formats state an estimate
            check_complete(path, len(samples), file.frames)
        return samples, file.samplerate


def _decode_with_ffmpeg(path: Path, error: Exception) -> tuple[np.ndarray, int]:
    """What libsndfile cannot read, through a temporary file."""
    with tempfile.TemporaryDirectory() as folder:
        return _decode(ffmpeg_to_wav(path, Path(folder), error))


def ffmpeg_to_wav(path: Path, folder: Path, error: Exception) -> Path:
    """Decode what libsndfile refused with `error` (m4a, aac, wma, a video's sound) to a float wav.

    Raises:
        ValueError: ffmpeg is not installed, or cannot read it either.
    """
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise ValueError(
            f"{path} cannot be read as audio ({one_line(error)}): expected wav, flac, ogg, mp3 or "
            "aiff; install ffmpeg to read other formats (m4a, aac, wma)"
        ) from error
    decoded = folder / "decoded.wav"
    command = [ffmpeg, "-v", "error", "-nostdin", "-i", str(path.resolve())]
    command += ["-map", "0:a:0", "-c:a", "pcm_f32le", "-rf64", "auto", str(decoded)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0 or not decoded.exists():
        reason = (result.stderr.strip().splitlines() or [one_line(error)])[-1]
        reason = reason.removeprefix(f"{path.resolve()}: ")  # the file is named already
        raise ValueError(
            f"{path} cannot be read as audio: neither libsndfile nor ffmpeg knows it ({reason})"
        ) from error
    return decoded


def _encode(path: Path, samples: np.ndarray, rate: int, subtype: str) -> None:
    """Write `[T, C]` samples, floating point or int32 of full range."""
    if path.suffix.lower() == ".wav" and subtype == "FLOAT":
        # libsndfile stamps the time into a float wav: equal audio would not give equal bytes
        wavfile.write(path, rate, samples.astype(np.float32))
    else:
        soundfile.write(path, samples, rate, subtype=subtype)


def quantised(samples: np.ndarray, bits: int) -> np.ndarray:
    """Nearest integers, in the upper bits of int32.

    libsndfile would scale floats by 2^(bits - 1) - 1 on the way out and by 2^(bits - 1) on the way
    in, so that no file would hold the samples it was given.
    """
    top = 2 ** (bits - 1)
    whole = np.rint(samples.astype(np.float64) * top).clip(-top, top - 1)
    return whole.astype(np.int32) << np.int32(32 - bits)


def _checked(samples: np.ndarray, path: Path) -> Tensor:
    """`[T, C]` to `[C, T]`; refuses what no later step could use."""
    if samples.shape[0] == 0:
        raise ValueError(f"{path} has no samples")
    if not np.isfinite(samples).all():
        raise ValueError(f"{path} has NaN or infinite samples")
    return torch.from_numpy(np.ascontiguousarray(samples.T))


def _check_inside(path: Path, start: int, length: int, frames: int) -> None:
    if start + length > frames:
        raise ValueError(f"{path} has {frames} samples, {start} to {start + length} were asked for")


def check_complete(path: Path, got: int, expected: int) -> None:
    if got != expected:
        raise ValueError(f"{path} is damaged: {got} of {expected} samples could be decoded")


def one_line(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error)
    return " ".join(text.split()).rstrip(".")
