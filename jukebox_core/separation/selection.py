"""Choice among candidates without any reference.

A selection gives weights [B, N] over the joint candidates, for averaging; a pick chooses one
candidate for every source, for the raw decode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.checks import require
from jukebox_core.separation.mask import LARGEST_N_FFT
from jukebox_core.separation.protocols import Separations
from jukebox_core.vqvae.losses import magnitudes


class Candidates(NamedTuple):
    """Decoded joint candidates of B mixtures.

    audio: {source: [B, N, T]} at the sources' own scale (the mixture is the sum of alpha_i x_i).
    """

    audio: dict[str, Tensor]
    separations: Separations


class Selection(Protocol):
    """Maps candidates to weights that sum to one over N; one-hot weights are a pick."""

    def __call__(
        self, mixture: Tensor, candidates: Candidates, alpha: Mapping[str, float]
    ) -> Tensor:
        """Weights [B, N] for mixtures [B, T]."""
        ...


class Pick(Protocol):
    """Chooses a candidate for every source, not always one and the same for both."""

    def __call__(
        self, mixture: Tensor, candidates: Candidates, alpha: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Candidates {source: int64 [B]} of mixtures [B, T]."""
        ...


@dataclass(frozen=True)
class Jointly:
    """Picks for all sources the candidate of the largest weight: sources drawn together stay so."""

    selection: Selection

    def __call__(
        self, mixture: Tensor, candidates: Candidates, alpha: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """The same candidates [B] for every source."""
        best = self.selection(mixture, candidates, alpha).argmax(1)
        return dict.fromkeys(candidates.audio, best)


@dataclass(frozen=True)
class SpectralFit:
    """Picks the pair whose sum is nearest to the true mixture in magnitude spectrum.

    Both sources of a candidate were drawn together and are kept together. The weights that
    particles carry are not looked at, not even those of zero: the fit alone decides.
    """

    n_fft: int = 1024
    hop: int = 256

    def __post_init__(self) -> None:
        """Refuse sizes that make no spectrogram."""
        _check_stft(self.n_fft, self.hop)

    def __call__(
        self, mixture: Tensor, candidates: Candidates, alpha: Mapping[str, float]
    ) -> Tensor:
        """One-hot weights [B, N]."""
        stft = (self.n_fft, self.hop, self.n_fft)
        n_candidates = next(iter(candidates.audio.values())).shape[1]
        picks = []
        for b, target in enumerate(mixture):
            total = torch.stack([alpha[name] * x[b] for name, x in candidates.audio.items()]).sum(0)
            pad = (0, max(0, self.n_fft - target.shape[-1]))
            wanted = magnitudes(F.pad(target[None], pad), stft)
            distance = (magnitudes(F.pad(total, pad), stft) - wanted).square().sum((1, 2))  # [N]
            picks.append(distance.argmin())
        return F.one_hot(torch.stack(picks), n_candidates).to(mixture.dtype)


@dataclass(frozen=True)
class PosteriorMean:
    """The candidates by their weights, all alike where they carry none.

    Draws from the posterior count alike, particles by their importance: both mean the posterior's
    mean.
    """

    def __call__(
        self, mixture: Tensor, candidates: Candidates, alpha: Mapping[str, float]
    ) -> Tensor:
        """Weights [B, N].

        Raises:
            ValueError: the particles' weights are not those of these candidates.
        """
        shape = next(iter(candidates.audio.values())).shape[:2]
        log_weights = candidates.separations.log_weights
        if log_weights is None:
            return mixture.new_full(shape, 1 / shape[1])
        if log_weights.shape != shape:
            raise ValueError(
                f"log_weights are {tuple(log_weights.shape)}, the candidates {tuple(shape)}"
            )
        return log_weights.exp().to(mixture)


@dataclass(frozen=True)
class LogPosterior:
    """Picks the candidate of the highest log p1 + log p2 + log-likelihood.

    That is the log-posterior of its sequences, up to a constant: the mode among the candidates,
    which need not be near the mean. A particle's weight is another thing: this posterior over the
    density it was drawn from, so that probable sequences do not count twice.

    Candidates of different shifts of a window are given different codes of the mixture: their
    log-likelihoods, and so these sums, do not compare, and the pick leans to the shift whose codes
    are likely.
    """

    def __call__(
        self, mixture: Tensor, candidates: Candidates, alpha: Mapping[str, float]
    ) -> Tensor:
        """One-hot weights [B, N]."""
        drawn = candidates.separations
        total = torch.stack([*drawn.log_prior.values(), drawn.log_likelihood]).sum(0)  # [B, N]
        return F.one_hot(total.argmax(1), total.shape[1]).to(mixture)


@dataclass(frozen=True)
class MinimumBayesRisk:
    """Picks the candidate that is expected to be nearest to the others, by their weights.

    The distance is the squared one of the magnitude spectrograms, summed over the sources, so that
    the expectation is a distance to the mean spectrogram and a constant (Kumar and Byrne 2004).
    """

    n_fft: int = 1024
    hop: int = 256

    def __post_init__(self) -> None:
        """Refuse sizes that make no spectrogram."""
        _check_stft(self.n_fft, self.hop)

    def __call__(
        self, mixture: Tensor, candidates: Candidates, alpha: Mapping[str, float]
    ) -> Tensor:
        """One-hot weights [B, N]."""
        stft = (self.n_fft, self.hop, self.n_fft)
        weights = PosteriorMean()(mixture, candidates, alpha)
        picks = []
        for b, share in enumerate(weights):
            distance = torch.zeros_like(share)
            for x in candidates.audio.values():
                pad = (0, max(0, self.n_fft - x.shape[-1]))
                spectra = magnitudes(F.pad(x[b], pad), stft)  # [N, F, frames]
                mean = torch.einsum("n,nft->ft", share, spectra)
                distance += (spectra - mean).square().sum((1, 2))
            picks.append(distance.argmin())
        return F.one_hot(torch.stack(picks), weights.shape[1]).to(mixture)


def _check_stft(n_fft: int, hop: int) -> None:
    require("n_fft", n_fft, whole=True, at_least=2, at_most=LARGEST_N_FFT)
    require("hop", hop, whole=True, at_least=1, at_most=n_fft)
