"""Pictures of a song of any length in flat memory: spectrograms, and where candidates disagree.

All pictures of a song have the same axes: the whole song from left to right in `COLUMNS` columns at
most, `ROWS` logarithmic steps from 40 Hz up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.audio.io import to_mono
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.uncertainty import Uncertainty
from jukebox_core.separation.windows import Window
from scripts.report.plots import png

__all__ = ["COLUMNS", "LOWEST", "ROWS", "Undecided", "levels", "spectrogram"]

ROWS, COLUMNS = 96, 1000
LOWEST = 40.0
"""Hz of row 0."""

_LEVELS = (-90.0, -10.0)  # dB below a sine of amplitude 1
_RESOLUTION = 10.8  # Hz between bins, about: 2048 samples at 22,050 Hz
_QUIET = 40.0  # dB below the loudest, where whose a sound is does not matter


def levels(blocks: Iterable[Tensor], frames: int, rate: int, highest: float) -> Tensor:
    """Mean power of a row's loudest bin in dB, [ROWS, columns]; of a sine of amplitude 1 it is 0.

    Args:
        blocks: [C, t] each, `frames` samples together.
        frames: in all.
        rate: in Hz.
        highest: Hz of the last row.
    """
    n_fft = 1 << round(np.log2(rate / _RESOLUTION))
    hop = n_fft // 4
    total = 1 + frames // hop
    columns = min(COLUMNS, total)
    window = torch.hann_window(n_fft)
    power, counts = torch.zeros(ROWS, columns), torch.zeros(columns)
    held, done = torch.zeros(n_fft // 2), 0
    for mono in itertools.chain(map(to_mono, blocks), [torch.zeros(n_fft // 2)]):
        held = torch.cat([held, mono])
        count = 1 + (len(held) - n_fft) // hop
        if count < 1:
            continue
        part = held[: n_fft + (count - 1) * hop]
        spectrum = torch.stft(part, n_fft, hop, window=window, center=False, return_complex=True)
        at = (torch.arange(done, done + count) * columns // total).clamp(max=columns - 1)
        bins = (spectrum.abs() / (n_fft / 4)).square()
        power.index_add_(1, at, _in_rows(bins, highest, rate / n_fft, "amax"))
        counts.index_add_(0, at, torch.ones(count))
        held, done = held[count * hop :], done + count
    return 10 * (power / counts.clamp(min=1)).clamp_min(1e-12).log10()


def spectrogram(level: Tensor) -> bytes:
    """PNG of `levels`; the range of its colours is fixed, so that pictures can be compared."""
    return png(level.numpy(), "magma", _LEVELS)


class Undecided(Uncertainty):
    """Uncertainty of the rows of a picture alone: `values` [ROWS, frames]."""

    def __init__(self, highest: float):
        """Up to `highest` Hz."""
        super().__init__()
        self._highest = highest

    def add(self, window: Window, values: Tensor, mask: RatioMask, rate: int) -> None:
        """Add the picture's rows of a window's disagreement [F, frames]."""
        rows = _in_rows(values, self._highest, rate / mask.n_fft, "mean")
        super().add(window, rows, mask, rate)

    def picture(self, mixture: Tensor) -> bytes:
        """PNG: black where the candidates agree or the mixture is quiet, yellow at 0.5.

        Args:
            mixture: its `levels` [ROWS, columns].
        """
        values = F.adaptive_avg_pool1d(self.values, mixture.shape[1])
        loud = mixture > mixture.max() - _QUIET
        return png((values * loud).numpy(), "inferno", (0, 0.5))


def _in_rows(values: Tensor, highest: float, hertz: float, how: Literal["amax", "mean"]) -> Tensor:
    """Bins [F, frames], `hertz` apart, as rows [ROWS, frames] of a picture.

    A row takes the bins that are nearest to it; one between two bins takes the nearer one.
    """
    centres = torch.from_numpy(np.geomspace(LOWEST, highest, ROWS)).float() / hertz
    rows = values[centres.round().long().clamp(max=len(values) - 1)]
    edges = (centres[1:] * centres[:-1]).sqrt()
    bins = torch.arange(len(values))
    inside = (bins >= centres[0]) & (bins <= centres[-1])
    at = torch.bucketize(bins[inside].float(), edges)
    each = at[:, None].expand(-1, values.shape[1])
    return rows.scatter_reduce(0, each, values[inside], how, include_self=False)
