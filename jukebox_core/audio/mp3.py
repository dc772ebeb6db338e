"""MP3 for players in web pages."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from torch import Tensor

from jukebox_core.audio.io import resample, to_mono

_RATES = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # of MPEG-1 and 2: all browsers play them


def mp3(audio: Tensor, rate: int) -> bytes:
    """Encode audio as MP3, clipped to -1 to 1.

    Args:
        audio: [T] or [C, T]; more than two channels are mixed to one.
        rate: sample rate in Hz; audio of a rate that MP3 lacks is resampled to 44,100 Hz.
    """
    if audio.ndim == 2 and len(audio) > 2:
        audio = to_mono(audio)
    if rate not in _RATES:
        audio, rate = resample(audio, rate, 44_100), 44_100
    buffer = io.BytesIO()
    samples = audio.numpy().T.clip(-1, 1).astype(np.float32)
    soundfile.write(buffer, samples, rate, format="MP3", subtype="MPEG_LAYER_III")
    return buffer.getvalue()
