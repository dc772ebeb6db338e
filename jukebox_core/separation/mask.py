"""Ratio masks: the candidates decide which share of each time-frequency bin a source gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from jukebox_core.audio.spectra import istft, squared_magnitude, stft
from jukebox_core.checks import require
from jukebox_core.separation.samples import Candidates


class ExpectedPower(Protocol):
    """Expected true power of a source given its decoded power, see `calibration`."""

    def __call__(self, source: str, powers: Tensor, alpha: float) -> Tensor:
        """Expected powers [..., F, frames] of alpha x_i, given the powers of its decode."""
        ...


LARGEST_N_FFT = 1 << 18
"""12 s at 22,050 Hz, longer than any window."""


def check_power(name: str, value: object) -> None:
    """Raise ValueError unless it is a valid power of a mask; the message calls it `name`."""
    require(name, value, above=0)


def check_compression(name: str, value: object) -> None:
    """Raise ValueError unless float32 can hold power spectra raised to this exponent and back."""
    require(name, value, at_least=0.01, at_most=4)


def check_n_fft(name: str, value: object) -> None:
    """Raise ValueError unless it is a valid STFT size of a mask, in samples."""
    require(name, value, whole=True, at_least=2, at_most=LARGEST_N_FFT)


@dataclass(frozen=True)
class RatioMask:
    """Masks P_i^(power / 2) / sum_j P_j^(power / 2) on the mixture's spectrogram.

    P_i is the (weighted mean) power spectrogram of a source's candidates, as it stands in the
    mixture. Power 2 is the Wiener filter of independent sources. The masks sum to one in every
    bin, so the stems sum to the mixture.

    power: sharpness of the masks. n_fft, hop: of the Hann STFT, in samples at the models' rate.
    compression: candidates' powers P are averaged as (mean P^c)^(1 / c): 1 is the mean power, 0.5
        the squared mean magnitude, which a few loud candidates move less.
    calibration: of the codec that decoded the candidates; None: spectra are taken as decoded.
    """

    power: float = 2.5
    n_fft: int = 4096
    hop: int = 1024
    compression: float = 1.0
    calibration: ExpectedPower | None = None

    def __post_init__(self) -> None:
        """Refuse parameters that do not make a mask."""
        check_power("power", self.power)
        check_compression("compression", self.compression)
        check_n_fft("n_fft", self.n_fft)
        require("hop", self.hop, whole=True, at_least=1)
        if self.n_fft % (2 * self.hop):
            raise ValueError(f"n_fft is {self.n_fft}, expected an even multiple of hop {self.hop}")

    @property
    def alpha(self) -> Mapping[str, float] | None:
        """Gains of the sources in the mixtures that the mask is for; None: any."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        shown = repr(self.calibration) if self.calibration else None
        return {**vars(self), "calibration": shown}

    def __call__(
        self, mixture: Tensor, candidates: Candidates, weights: Tensor
    ) -> dict[str, Tensor]:
        """Masked estimates {source: [B, T]} of x_i, at the scale of the sources.

        Args:
            mixture: [B, T], the true mixture, sum of alpha_i x_i.
            candidates: N estimates of the sources of every mixture.
            weights: [B, N], summing to one over the candidates.
        """
        stems = self.apply(mixture, self.estimate(mixture, candidates, weights))
        return {name: stem / candidates.alpha[name] for name, stem in stems.items()}

    def estimate(
        self, mixture: Tensor, candidates: Candidates, weights: Tensor
    ) -> dict[str, Tensor]:
        """The masks, {source: [B, F, frames]}; arguments as in `__call__`."""
        return self.masks(self.mean_powers(candidates, weights))

    def uncertainty(self, mixture: Tensor, candidates: Candidates, weights: Tensor) -> Tensor:
        """Standard deviation of a bin's share over the candidates, [B, F, frames], from 0 to 0.5.

        A candidate's share is the mask made from it only. The shares of two sources sum to one, so
        their deviations are equal; of more sources, the largest deviation counts. 0: all candidates
        split the bin in the same way; 0.5: half of them give it to one source, half to another. It
        shows where the posterior is wide, not where the models are wrong with confidence: it
        correlates with the mask's error in loud bins, hardly in quiet ones. Particles of one
        encoding share most of their past and therefore agree: only candidates of several shifts, or
        independent draws, are informative.

        Args:
            mixture: [B, T].
            candidates: of two sources or more.
            weights: [B, N], summing to one over the candidates.
        """
        maps = []
        for b, weight in enumerate(weights):
            powers = self.mean_powers(candidates.chunk(b).apart(), weight.new_ones(len(weight), 1))
            deviations = []
            for shares in distinct(list(self.masks(powers).values())):  # [N, F, frames]
                mean = torch.einsum("n,nft->ft", weight, shares)
                deviations.append(
                    torch.einsum("n,nft->ft", weight, (shares - mean).square()).sqrt()
                )
            maps.append(torch.stack(deviations).amax(0))
        return torch.stack(maps)

    def mean_powers(self, candidates: Candidates, weights: Tensor) -> dict[str, Tensor]:
        """Weighted mean powers of alpha_i x_i, {source: [B, F, frames]}, calibrated."""
        alpha = candidates.alpha
        powers = {
            name: torch.stack(
                [
                    self._mean(w, squared_magnitude(alpha[name] * self._spectra(x)))
                    for w, x in zip(weights, audio, strict=True)
                ]
            )
            for name, audio in candidates.audio.items()
        }
        if self.calibration is None:
            return powers
        return {name: self.calibration(name, p, alpha[name]) for name, p in powers.items()}

    def _mean(self, weights: Tensor, powers: Tensor) -> Tensor:
        """[F, frames] of [N, F, frames]."""
        if self.compression == 1:
            return torch.einsum("n,nft->ft", weights, powers)
        raised = torch.einsum("n,nft->ft", weights, powers.pow(self.compression))
        return raised.pow(1 / self.compression)

    def masks(self, powers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks from power spectrograms; equal shares where all are silent."""
        # Relative to the loudest source of the bin: no power under- or overflows float32.
        loudest = torch.stack(list(powers.values())).amax(0).clamp_min(1e-30)
        raised = {name: (p / loudest).pow(self.power / 2) for name, p in powers.items()}
        total = torch.stack(list(raised.values())).sum(0)
        share = 1 / len(powers)
        return {
            name: torch.where(total > 0, r / total.clamp_min(1e-30), share)
            for name, r in raised.items()
        }

    def apply(
        self, mixture: Tensor, masks: Mapping[str, Tensor], rate_ratio: float = 1.0
    ) -> dict[str, Tensor]:
        """Stems of the mixture [..., T]; they sum to it.

        Args:
            mixture: waveforms at `rate_ratio` times the sample rate the masks were made at.
            masks: {source: [..., F, frames]}, broadcast over the mixture's leading dimensions.
            rate_ratio: the masks are read as functions of time and frequency; above their highest
                frequency the mean of their top quarter holds on.
        """
        if rate_ratio == 1.0:
            n_fft, hop = self.n_fft, self.hop
        else:
            overlap = self.n_fft // self.hop
            n_fft = overlap * max(1, round(self.n_fft * rate_ratio / overlap))
            hop = n_fft // overlap
        spectrum = stft(mixture, n_fft, hop)
        if rate_ratio != 1.0:
            bins = torch.arange(spectrum.shape[-2]) * (self.n_fft / (n_fft / rate_ratio))
            frames = torch.arange(spectrum.shape[-1]) * (hop / rate_ratio / self.hop)
            masks = {name: _resample_mask(mask, bins, frames) for name, mask in masks.items()}
        return {
            name: istft(spectrum * mask, n_fft, hop, mixture.shape[-1])
            for name, mask in masks.items()
        }

    def _spectra(self, audio: Tensor) -> Tensor:
        return stft(audio, self.n_fft, self.hop)


WIENER = RatioMask(2.0, 2048, 512)
"""The Wiener filter at the STFT of the published systems' comparisons: for baselines."""


def _resample_mask(mask: Tensor, bins: Tensor, frames: Tensor) -> Tensor:
    """Bilinear reading of [..., F, frames] at fractional bins and frames (sums are kept)."""
    top = mask.shape[-2] - 1
    beyond = mask[..., -(mask.shape[-2] // 4) :, :].mean(-2, keepdim=True)  # [..., 1, frames]
    read = interpolate(mask, bins.clamp(max=top), -2)
    above = (bins > top).to(mask.device).unsqueeze(-1)
    return interpolate(torch.where(above, beyond, read), frames, -1)


def interpolate(x: Tensor, at: Tensor, dim: int) -> Tensor:
    """Linear interpolation along `dim` at fractional indices, clamped to the ends."""
    last = x.shape[dim] - 1
    at = at.to(x.device).clamp(0, last)
    low = at.floor().long().clamp(max=max(last - 1, 0))
    share = (at - low).to(x.dtype)
    if dim == -2:
        share = share.unsqueeze(-1)
    high = (low + 1).clamp(max=last)
    return torch.lerp(x.index_select(dim, low), x.index_select(dim, high), share)


def distinct(masks: Sequence[Tensor]) -> Sequence[Tensor]:
    """The masks whose uncertainties may differ: of two sources, which sum to one, the first."""
    return masks[:1] if len(masks) == 2 else masks
