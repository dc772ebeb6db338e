"""Scores of estimates against references, in dB, over any leading dimensions at once.

Every function takes waveforms [..., T] that broadcast against each other, computes in float64 and
returns [...]. A silent reference has no score: NaN, which the caller skips and counts. A perfect
estimate scores +inf.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from jukebox_core.checks import require

Score = Callable[[Tensor, Tensor], Tensor]
_PART = 1 << 17  # samples scored at a time on a CPU

BSSEVAL_WINDOW = 44_100
"""Samples per window of `framewise_sdr` at any sample rate: museval's default."""


def sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Signal-to-distortion ratio over the whole signal, 10 log10(|s|^2 / |s - e|^2)."""
    return _by_parts(_sdr, *_pair(reference, estimate))


def _sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    return _ratio(_energy(reference), _energy(reference - estimate))


def framewise_sdr(reference: Tensor, estimate: Tensor, window: int = BSSEVAL_WINDOW) -> Tensor:
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
    require("window", window, whole=True, at_least=1)
    reference, estimate = _pair(reference, estimate)
    window = min(window, reference.shape[-1])
    scores = _by_parts(partial(_frame_scores, window=window), reference, estimate)
    return scores.nanquantile(0.5, dim=-1)


def _frame_scores(reference: Tensor, estimate: Tensor, window: int) -> Tensor:
    """[..., W], NaN for a window that does not count."""
    frames = [x.unfold(-1, window, window) for x in (reference, estimate)]  # [..., W, window]
    scores = _ratio(_energy(frames[0]), _energy(frames[0] - frames[1]))
    counts = scores.isfinite() & (frames[1] != 0).any(-1)
    return scores.masked_fill(~counts, torch.nan)


def si_sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Scale-invariant SDR (Le Roux et al. 2019), without removal of the mean.

    10 log10(|a s|^2 / |a s - e|^2) with a = sum(e s) / |s|^2; an estimate that is zero throughout
    has no score (NaN).
    """
    return _by_parts(_si_sdr, *_pair(reference, estimate))


def _si_sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    scale = (estimate * reference).sum(-1, keepdim=True) / _energy(reference).unsqueeze(-1)
    target = scale * reference
    score = 10 * (_energy(target) / _energy(target - estimate)).log10()
    return score.masked_fill(_energy(reference) == 0, torch.nan)


def si_sdri(reference: Tensor, estimate: Tensor, mixture: Tensor) -> Tensor:
    """Improvement of the SI-SDR over the mixture as the estimate."""
    return si_sdr(reference, estimate) - si_sdr(reference, mixture)


def _pair(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Both of one shape, which costs no copy."""
    if reference.ndim == 0 or estimate.ndim == 0 or reference.shape[-1] != estimate.shape[-1]:
        raise ValueError(
            f"reference is {tuple(reference.shape)} and estimate {tuple(estimate.shape)}, "
            "expected [..., T] of one length T"
        )
    if reference.shape[-1] == 0:
        raise ValueError("reference and estimate have no samples")
    first, second = torch.broadcast_tensors(reference, estimate)
    return first, second


def _by_parts(score: Score, reference: Tensor, estimate: Tensor) -> Tensor:
    """A score in float64, on a CPU of so few signals at a time that they stay in the cache."""
    large = reference.ndim > 1 and reference.numel() > _PART and reference.device.type == "cpu"
    if large:
        pairs = zip(reference, estimate, strict=True)
        return torch.stack([_by_parts(score, one, other) for one, other in pairs])
    return score(reference.double(), estimate.double())


def _energy(x: Tensor) -> Tensor:
    return x.square().sum(-1)


def _ratio(signal: Tensor, distortion: Tensor) -> Tensor:
    """10 log10(signal / distortion), NaN without a signal."""
    return (10 * (signal / distortion).log10()).masked_fill(signal == 0, torch.nan)
