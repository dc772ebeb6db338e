"""Reconstruction and spectral losses of the Jukebox codec. All take waveforms [B, T]."""

from __future__ import annotations

import torch
from torch import Tensor

from jukebox_core.audio.spectra import magnitudes
from jukebox_core.config import Bandwidths, LossConfig

LEAST_NORM = 2e-3
"""Norm of a spectrogram below which a relative spectral distance no longer grows."""


def frobenius(x: Tensor) -> Tensor:
    """Norm of every item [B] of a batch [B, ...]."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def spectral_distance(target: Tensor, estimate: Tensor, stft: tuple[int, int, int]) -> Tensor:
    """Mean over the items of the Frobenius norm of the magnitudes' difference."""
    return frobenius(magnitudes(target, stft) - magnitudes(estimate, stft)).mean()


def spectral_convergence(target: Tensor, estimate: Tensor, stft: tuple[int, int, int]) -> Tensor:
    """Mean over the items of the spectral distance relative to the target's norm.

    Smaller norms count as `LEAST_NORM`, so that a silent target does not divide by zero.
    """
    spec = magnitudes(target, stft)
    residual = frobenius(spec - magnitudes(estimate, stft))
    return (residual / frobenius(spec).clamp_min(LEAST_NORM)).mean()


def linf(squared: Tensor, k: int) -> Tensor:
    """Mean of the k largest squared residuals of every item [B, T]."""
    return torch.topk(squared, min(k, squared.shape[1]), dim=1).values.mean()


def reconstruction_terms(
    target: Tensor,
    estimate: Tensor,
    config: LossConfig,
    bandwidths: Bandwidths,
    *,
    spectral: bool = True,
) -> dict[str, Tensor]:
    """The loss terms of one level: l1, l2, linf, recons (`lmix`), multispectral and spectral.

    All are divided by their bandwidths, except a spectral term that is relative to the target.
    """
    residual = (target - estimate).float()
    squared = residual.square()
    terms = {
        "l2_loss": squared.mean() / bandwidths.l2,
        "l1_loss": residual.abs().mean() / bandwidths.l1,
        "linf_loss": linf(squared, config.linf_k) / bandwidths.l2,
    }
    terms["recons_loss"] = (
        config.lmix_l1 * terms["l1_loss"]
        + config.lmix_l2 * terms["l2_loss"]
        + config.lmix_linf * terms["linf_loss"]
    )
    multi = [spectral_distance(target, estimate, s) for s in config.multispectral_stfts]
    terms["multispectral_loss"] = torch.stack(multi).mean() / bandwidths.spec
    if spectral and config.relative_spectral:
        terms["spectral_loss"] = spectral_convergence(target, estimate, config.spectral_stft)
    elif spectral:
        distance = spectral_distance(target, estimate, config.spectral_stft)
        terms["spectral_loss"] = distance / bandwidths.spec
    return terms


class BandwidthMeter:
    """Accumulates the normalisers of the loss over training audio.

    l2 is the variance of the samples, l1 their mean magnitude, spec the mean norm of an item's
    spectrogram.
    """

    def __init__(self, stft: tuple[int, int, int]):
        self._stft = stft
        self._samples = self._items = 0
        self._sum = self._squares = self._absolute = self._spec = 0.0

    def add(self, audio: Tensor) -> None:
        """Add items [B, T]."""
        exact = audio.double()
        self._samples += exact.numel()
        self._items += audio.shape[0]
        self._sum += exact.sum().item()
        self._squares += exact.square().sum().item()
        self._absolute += exact.abs().sum().item()
        self._spec += frobenius(magnitudes(audio, self._stft)).sum().item()

    def result(self) -> Bandwidths:
        """The bandwidths of everything added.

        Raises:
            ValueError: nothing was added, or it was silent.
        """
        if not self._samples:
            raise ValueError("no audio to measure the loss bandwidths on")
        mean = self._sum / self._samples
        return Bandwidths(
            l1=self._absolute / self._samples,
            l2=self._squares / self._samples - mean**2,
            spec=self._spec / self._items,
        )
