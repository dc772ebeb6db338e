"""Upstream's "rejection sampling": a posterior over all N x N pairs of decoded candidates.

It separates the sources of a candidate, which were drawn together, and compares waveforms; the
published scores do not use it. Upstream compares with the codec's round trip of the mixture; here
the true mixture is the default. For comparison and parity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.separation.samples import Candidates


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
        mixture: [T], what the pairs are compared with; upstream decodes it from its codes.
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


def _posteriors(mixture: Tensor, candidates: Candidates) -> Iterator[PairPosterior]:
    """The posterior of every chunk, against mixtures [B, T].

    Raises:
        ValueError: there are not two sources.
    """
    if len(candidates.audio) != 2:
        raise ValueError(
            f"upstream's selection is over pairs of two sources, got {', '.join(candidates.audio)}"
        )
    one, two = candidates.audio
    alpha, samples = candidates.alpha, candidates.samples
    assert samples is not None
    for b, target in enumerate(mixture):
        first, second = candidates.audio[one][b], candidates.audio[two][b]
        yield pair_posterior(
            (samples.log_prior[one][b].cpu(), samples.log_prior[two][b].cpu()),
            (first, second),
            target.to(first.device),
            (alpha[one], alpha[two]),
            samples.codes[one].shape[-1],
        )


@dataclass(frozen=True)
class RejectionWeights:
    """Takes the most probable of the pairs that were drawn together."""

    def __call__(self, mixture: Tensor, candidates: Candidates) -> Tensor:
        """One-hot weights [B, N] for mixtures [B, T]."""
        posteriors = _posteriors(mixture, candidates)
        best = torch.stack([each.posterior.diagonal().argmax() for each in posteriors])
        return F.one_hot(best, candidates.shape[1]).to(mixture)


@dataclass(frozen=True)
class RejectionPair:
    """Upstream's own selection: the most probable of all N x N pairs, drawn together or not.

    target: makes what pairs are compared with from the mixtures [B, T]; None: the mixtures
        themselves. Upstream takes the codec's round trip.
    """

    target: Callable[[Tensor], Tensor] | None = None

    def __call__(self, mixture: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """A candidate per source, {source: [B]}."""
        target = mixture if self.target is None else self.target(mixture)
        best = [each.best for each in _posteriors(target, candidates)]
        return dict(zip(candidates.audio, torch.tensor(best).T, strict=True))


@dataclass(frozen=True)
class RejectionMarginals:
    """Upstream's other selection: per source the candidate of the largest marginal posterior."""

    def __call__(self, mixture: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """A candidate per source, {source: [B]}."""
        marginals = [each.marginals() for each in _posteriors(mixture, candidates)]
        best = [torch.stack([m.argmax() for m in each]) for each in zip(*marginals, strict=True)]
        return dict(zip(candidates.audio, best, strict=True))
