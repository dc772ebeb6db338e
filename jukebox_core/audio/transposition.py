"""Transposition by resampling: the same music higher and faster, or lower and slower."""

from __future__ import annotations

import math

import numpy as np
import soxr
import torch
from torch import Tensor


def span(samples: int, semitones: float) -> int:
    """Number of samples that transpose to at least `samples`, with two to spare for the ends."""
    return samples if semitones == 0 else math.ceil(samples * ratio(semitones)) + 2


def room(samples: int, semitones: float) -> int:
    """Largest number of samples that `samples` can be transposed to."""
    return samples if semitones == 0 else math.floor((samples - 2) / ratio(semitones))


def transpose(waveform: Tensor, semitones: float, samples: int) -> Tensor:
    """Play a waveform faster by 2^(semitones / 12), which raises it by so many semitones.

    Args:
        waveform: [S, T], T >= `span(samples, semitones)`.
        semitones: up, or down if negative; 0 does not resample.
        samples: number of samples to return.

    Returns:
        The first [S, samples] of the transposed waveform.

    Raises:
        ValueError: The waveform is too short.
    """
    needed = span(samples, semitones)
    if waveform.shape[-1] < needed:
        raise ValueError(
            f"{samples} samples transposed by {semitones} semitones need {needed}, the waveform "
            f"has {waveform.shape[-1]}"
        )
    if semitones == 0:
        return waveform[:, :samples]
    frames = np.ascontiguousarray(waveform.T.numpy())
    resampled = soxr.resample(frames, ratio(semitones), 1.0, quality="HQ")
    return torch.from_numpy(np.ascontiguousarray(resampled[:samples].T))


def ratio(semitones: float) -> float:
    """Ratio of the frequencies."""
    return 2 ** (semitones / 12)
