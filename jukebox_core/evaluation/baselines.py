"""Baselines: no separation, classical separation, the ideal mask.

All estimates are {source: [B, T]} at the scale of the sources x_i; the mixture is the sum of
alpha_i x_i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.audio.spectra import stft
from jukebox_core.evaluation.chunks import Chunk
from jukebox_core.separation.mask import WIENER
from jukebox_core.separation.samples import Candidates

COMPONENTS = 20
"""Components of `nmf`, chosen like its divergence on the demo's validation songs."""
ITERATIONS = 200

Baseline: TypeAlias = Callable[[Chunk], dict[str, Tensor]]
"""Makes estimates {source: [T]} of a chunk, at the scale of the sources."""


def hpss(mixture: Tensor, alpha: Mapping[str, float]) -> dict[str, Tensor]:
    """Harmonic-percussive separation by median filters (Fitzgerald 2010), librosa's defaults.

    Args:
        mixture: [B, T].
        alpha: {source: gain in the mixture} of two sources. The drums get the percussive part, the
            other one gets the harmonic part.

    Raises:
        ValueError: there are not two sources, or no drums among them.
    """
    names = (_other("HPSS", alpha), "drums")
    import librosa  # takes seconds to import

    length = mixture.shape[-1]
    # librosa gives NaN for less than a window of 2048 samples
    padded = F.pad(mixture.cpu(), (0, max(0, 4096 - length)))
    parts = np.stack([librosa.effects.hpss(x) for x in padded.numpy()], 1)  # [2, B, T]
    stems = dict(zip(names, torch.from_numpy(parts[..., :length]), strict=True))
    return {name: stems[name] / gain for name, gain in alpha.items()}


def nmf(mixture: Tensor, alpha: Mapping[str, float]) -> dict[str, Tensor]:
    """Factorise the mixture's magnitudes, share the components out, mask the mixture.

    The magnitudes |Y| of one mixture become W H with the least Kullback-Leibler divergence
    (Virtanen 2007; multiplicative updates of Lee and Seung 2001). Of a component's magnitude the
    part p lies under the percussive mask of the median filters (Fitzgerald 2010, librosa's
    defaults): p^2 : (1 - p)^2 of it is the drums' and the other source's, a Wiener filter
    as that mask is. The sources' sums of components become a ratio mask of power 2, so that the
    stems sum to the mixture.

    Args:
        mixture: [B, T].
        alpha: {source: gain in the mixture} of two sources, one of them drums.

    Returns:
        Estimates {source: [B, T]} at the scale of the sources.

    Raises:
        ValueError: there are not two sources, or no drums among them.
    """
    names = ("drums", _other("NMF", alpha))
    mixture = mixture.cpu()
    magnitudes = stft(mixture, WIENER.n_fft, WIENER.hop).abs().numpy()  # [B, F, frames]
    parts = torch.from_numpy(np.stack([_parts(x) for x in magnitudes], 1))
    powers = dict(zip(names, parts.square(), strict=True))
    stems = WIENER.apply(mixture, WIENER.masks(powers))
    return {name: stems[name] / gain for name, gain in alpha.items()}


def _parts(magnitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The percussive and the other sum of components, [F, frames] each."""
    import librosa  # takes seconds to import

    scale = max(float(magnitudes.mean()), 1e-12)
    w, h = librosa.decompose.decompose(
        magnitudes / scale,
        n_components=COMPONENTS,
        init="random",
        solver="mu",
        beta_loss="kullback-leibler",
        max_iter=ITERATIONS,
        tol=0.0,  # always so many iterations
        random_state=0,
    )
    _, mask = librosa.decompose.hpss(magnitudes, mask=True)
    percussive = np.einsum("fk,kt,ft->k", w, h, mask) ** 2
    other = np.einsum("fk,kt,ft->k", w, h, 1 - mask) ** 2
    share = percussive / np.maximum(percussive + other, 1e-30)
    return (w * share) @ h, (w * (1 - share)) @ h


def _other(method: str, alpha: Mapping[str, float]) -> str:
    """The source beside the drums."""
    if len(alpha) != 2 or "drums" not in alpha:
        raise ValueError(f"{method} is for drums and one other source, got {', '.join(alpha)}")
    return next(name for name in alpha if name != "drums")


def ideal_ratio_mask(
    mixture: Tensor, sources: Mapping[str, Tensor], alpha: Mapping[str, float]
) -> dict[str, Tensor]:
    """The Wiener mask made from the true sources: the ceiling of masking, the same for all systems.

    Args:
        mixture: [B, T].
        sources: {source: [B, T]}, the truth.
        alpha: {source: gain in the mixture}.
    """
    truth = Candidates({name: x.unsqueeze(1) for name, x in sources.items()}, alpha)
    return WIENER(mixture, truth, mixture.new_ones(len(mixture), 1))


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
        "mixture": lambda chunk: dict.fromkeys(chunk.sources, chunk.mixture),
        "irm": ideal,
    }
    if len(alpha) == 2 and "drums" in alpha:
        baselines |= {"hpss": blind(hpss), "nmf": blind(nmf)}
    return baselines


def first(stems: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first item of every batch, {source: [T]}."""
    return {name: x[0] for name, x in stems.items()}
