"""Sequential Monte Carlo: weighted draws from the posterior over the sources' whole sequences.

Ancestral sampling draws every step from its exact one-step posterior, but never takes back a past
that explains what follows badly. The posterior over whole sequences,

    p(z1, z2 | m) = p1(z1) p2(z2) exp(sum_t scores(m_t)[z1_t, z2_t] + f1_t[z1_t] + f2_t[z2_t]) / Z

(f_i the log-factors of a source likelihood, if there is one; more sources: `separation.chain`)
differs from its draws by the product of the steps' normalisers. Particles carry that product as
their weight, and those of little weight are replaced (Doucet, Godsill and Andrieu 2000, the
locally optimal proposal; Pitt and Shephard 1999, full adaptation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from jukebox_core.checks import require
from jukebox_core.prior.joint import JointPriors, Prior
from jukebox_core.separation.chain import Drawn
from jukebox_core.separation.likelihood import Likelihood
from jukebox_core.separation.samples import JointSamples, Progress
from jukebox_core.separation.sampling_task import SamplingTask, Step, check_temperature


@dataclass(frozen=True)
class ParticleSampler:
    """Weighted particles, drawn from the exact one-step posterior and resampled on the way.

    A step's normaliser sum p1 p2 exp(scores) is known before its codes are drawn: it is the weight
    the step adds, and resampling comes before the draw, so that copies of a particle draw apart.
    The last step is not resampled: weighted particles say more than copies.

    If every particle of a chunk has become impossible, it continues with equal weights, and its
    log_evidence is -inf.

    temperature: divides the priors' logits. Other than 1, the target is the posterior under the
        priors whose every step is tempered and normalised, and so is the evidence.
    threshold: a chunk is resampled when its effective sample size falls under this share of N; 0:
        never.
    """

    independent: ClassVar[bool] = False

    temperature: float = 1.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        check_temperature("temperature", self.temperature)
        require("threshold", self.threshold, at_least=0, at_most=1, hint="a share of N")

    def numbers(self, candidates: int) -> int:
        """One draw for each particle; the last one of a step is for resampling."""
        return candidates + (self.threshold > 0)

    @torch.no_grad()
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
        """N weighted particles of every mixture, and an estimate of the mixtures' evidence.

        As in ancestral sampling, the same chunks give the same particles, however they are batched;
        with threshold 0 the particles equal the candidates of that sampler. Arguments and errors as
        in `SamplingTask`.
        """
        task = SamplingTask(priors, likelihood, mixture_codes, candidates, log_factors)
        uniform = task.uniform(generator, self.numbers(candidates))
        return task.draw(lambda exact: self._draw(task, uniform, progress, exact))

    def _draw(
        self, task: SamplingTask, uniform: Tensor, progress: Progress | None, exact: bool
    ) -> JointSamples | None:
        """Draw all steps; None if a draw that is not exact may be wrong."""
        cache, last = task.new_cache(), None
        particles = _Particles(task, uniform.dtype)
        lost = torch.zeros((), dtype=torch.bool, device=task.device)
        for step in range(task.steps):
            law = task.step(step, last, cache, self.temperature)
            numbers = uniform[step, :, : task.candidates]
            drawn = task.codes(step, law.log_p, numbers, exact)
            lost |= _any_lost(drawn)
            particles.weigh(law.total(drawn.log_total))
            if self.threshold > 0 and step + 1 < task.steps:
                parents = particles.resample(step, self.threshold, uniform[step, :, -1, 0])
                if parents is not None:
                    cache.reorder((parents + particles.offsets).flatten())
                    law = law.reorder(parents)
                    drawn = task.codes(step, law.log_p, numbers, exact)
                    lost |= _any_lost(drawn)
            last = particles.extend(step, law, drawn)
            if progress is not None:
                progress(step + 1, task.steps)
        return None if bool(lost) else particles.samples(task.joint.names)

    @property
    def settings(self) -> dict[str, Any]:
        """The name and the fields."""
        return {"name": "ParticleSampler", **asdict(self)}


def _any_lost(drawn: Drawn) -> Tensor:
    """Whether any draw may be wrong, [], on the device."""
    return drawn.codes.new_zeros((), dtype=torch.bool) if drawn.lost is None else drawn.lost.any()


class _Particles:
    """N particles of B chunks, with their past.

    Codes and parents are kept as they were drawn; a particle's codes are put together at the end,
    backwards along its line of parents.
    """

    def __init__(self, task: SamplingTask, dtype: torch.dtype):
        steps, batch, count, device = task.steps, task.batch, task.candidates, task.device
        self.own = torch.arange(count, device=device).expand(batch, count)  # [B, N]
        self.offsets = torch.arange(batch, device=device).unsqueeze(1) * count
        self.log_weights = torch.full(
            (batch, count), -math.log(count), dtype=dtype, device=device
        )  # normalised
        self.log_evidence = torch.zeros(batch, dtype=dtype, device=device)
        sources = len(task.joint.names)
        self.log_prior = torch.zeros(sources, batch, count, device=device)
        self.log_likelihood = torch.zeros(batch, count, device=device)
        shape = (sources, steps, batch, count)
        self.codes = torch.empty(shape, dtype=torch.int64, device=device)
        self.parents: dict[int, Tensor] = {}  # {step: [B, N]}, where anything was resampled

    def weigh(self, log_total: Tensor) -> None:
        """Multiply the weights by a step's normalisers [B, N], whose mean is its evidence."""
        weights = self.log_weights + log_total
        mass = weights.logsumexp(1, keepdim=True)
        equal = torch.full_like(weights, -math.log(weights.shape[1]))
        self.log_weights = torch.where(mass > -math.inf, weights - mass, equal)
        self.log_evidence = self.log_evidence + mass.squeeze(1)

    def resample(self, step: int, threshold: float, uniform: Tensor) -> Tensor | None:
        """The parents [B, N] after resampling the chunks that need it; None: nothing moved.

        Asking waits for the device; moving caches that need not move would take longer.
        """
        count = self.log_weights.shape[1]
        size = 1 / (2 * self.log_weights).exp().sum(1, keepdim=True)  # [B, 1], effective
        needed = size < threshold * count
        parents = torch.where(needed, systematic_parents(self.log_weights, uniform), self.own)
        equal = torch.full_like(self.log_weights, -math.log(count))
        self.log_weights = torch.where(needed, equal, self.log_weights)
        if torch.equal(parents, self.own):
            return None
        self.log_prior = self.log_prior.gather(2, parents.expand_as(self.log_prior))
        self.log_likelihood = self.log_likelihood.gather(1, parents)
        self.parents[step] = parents
        return parents

    def extend(self, step: int, law: Step, drawn: Drawn) -> Tensor:
        """Add the codes drawn under the step's distributions; return them, [S, B * N]."""
        codes = self.codes[:, step]
        codes[:] = drawn.codes
        self.log_prior = self.log_prior + law.log_prior_of(codes)
        self.log_likelihood = self.log_likelihood + law.log_likelihood_of(codes, drawn.score)
        return codes.flatten(1)

    def samples(self, names: tuple[str, ...]) -> JointSamples:
        """The particles with their whole past."""
        line, codes = self.own, torch.empty_like(self.codes)
        for step in reversed(range(self.codes.shape[1])):
            drawn = self.codes[:, step]
            codes[:, step] = drawn.gather(2, line.expand_as(drawn))
            if step in self.parents:
                line = self.parents[step].gather(1, line)
        codes = codes.permute(0, 2, 3, 1).contiguous()  # [S, B, N, T]
        return JointSamples(
            dict(zip(names, codes, strict=True)),
            dict(zip(names, self.log_prior, strict=True)),
            self.log_likelihood,
            self.log_weights,
            self.log_evidence,
        )


def systematic_parents(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Parents [B, N] of systematically resampled particles; survivors keep their places.

    A particle survives as often as points (i + u) / N, i < N, fall into its share of the cumulated
    weights. Copies beyond the first fill the places of those that do not go on, in order.

    Args:
        log_weights: [B, N], normalised.
        uniform: [B], in [0, 1).
    """
    count = log_weights.shape[1]
    cumulated = log_weights.exp().cumsum(1)
    # Over the last one itself: trailing weights of zero get nothing, whatever the rounding.
    places = cumulated / cumulated[:, -1:] * count
    points = (places - uniform.unsqueeze(1)).ceil().long()  # up to and in each share
    points = points.masked_fill(places >= count, count)  # where rounding would lose the last point
    copies = points.diff(dim=1, prepend=torch.zeros_like(points[:, :1]))
    vacant = copies == 0
    rank = (vacant.cumsum(1) - 1).clamp_min(0)
    surplus = (copies - 1).clamp_min(0).cumsum(1)
    filled = torch.searchsorted(surplus, rank, right=True).clamp(max=count - 1)
    return torch.where(vacant, filled, torch.arange(count, device=log_weights.device))
