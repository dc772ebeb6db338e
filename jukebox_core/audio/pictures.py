"""Pictures of audio as PNG: spectrograms and maps of uncertainty.

All pictures have one pixel per column and row: at most `COLUMNS` columns of equal duration, and
`ROWS` logarithmic steps of frequency from `LOWEST` Hz upwards. Their colour scales are fixed, so
that pictures can be compared.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.audio.io import to_mono

ROWS, COLUMNS = 96, 1000
LOWEST = 40.0
"""Frequency of row 0, in Hz."""
LOUDNESS = (-90.0, -10.0)
"""Ends of the colour scale of spectrograms, in dB; 0 dB is a sine of amplitude 1."""

_RESOLUTION = 10.8  # Hz between bins, roughly: 2048 samples at 22,050 Hz
_QUIET = 40.0  # dB below the loudest bin; uncertainty does not matter there


def levels(blocks: Iterable[Tensor], frames: int, rate: int, highest: float) -> Tensor:
    """Compute a log-frequency spectrogram in flat memory.

    Args:
        blocks: consecutive parts [C, t] of the audio.
        frames: samples of all blocks together.
        rate: sample rate in Hz.
        highest: frequency of the last row, in Hz.

    Returns:
        [ROWS, columns], the mean power of each row's loudest bin in dB.
    """
    n_fft = 1 << round(np.log2(rate / _RESOLUTION))
    hop = n_fft // 4
    total = 1 + frames // hop
    columns = min(COLUMNS, total)
    window = torch.hann_window(n_fft)
    power, counts = torch.zeros(ROWS, columns), torch.zeros(columns)
    pending, done = torch.zeros(n_fft // 2), 0
    for mono in itertools.chain(map(to_mono, blocks), [torch.zeros(n_fft // 2)]):
        pending = torch.cat([pending, mono])
        count = 1 + (len(pending) - n_fft) // hop
        if count < 1:
            continue
        part = pending[: n_fft + (count - 1) * hop]
        spectrum = torch.stft(part, n_fft, hop, window=window, center=False, return_complex=True)
        at = (torch.arange(done, done + count) * columns // total).clamp(max=columns - 1)
        bins = (spectrum.abs() / (n_fft / 4)).square()
        power.index_add_(1, at, log_rows(bins, rate / n_fft, highest, "amax"))
        counts.index_add_(0, at, torch.ones(count))
        pending, done = pending[count * hop :], done + count
    return 10 * (power / counts.clamp(min=1)).clamp_min(1e-12).log10()


def log_rows(
    values: Tensor, hertz: float, highest: float, reduce: Literal["amax", "mean"]
) -> Tensor:
    """Reduce bins [F, frames], `hertz` apart, to rows [ROWS, frames] up to `highest` Hz.

    A row reduces the bins that are nearest to it; a row between two bins takes the nearer bin.
    """
    centres = torch.from_numpy(np.geomspace(LOWEST, highest, ROWS)).float() / hertz
    rows = values[centres.round().long().clamp(max=len(values) - 1)]
    edges = (centres[1:] * centres[:-1]).sqrt()
    bins = torch.arange(len(values))
    inside = (bins >= centres[0]) & (bins <= centres[-1])
    at = torch.bucketize(bins[inside].float(), edges)
    each = at[:, None].expand(-1, values.shape[1])
    return rows.scatter_reduce(0, each, values[inside], reduce, include_self=False)


def spectrogram(level: Tensor) -> bytes:
    """Draw `levels` [ROWS, columns] as PNG."""
    return _png(level, "magma", LOUDNESS)


def uncertainty(values: Tensor, level: Tensor) -> bytes:
    """Draw uncertainty as PNG: black at 0 or where the mixture is quiet, yellow at 0.5.

    Args:
        values: [ROWS, frames], see `log_rows`.
        level: `levels` of the mixture, [ROWS, columns].
    """
    loud = level > level.max() - _QUIET
    return _png(F.adaptive_avg_pool1d(values, level.shape[1]) * loud, "inferno", (0, 0.5))


def _png(values: Tensor, colours: str, scale: tuple[float, float]) -> bytes:
    """Draw [rows, columns], row 0 at the bottom; `colours` is a colour map of Matplotlib."""
    import matplotlib.image  # heavy, and only pictures need it

    buffer = io.BytesIO()
    matplotlib.image.imsave(
        buffer, values.numpy()[::-1], cmap=colours, vmin=scale[0], vmax=scale[1], format="png"
    )
    return buffer.getvalue()
