"""Blind separation by non-negative matrix factorisation: a baseline of every mixture on its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from jukebox_core.audio.spectra import stft
from jukebox_core.separation.mask import WIENER

__all__ = ["nmf"]

COMPONENTS = 20
"""Chosen, as the divergence and the rule of sharing, on the demo's validation songs."""
ITERATIONS = 200


def nmf(
    mixture: Tensor, alpha: Mapping[str, float], percussive: str = "drums", seed: int = 0
) -> dict[str, Tensor]:
    """Factorise the mixture's magnitudes, share the components out, mask the mixture.

    The magnitudes |Y| of one mixture become W H with the least Kullback-Leibler divergence
    (Virtanen 2007; multiplicative updates of Lee and Seung 2001). Of a component's magnitude the
    part p lies under the percussive mask of the median filters (Fitzgerald 2010, librosa's
    defaults): p^2 : (1 - p)^2 of it is the percussive source's and the other one's, a Wiener filter
    as that mask is. The sources' sums of components become a ratio mask of power 2, so that the
    stems sum to the mixture.

    Args:
        mixture: [B, T].
        alpha: {source: gain in the mixture} of two sources.
        percussive: the source that gets the percussive components.
        seed: of the factors' random start, the same for every mixture of the batch.

    Returns:
        Estimates {source: [B, T]} at the scale of the sources.

    Raises:
        ValueError: there are not two sources, or the percussive one is not among them.
    """
    if len(alpha) != 2 or percussive not in alpha:
        raise ValueError(f"NMF needs {percussive} and one more source, got {', '.join(alpha)}")
    (other,) = (name for name in alpha if name != percussive)
    ratio = WIENER
    magnitudes = stft(mixture.cpu(), ratio.n_fft, ratio.hop).abs().numpy()  # [B, F, frames]
    parts = [_parts(x, seed) for x in magnitudes]  # (percussive, other) each
    powers = {
        name: torch.stack([torch.from_numpy(part[i]) for part in parts]).square()
        for i, name in enumerate((percussive, other))
    }
    stems = ratio.apply(mixture.cpu(), ratio.masks(powers))
    return {name: stems[name] / gain for name, gain in alpha.items()}


def _parts(magnitudes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
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
        random_state=seed,
    )
    _, mask = librosa.decompose.hpss(magnitudes, mask=True)
    percussive = np.einsum("fk,kt,ft->k", w, h, mask) ** 2
    other = np.einsum("fk,kt,ft->k", w, h, 1 - mask) ** 2
    share = percussive / np.maximum(percussive + other, 1e-30)
    return (w * share) @ h, (w * (1 - share)) @ h
