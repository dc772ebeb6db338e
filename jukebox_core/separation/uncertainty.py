"""Collects the uncertainty about the owner of every time-frequency bin over a song."""

from __future__ import annotations

import torch
from torch import Tensor

from jukebox_core.separation.mask import RatioMask, interpolate
from jukebox_core.separation.windows import CrossFade, Window


class Uncertainty:
    """Collects the uncertainty of a song's windows; `values` is the uncertainty of the song.

    Example:
        >>> uncertainty = Uncertainty()
        >>> stems = separator(mixture, rate, uncertainty=uncertainty)
        >>> uncertainty.values  # [F, frames]
    """

    hertz: float
    """Hertz between bins; bin 0 is at 0 Hz."""
    seconds: float
    """Seconds between frames; frame 0 is centred on the first sample."""

    def __init__(self) -> None:
        """Start without windows."""
        self._parts: list[Tensor] = []
        self._fade: CrossFade | None = None
        self._stop = 0

    @property
    def values(self) -> Tensor:
        """[F, frames], once the song is separated; windows are cross-faded like the stems.

        Raises:
            ValueError: nothing was separated.
        """
        if self._fade is None:
            raise ValueError("no window was separated, so there is no uncertainty")
        self._parts = [torch.cat([*self._parts, self._fade.take(self._stop)], -1)]
        return self._parts[0]

    def add(self, window: Window, values: Tensor, mask: RatioMask, rate: int) -> None:
        """Add a window's uncertainty [F, frames]; windows come in order.

        Args:
            window: in samples at the models' rate.
            values: of the mask's spectrogram, frame 0 at the window's start.
            mask: the mask that gave the values.
            rate: of the models, in Hz.
        """
        self.hertz, self.seconds = rate / mask.n_fft, mask.hop / rate
        first = -(-window.start // mask.hop)  # the song's first frame in the window
        count = 1 + window.stop // mask.hop - first
        read = interpolate(values, torch.arange(count) + (first - window.start / mask.hop), -1)
        if self._fade is None:
            self._fade = CrossFade((values.shape[0],))
        self._parts.append(self._fade.take(first))  # no later window starts before
        fades = round(window.fade_in / mask.hop), round(window.fade_out / mask.hop)
        self._fade.add(read, first, *fades)
        self._stop = first + read.shape[1]
