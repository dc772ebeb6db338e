"""How far the candidates disagree on who owns a time-frequency bin of the mixture."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jukebox_core.separation.mask import RatioMask, interpolate
from jukebox_core.separation.windows import CrossFade, Window

__all__ = ["Uncertainty", "disagreement"]


def disagreement(
    mask: RatioMask,
    candidates: Mapping[str, Tensor],
    weights: Tensor,
    alpha: Mapping[str, float],
) -> Tensor:
    """Standard deviation of a bin's share over the candidates, [B, F, frames], from 0 to 0.5.

    A candidate's share is the mask that it alone would make. The shares of both sources sum to one,
    so that their deviations are the same. 0: all candidates give the bin to the sources in the same
    parts; 0.5: half of them give it to one source, half to the other. It is what the models are
    undecided about, not what they are wrong about together: it goes with the mask's error in the
    loud bins, hardly in the quiet ones. Particles of one encoding share most of their past and
    agree for that reason: only candidates of several shifts, or independent draws, tell anything.

    Args:
        mask: whose spectrogram and power are taken.
        candidates: {source: [B, N, T]}, at the sources' own scale, of two sources.
        weights: [B, N], summing to one over the candidates.
        alpha: {source: gain in the mixture}.
    """
    maps = []
    for b, share in enumerate(weights):
        alone = {name: x[b].unsqueeze(1) for name, x in candidates.items()}  # [N, 1, T]
        powers = mask.mean_powers(alone, share.new_ones(len(share), 1), alpha)
        shares = next(iter(mask.masks(powers).values()))  # [N, F, frames]
        mean = torch.einsum("n,nft->ft", share, shares)
        maps.append(torch.einsum("n,nft->ft", share, (shares - mean).square()).sqrt())
    return torch.stack(maps)


class Uncertainty:
    """Collects the disagreement of a song's windows; `values` is that of the song.

    Example:
        >>> uncertainty = Uncertainty()
        >>> stems = separator(mixture, rate, uncertainty=uncertainty)
        >>> uncertainty.values  # [F, frames]
    """

    hertz: float
    """Between bins; bin 0 is at 0 Hz."""
    seconds: float
    """Between frames; frame 0 is centred on the first sample."""

    def __init__(self) -> None:
        """Of nothing so far."""
        self._parts: list[Tensor] = []
        self._fade: CrossFade | None = None
        self._stop = 0

    @property
    def values(self) -> Tensor:
        """[F, frames], once the song is separated; windows are cross-faded as the stems are.

        Raises:
            ValueError: nothing was separated.
        """
        if self._fade is None:
            raise ValueError("there is no uncertainty of a mixture that was not separated")
        self._parts = [torch.cat([*self._parts, self._fade.take(self._stop)], -1)]
        return self._parts[0]

    def add(self, window: Window, values: Tensor, mask: RatioMask, rate: int) -> None:
        """Add a window's disagreement [F, frames]; windows come in order.

        Args:
            window: in samples at the models' rate.
            values: of the mask's spectrogram, frame 0 at the window's start.
            mask: it was made with.
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
