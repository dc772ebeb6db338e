"""Weights of the candidates, and selection of one candidate, without any reference.

A weighting gives weights [B, N] over the joint candidates, for the mask; a selection takes one
candidate per source, for the raw decode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.audio.spectra import magnitudes
from jukebox_core.checks import require
from jukebox_core.separation.mask import LARGEST_N_FFT
from jukebox_core.separation.rejection import RejectionMarginals, RejectionPair, RejectionWeights
from jukebox_core.separation.samples import Candidates


class Weighting(Protocol):
    """Maps candidates to weights that sum to one over N; one-hot weights take one candidate."""

    def __call__(self, mixture: Tensor, candidates: Candidates) -> Tensor:
        """Weights [B, N] for mixtures [B, T]."""
        ...


class Selection(Protocol):
    """Takes a candidate for every source, not always the same for both."""

    def __call__(self, mixture: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """Candidates {source: int64 [B]} for mixtures [B, T]."""
        ...


@dataclass(frozen=True)
class Jointly:
    """Takes the candidate of the largest weight for all sources, which were drawn together."""

    weighting: Weighting

    def __call__(self, mixture: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """The same candidates [B] for every source."""
        return dict.fromkeys(candidates.audio, self.weighting(mixture, candidates).argmax(1))


@dataclass(frozen=True)
class SpectralFit:
    """Takes the candidate whose sum is nearest to the mixture in magnitude spectrum.

    Both sources of a candidate were drawn together and stay together. The particles' own weights
    are ignored, even if they are zero: only the fit decides.
    """

    n_fft: int = 1024
    hop: int = 256

    def __post_init__(self) -> None:
        """Refuse sizes that make no spectrogram."""
        _check_stft(self.n_fft, self.hop)

    def __call__(self, mixture: Tensor, candidates: Candidates) -> Tensor:
        """One-hot weights [B, N]."""
        best = []
        for b, target in enumerate(mixture):
            spectrum = _spectra(target[None], self.n_fft, self.hop)
            spectra = _spectra(candidates.sums(b), self.n_fft, self.hop)
            best.append((spectra - spectrum).square().sum((1, 2)).argmin())
        return F.one_hot(torch.stack(best), candidates.shape[1]).to(mixture.dtype)


@dataclass(frozen=True)
class PosteriorMean:
    """Weights the candidates by their posterior probability.

    Independent draws count equally, particles by their importance weights: both estimate the mean
    of the posterior.
    """

    def __call__(self, mixture: Tensor, candidates: Candidates) -> Tensor:
        """Weights [B, N].

        Raises:
            ValueError: the particles' weights have another shape than the candidates.
        """
        samples, shape = candidates.samples, candidates.shape
        if samples is None or samples.log_weights is None:
            return mixture.new_full(shape, 1 / shape[1])
        if samples.log_weights.shape != shape:
            raise ValueError(
                f"log_weights are {tuple(samples.log_weights.shape)}, the candidates {shape}"
            )
        return samples.log_weights.exp().to(mixture)


@dataclass(frozen=True)
class LogPosterior:
    """Takes the candidate of the highest log p1 + log p2 + log-likelihood.

    That is the log-posterior of its sequences, up to a constant: the mode among the candidates,
    which need not be near the mean. A particle's weight is something else: this posterior divided
    by the density it was drawn from, so that probable sequences do not count twice.

    Candidates of different shifts of a window see different mixture codes. Their log-likelihoods,
    and so these sums, are not comparable: the selection favours the shift whose codes are likely.
    """

    def __call__(self, mixture: Tensor, candidates: Candidates) -> Tensor:
        """One-hot weights [B, N]."""
        samples = candidates.samples
        assert samples is not None
        terms = [*samples.log_prior.values(), samples.log_likelihood]
        total = torch.stack(terms).sum(0)  # [B, N]
        return F.one_hot(total.argmax(1), total.shape[1]).to(mixture)


@dataclass(frozen=True)
class MinimumBayesRisk:
    """Takes the candidate with the smallest expected distance to the others, by their weights.

    The distance is the squared one of the magnitude spectrograms, summed over the sources, so that
    the expectation is a distance to the mean spectrogram and a constant (Kumar and Byrne 2004).
    """

    n_fft: int = 1024
    hop: int = 256

    def __post_init__(self) -> None:
        """Refuse sizes that make no spectrogram."""
        _check_stft(self.n_fft, self.hop)

    def __call__(self, mixture: Tensor, candidates: Candidates) -> Tensor:
        """One-hot weights [B, N]."""
        weights = PosteriorMean()(mixture, candidates)
        best = []
        for b, share in enumerate(weights):
            distance = torch.zeros_like(share)
            for x in candidates.audio.values():
                spectra = _spectra(x[b], self.n_fft, self.hop)  # [N, F, frames]
                mean = torch.einsum("n,nft->ft", share, spectra)
                distance += (spectra - mean).square().sum((1, 2))
            best.append(distance.argmin())
        return F.one_hot(torch.stack(best), weights.shape[1]).to(mixture)


def _spectra(audio: Tensor, n_fft: int, hop: int) -> Tensor:
    """Magnitudes [N, F, frames] of [N, T], with silence behind audio shorter than a window."""
    missing = max(0, n_fft - audio.shape[-1])
    return magnitudes(F.pad(audio, (0, missing)), (n_fft, hop, n_fft))


def _check_stft(n_fft: int, hop: int) -> None:
    require("n_fft", n_fft, whole=True, at_least=2, at_most=LARGEST_N_FFT)
    require("hop", hop, whole=True, at_least=1, at_most=n_fft)


SelectionName = Literal[
    "spectral-fit",
    "log-posterior",
    "bayes-risk",
    "rejection",
    "rejection-pair",
    "rejection-marginals",
]
WeightsName = Literal["posterior-mean", "spectral-fit", "log-posterior", "bayes-risk", "rejection"]

WEIGHTS: Mapping[WeightsName, Weighting] = {
    "posterior-mean": PosteriorMean(),
    "spectral-fit": SpectralFit(),
    "log-posterior": LogPosterior(),
    "bayes-risk": MinimumBayesRisk(),
    "rejection": RejectionWeights(),
}
"""Weights of the candidates for the mask; all but the first take one candidate."""
SELECTIONS: Mapping[SelectionName, Selection] = {
    "spectral-fit": Jointly(SpectralFit()),
    "log-posterior": Jointly(LogPosterior()),
    "bayes-risk": Jointly(MinimumBayesRisk()),
    "rejection": Jointly(RejectionWeights()),
    "rejection-pair": RejectionPair(),
    "rejection-marginals": RejectionMarginals(),
}
"""Selections for the raw decode; the last two take a candidate per source, the others one pair."""
