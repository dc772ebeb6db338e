"""Rows that give a score meaning: no separation, a classical one, the best that a mask can do.

All estimates are {source: [B, T]} at the scale of the sources x_i (the mixture is the sum of
alpha_i x_i), like those of the systems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.separation.mask import RatioMask

__all__ = ["hpss", "ideal_ratio_mask", "mixture_as_estimate"]


def mixture_as_estimate(mixture: Tensor, sources: Sequence[str]) -> dict[str, Tensor]:
    """The mixture itself as the estimate of every source: what doing nothing scores."""
    return {name: mixture for name in sources}


def hpss(
    mixture: Tensor, alpha: Mapping[str, float], percussive: str = "drums"
) -> dict[str, Tensor]:
    """Harmonic-percussive separation by median filters (Fitzgerald 2010), librosa's defaults.

    Args:
        mixture: [B, T].
        alpha: {source: gain in the mixture} of two sources.
        percussive: the source that gets the percussive part; the other one gets the harmonic part.

    Raises:
        ValueError: there are not two sources, or the percussive one is not among them.
    """
    if len(alpha) != 2 or percussive not in alpha:
        raise ValueError(f"HPSS needs {percussive} and one more source, got {', '.join(alpha)}")
    import librosa  # takes seconds to import

    (other,) = (name for name in alpha if name != percussive)
    length = mixture.shape[-1]
    # librosa gives NaN for less than a window of 2048 samples
    padded = F.pad(mixture.cpu(), (0, max(0, 4096 - length)))
    parts = [librosa.effects.hpss(x) for x in padded.numpy()]  # (harmonic, percussive) each
    stems = {
        name: torch.stack([torch.from_numpy(part[i][:length]) for part in parts])
        for i, name in enumerate((other, percussive))
    }
    return {name: stems[name] / gain for name, gain in alpha.items()}


def ideal_ratio_mask(
    mixture: Tensor,
    sources: Mapping[str, Tensor],
    alpha: Mapping[str, float],
    mask: RatioMask | None = None,
) -> dict[str, Tensor]:
    """The refinement with the truth in place of candidates: the ceiling of masking.

    Args:
        mixture: [B, T].
        sources: {source: [B, T]}, the truth.
        alpha: {source: gain in the mixture}.
        mask: default `RatioMask()`: power 2, STFT 2048/512, not calibrated, whatever the systems
            use. Another power has another ceiling.
    """
    truth = {name: x.unsqueeze(1) for name, x in sources.items()}
    weights = mixture.new_ones(len(mixture), 1)
    return (mask or RatioMask())(mixture, truth, weights, alpha)
