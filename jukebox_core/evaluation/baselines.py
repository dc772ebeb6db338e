"""Baselines: no separation, classical separation, the ideal mask.

All estimates are {source: [B, T]} at the scale of the sources x_i; the mixture is the sum of
alpha_i x_i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.evaluation.chunks import Chunk
from jukebox_core.evaluation.nmf import nmf
from jukebox_core.separation.mask import WIENER, RatioMask
from jukebox_core.separation.samples import Candidates

__all__ = [
    "Baseline",
    "first",
    "hpss",
    "ideal_ratio_mask",
    "mixture_as_estimate",
    "untrained_baselines",
]

Baseline: TypeAlias = Callable[[Chunk], dict[str, Tensor]]
"""Makes estimates {source: [T]} of a chunk, at the scale of the sources."""


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
    mask: RatioMask = WIENER,
) -> dict[str, Tensor]:
    """The mask made from the true sources: the ceiling of masking.

    Args:
        mixture: [B, T].
        sources: {source: [B, T]}, the truth.
        alpha: {source: gain in the mixture}.
        mask: by default the same for all systems, whatever mask they use; another power has
            another ceiling.
    """
    truth = Candidates({name: x.unsqueeze(1) for name, x in sources.items()}, alpha)
    return mask(mixture, truth, mixture.new_ones(len(mixture), 1))


def untrained_baselines(alpha: Mapping[str, float]) -> dict[str, Baseline]:
    """{name: baseline} that need no training: `mixture`, `hpss`, `nmf`, `irm`.

    hpss and nmf need drums and one more source; they are missing for other sources.
    """

    def blind(separate: Callable[..., dict[str, Tensor]]) -> Baseline:
        return lambda chunk: first(separate(chunk.mixture[None], chunk.alpha))

    def ideal(chunk: Chunk) -> dict[str, Tensor]:
        truth = {name: x[None] for name, x in chunk.sources.items()}
        return first(ideal_ratio_mask(chunk.mixture[None], truth, chunk.alpha))

    baselines: dict[str, Baseline] = {
        "mixture": lambda chunk: mixture_as_estimate(chunk.mixture, tuple(chunk.sources)),
        "irm": ideal,
    }
    if len(alpha) == 2 and "drums" in alpha:
        baselines |= {"hpss": blind(hpss), "nmf": blind(nmf)}
    return baselines


def first(stems: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first item of every batch, {source: [T]}."""
    return {name: x[0] for name, x in stems.items()}
