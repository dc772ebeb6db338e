"""Scores of estimates against references, in dB, over any leading dimensions at once.

Every function takes waveforms [..., T] that broadcast against each other, computes in float64 and
returns [...]. A silent reference has no score: NaN, which the caller skips and counts. A perfect
estimate scores +inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SEED_WINDOW", "framewise_sdr", "sdr", "si_sdr", "si_sdri"]

SEED_WINDOW = 44_100  # samples, whatever the rate: that of museval's defaults, which the seeds used


def sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Signal-to-distortion ratio over the whole signal, 10 log10(|s|^2 / |s - e|^2)."""
    reference, estimate = _pair(reference, estimate)
    return _ratio(_energy(reference), _energy(reference - estimate))


def framewise_sdr(reference: Tensor, estimate: Tensor, window: int = SEED_WINDOW) -> Tensor:
    """Median SDR of non-overlapping windows: BSSEval v4's SDR, equal to museval's.

    As there, an incomplete last window is dropped unless it is the only one, windows whose
    reference or estimate is silent and infinite scores do not count, and the median of an even
    number of windows is the mean of the middle two.

    Args:
        reference: [..., T].
        estimate: [..., T].
        window: samples per window.

    Returns:
        [...], NaN where no window counts.
    """
    if window < 1:
        raise ValueError(f"window is {window} samples, expected at least 1")
    reference, estimate = _pair(reference, estimate)
    window = min(window, reference.shape[-1])
    frames = [x.unfold(-1, window, window) for x in (reference, estimate)]  # [..., W, window]
    scores = _ratio(_energy(frames[0]), _energy(frames[0] - frames[1]))
    counts = scores.isfinite() & (frames[1] != 0).any(-1)
    return scores.masked_fill(~counts, torch.nan).nanquantile(0.5, dim=-1)


def si_sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Scale-invariant SDR (Le Roux et al. 2019), without removal of the mean.

    10 log10(|a s|^2 / |a s - e|^2) with a = <e, s> / |s|^2; an estimate that is zero throughout has
    no score (NaN).
    """
    reference, estimate = _pair(reference, estimate)
    scale = (estimate * reference).sum(-1, keepdim=True) / _energy(reference).unsqueeze(-1)
    target = scale * reference
    score = 10 * (_energy(target) / _energy(target - estimate)).log10()
    return score.masked_fill(_energy(reference) == 0, torch.nan)


def si_sdri(reference: Tensor, estimate: Tensor, mixture: Tensor) -> Tensor:
    """Improvement of the SI-SDR over that of the mixture taken as the estimate."""
    return si_sdr(reference, estimate) - si_sdr(reference, mixture)


def _pair(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 and of one shape."""
    if reference.ndim == 0 or estimate.ndim == 0 or reference.shape[-1] != estimate.shape[-1]:
        raise ValueError(
            f"reference is {tuple(reference.shape)} and estimate {tuple(estimate.shape)}, "
            "expected [..., T] of one length T"
        )
    if reference.shape[-1] == 0:
        raise ValueError("reference and estimate have no samples")
    first, second = torch.broadcast_tensors(reference.double(), estimate.double())
    return first, second


def _energy(x: Tensor) -> Tensor:
    return x.square().sum(-1)


def _ratio(signal: Tensor, distortion: Tensor) -> Tensor:
    """10 log10(signal / distortion), NaN without a signal."""
    return (10 * (signal / distortion).log10()).masked_fill(signal == 0, torch.nan)
