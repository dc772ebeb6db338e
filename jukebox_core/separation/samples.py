"""Joint samples of all sources' codes, and the interface of the samplers that draw them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from jukebox_core.prior.joint import JointPriors, Prior
from jukebox_core.separation.likelihood import Likelihood

Progress = Callable[[int, int], None]
"""Called with (steps done, total steps)."""


class JointSamples(NamedTuple):
    """N joint samples for each of B chunks: sequences of T codes per source, drawn together.

    codes: {source: [B, N, T]}. log_prior: {source: [B, N]}, log p(codes) in nats. log_likelihood:
    [B, N], the sum of the codes' pair scores and log-factors. log_weights: [B, N], normalised over
    N, if the samples are weighted (particles); None: equally probable draws. log_evidence: [B], log
    of an unbiased estimate of sum p1 p2 exp(log_likelihood) over all pairs of sequences; None: not
    estimated.
    """

    codes: dict[str, Tensor]
    log_prior: dict[str, Tensor]
    log_likelihood: Tensor
    log_weights: Tensor | None = None
    log_evidence: Tensor | None = None

    def chunk(self, b: int) -> JointSamples:
        """The samples of one chunk, B = 1."""
        at = slice(b, b + 1)
        return JointSamples(
            {name: x[at] for name, x in self.codes.items()},
            {name: x[at] for name, x in self.log_prior.items()},
            self.log_likelihood[at],
            None if self.log_weights is None else self.log_weights[at],
            None if self.log_evidence is None else self.log_evidence[at],
        )


class Candidates(NamedTuple):
    """Decoded joint samples of B mixtures.

    audio: {source: [B, N, T]}, estimates of x_i at the scale of the sources. alpha: {source: gain};
    the mixture is the sum of alpha_i x_i. samples: the codes that were decoded; None for audio of
    another origin, such as the true sources.
    """

    audio: dict[str, Tensor]
    alpha: Mapping[str, float]
    samples: JointSamples | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """B and N."""
        batch, count = next(iter(self.audio.values())).shape[:2]
        return batch, count

    def chunk(self, b: int) -> Candidates:
        """The candidates of one mixture, B = 1."""
        audio = {name: x[b : b + 1] for name, x in self.audio.items()}
        return Candidates(audio, self.alpha, self.samples and self.samples.chunk(b))

    def apart(self) -> Candidates:
        """Every candidate as the only one of a mixture: B * N mixtures of one candidate each."""
        audio = {name: x.flatten(0, 1).unsqueeze(1) for name, x in self.audio.items()}
        return Candidates(audio, self.alpha)

    def sums(self, b: int) -> Tensor:
        """The mixtures that the candidates of mixture b would make, [N, T]."""
        return torch.stack([self.alpha[name] * x[b] for name, x in self.audio.items()]).sum(0)


class Sampler(Protocol):
    """Draws joint samples from the posterior over all sources' codes."""

    @property
    def independent(self) -> bool:
        """Whether samples may be drawn in groups, one after the other."""
        ...

    def numbers(self, candidates: int) -> int:
        """The random draws at every step of a mixture that so many samples take."""
        ...

    def __call__(
        self,
        priors: Mapping[str, Prior] | JointPriors,
        likelihood: Likelihood | None,
        mixture_codes: Tensor,
        candidates: int,
        generator: torch.Generator,
        progress: Progress | None = None,
        log_factors: Mapping[str, Tensor] | None = None,
    ) -> JointSamples:
        """N samples for each row of the mixture codes [B, T]; arguments as in `SamplingTask`."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """The values that it was made with, ready for JSON."""
        ...


def join_groups(groups: list[JointSamples]) -> JointSamples:
    """Join independent samples of the same chunks that were drawn in several groups."""
    if len(groups) == 1:
        return groups[0]
    codes, log_prior = (
        {name: torch.cat([getattr(g, field)[name] for g in groups], 1) for name in groups[0].codes}
        for field in ("codes", "log_prior")
    )
    return JointSamples(codes, log_prior, torch.cat([g.log_likelihood for g in groups], 1))


def join_shifts(samples: JointSamples, parts: int) -> JointSamples:
    """Join samples [B * S, n] of S shifted versions of each chunk to S * n samples of the chunk.

    Every version gets the same share of the weights. The versions' evidences belong to different
    mixture codes, so the chunk has none.
    """
    if parts == 1:
        return samples
    weights = samples.log_weights

    def flat(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, parts)).flatten(1, 2)

    return JointSamples(
        {name: flat(x) for name, x in samples.codes.items()},
        {name: flat(x) for name, x in samples.log_prior.items()},
        flat(samples.log_likelihood),
        None if weights is None else flat(weights) - math.log(parts),
    )
