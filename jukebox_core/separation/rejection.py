"""The originals' "rejection sampling": a posterior over all N x N pairs of decoded candidates.

It decouples the sources of a candidate, which were drawn together, and compares waveforms; the
published scores do not use it. The originals compare with their codec's round trip of the mixture,
here the true mixture is the default. For comparison and parity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.separation.selection import Candidates

__all__ = [
    "PairPosterior",
    "RejectionMarginals",
    "RejectionPair",
    "RejectionSelection",
    "pair_posterior",
]


class PairPosterior(NamedTuple):
    """posterior: [N, N], float64, first source on rows. variance: sigma_r^2 of the likelihood."""

    posterior: Tensor
    variance: float

    @property
    def best(self) -> tuple[int, int]:
        """The most probable pair."""
        first, second = divmod(int(self.posterior.argmax()), self.posterior.shape[1])
        return first, second

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Posteriors of the first source's candidates and of the second's, [N] each."""
        return self.posterior.sum(1), self.posterior.sum(0)


def pair_posterior(
    log_prior: tuple[Tensor, Tensor],
    audio: tuple[Tensor, Tensor],
    mixture: Tensor,
    alpha: tuple[float, float],
    steps: int,
) -> PairPosterior:
    """Softmax over pairs of prior - |a0 x_i + a1 x_j - y|^2 / (2 sigma^2).

    prior = (log p1_i + log p2_j) / steps, and sigma^2 = -mean(|...|^2) / (2 mean(prior)), so that
    both terms have the same mean.

    Args:
        log_prior: log p of the candidates' codes, [N] per source.
        audio: their waveforms, [N, T] per source.
        mixture: [T], what the pairs are compared with; the originals decode it from its codes.
        alpha: gains of the sources in the mixture.
        steps: codes per candidate.

    Raises:
        ValueError: the variance is not positive: all pairs fit exactly, or all priors are certain.
    """
    first, second = (log_p.double() for log_p in log_prior)
    prior = (first.unsqueeze(1) + second) / steps  # [N, N]
    rest = alpha[0] * audio[0].double() - mixture.double()
    other = alpha[1] * audio[1].double()
    squared = (
        rest.square().sum(1, keepdim=True) + 2 * rest @ other.T + other.square().sum(1)
    ).clamp_min(0)  # [N, N]
    variance = -(squared.mean() / (2 * prior.mean())).item()
    if not variance > 0:
        raise ValueError(f"the pairs' mean distance and prior give a variance of {variance}")
    posterior = (prior - squared / (2 * variance)).flatten().softmax(0)
    return PairPosterior(posterior.view_as(prior), variance)


def _posteriors(
    mixture: Tensor, candidates: Candidates, alpha: Mapping[str, float]
) -> Iterator[PairPosterior]:
    """Of every chunk, against mixtures [B, T]."""
    names = tuple(candidates.audio)
    drawn = candidates.separations
    for b, target in enumerate(mixture):
        log_prior = [drawn.log_prior[name][b].cpu() for name in names]
        audio = [candidates.audio[name][b] for name in names]
        yield pair_posterior(
            (log_prior[0], log_prior[1]),
            (audio[0], audio[1]),
            target.to(audio[0].device),
            (alpha[names[0]], alpha[names[1]]),
            drawn.codes[names[0]].shape[-1],
        )


@dataclass(frozen=True)
class RejectionSelection:
    """Picks by the pair posterior among the pairs that were drawn together."""

    def __call__(
        self, mixture: Tensor, candidates: Candidates, alpha: Mapping[str, float]
    ) -> Tensor:
        """One-hot weights [B, N] for mixtures [B, T]."""
        found = _posteriors(mixture, candidates, alpha)
        picks = torch.stack([each.posterior.diagonal().argmax() for each in found])
        return F.one_hot(picks, next(iter(candidates.audio.values())).shape[1]).to(mixture)


@dataclass(frozen=True)
class RejectionPair:
    """The originals' own choice: the most probable of all N x N pairs, drawn together or not.

    compared: what pairs are compared with, made of the mixtures [B, T]; None: the mixtures. The
        originals': the codec's round trip.
    """

    compared: Callable[[Tensor], Tensor] | None = None

    def __call__(
        self, mixture: Tensor, candidates: Candidates, alpha: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """A pick per source, {source: [B]}."""
        target = mixture if self.compared is None else self.compared(mixture)
        best = [each.best for each in _posteriors(target, candidates, alpha)]
        return dict(zip(candidates.audio, torch.tensor(best).T, strict=True))


@dataclass(frozen=True)
class RejectionMarginals:
    """The originals' other choice: per source the most probable candidate, whoever it is with."""

    def __call__(
        self, mixture: Tensor, candidates: Candidates, alpha: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """A pick per source, {source: [B]}."""
        found = [each.marginals() for each in _posteriors(mixture, candidates, alpha)]
        picks = [torch.stack([m.argmax() for m in each]) for each in zip(*found, strict=True)]
        return dict(zip(candidates.audio, picks, strict=True))
