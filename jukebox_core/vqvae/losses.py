"""Reconstruction and spectral losses of the Jukebox codec. All take waveforms [B, T]."""

from __future__ import annotations

from collections.abc import Iterable

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


def bandwidths_of(batches: Iterable[Tensor], stft: tuple[int, int, int]) -> Bandwidths:
    """The normalisers of the loss over training audio, batches [B, T].

    l2 is the variance of the samples, l1 their mean magnitude, spec the mean norm of an item's
    spectrogram.

    Raises:
        ValueError: there is no audio, or it is silent.
    """
    samples = items = 0
    total = squares = absolute = spec = 0.0
    for audio in batches:
        exact = audio.double()
        samples += exact.numel()
        items += audio.shape[0]
        total += exact.sum().item()
        squares += exact.square().sum().item()
        absolute += exact.abs().sum().item()
        spec += frobenius(magnitudes(audio, stft)).sum().item()
    if not samples:
        raise ValueError("no audio to measure the loss bandwidths on")
    l2 = squares / samples - (total / samples) ** 2
    return Bandwidths(l1=absolute / samples, l2=l2, spec=spec / items)
