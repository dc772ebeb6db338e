"""Ratio-mask refinement: the candidates decide which share of the true mixture is whose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from jukebox_core.checks import require


class ExpectedPower(Protocol):
    """What a source's power is, given that of its decoded candidates, see `calibration`."""

    def __call__(self, source: str, powers: Tensor, alpha: float) -> Tensor:
        """Powers [..., F, frames] of alpha x_i from those of alpha x_i decoded."""
        ...


LARGEST_N_FFT = 1 << 18
"""12 s at 22,050 Hz: longer than any window."""


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

    power: float = 2.0
    n_fft: int = 2048
    hop: int = 512
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
    def settings(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        shown = repr(self.calibration) if self.calibration else None
        return {**vars(self), "calibration": shown}

    def __call__(
        self,
        mixture: Tensor,
        candidates: Mapping[str, Tensor],
        weights: Tensor,
        alpha: Mapping[str, float],
    ) -> dict[str, Tensor]:
        """Refined estimates {source: [B, T]}, at the sources' own scale.

        Args:
            mixture: [B, T], the true mixture, sum of alpha_i x_i.
            candidates: {source: [B, N, T]}, estimates of x_i.
            weights: [B, N], summing to one over the candidates.
            alpha: {source: gain in the mixture}.
        """
        masks = self.masks(self.mean_powers(candidates, weights, alpha))
        stems = self.apply(mixture, masks)
        return {name: stem / alpha[name] for name, stem in stems.items()}

    def mean_powers(
        self, candidates: Mapping[str, Tensor], weights: Tensor, alpha: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Weighted mean powers [B, F, frames] of alpha_i x_i, x_i [B, N, T], calibrated."""
        powers = {
            name: torch.stack(
                [
                    self._mean(w, (alpha[name] * self._spectra(x)).abs().square())
                    for w, x in zip(weights, audio, strict=True)
                ]
            )
            for name, audio in candidates.items()
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
            name: _istft(spectrum * mask, n_fft, hop, mixture.shape[-1])
            for name, mask in masks.items()
        }

    def _spectra(self, audio: Tensor) -> Tensor:
        return stft(audio, self.n_fft, self.hop)


def stft(audio: Tensor, n_fft: int, hop: int) -> Tensor:
    """[..., T] to complex [..., F, frames]; zeros outside, so that any length will do."""
    flat = audio.reshape(-1, audio.shape[-1])
    window = torch.hann_window(n_fft, device=audio.device)
    spectrum = torch.stft(flat, n_fft, hop, window=window, pad_mode="constant", return_complex=True)
    return spectrum.reshape(*audio.shape[:-1], *spectrum.shape[-2:])


def _istft(spectrum: Tensor, n_fft: int, hop: int, length: int) -> Tensor:
    """The inverse of `stft`, [..., length]."""
    window = torch.hann_window(n_fft, device=spectrum.device)
    leading = spectrum.shape[:-2]
    flat = spectrum.reshape(-1, *spectrum.shape[-2:])
    audio = torch.istft(flat, n_fft, hop, window=window, length=length)
    return audio.reshape(*leading, length)


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
