"""Ancestral sampling of joint candidates (LASS, algorithm 1; LQ-VAE, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from jukebox_core.prior.joint import JointPriors, Prior
from jukebox_core.separation.chain import Drawn
from jukebox_core.separation.likelihood import Likelihood
from jukebox_core.separation.samples import JointSamples, Progress
from jukebox_core.separation.sampling_task import SamplingTask, check_temperature
from jukebox_core.separation.truncation import Truncation, draw_truncated


@dataclass(frozen=True)
class AncestralSampler:
    """Draws every step's codes from the exact one-step posterior.

    Random numbers are drawn in the order of the chunks: the same chunks give the same candidates,
    however they are batched.

    temperature: divides the priors' logits; 1 samples the posterior itself.
    top_k: draw among the k most probable pairs of a step's joint posterior; 0: among all.
    top_p: draw among the fewest most probable pairs whose mass reaches p; 1: among all. With both,
        among the fewer. Truncated draws wait for the device at every step.
    """

    independent: ClassVar[bool] = True

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        check_temperature("temperature", self.temperature)
        Truncation(self.top_k, self.top_p)

    def numbers(self, candidates: int) -> int:
        """One draw for each sample."""
        return candidates

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
        """N samples for each of B mixtures; arguments and errors as in `SamplingTask`."""
        task = SamplingTask(priors, likelihood, mixture_codes, candidates, log_factors)
        if Truncation(self.top_k, self.top_p).active:
            task.require_pairs("top_k and top_p choose among pairs of codes")
        uniform = task.uniform(generator, self.numbers(candidates))
        return task.draw(lambda exact: self._draw(task, uniform, progress, exact))

    def _draw(
        self, task: SamplingTask, uniform: Tensor, progress: Progress | None, exact: bool
    ) -> JointSamples | None:
        """Draw all steps; None if a draw that is not exact may be wrong."""
        steps, batch, candidates, device = task.steps, task.batch, task.candidates, task.device
        cache, last = task.new_cache(), None
        sources = len(task.joint.names)
        codes = torch.empty(sources, steps, batch, candidates, dtype=torch.int64, device=device)
        log_prior = torch.zeros(sources, batch, candidates, device=device)
        log_likelihood = torch.zeros(batch, candidates, device=device)
        lost = torch.zeros((), dtype=torch.bool, device=device)
        for step in range(steps):
            law = task.step(step, last, cache, self.temperature)
            drawn = self._codes(task, step, law.log_p, uniform[step], exact)
            if drawn.lost is not None:
                lost |= drawn.lost.any()
            codes[:, step] = drawn.codes
            log_prior += law.log_prior_of(codes[:, step])
            log_likelihood += law.log_likelihood_of(codes[:, step], drawn.score)
            last = codes[:, step].flatten(1)
            if progress is not None:
                progress(step + 1, steps)
        if bool(lost):
            return None
        codes = codes.permute(0, 2, 3, 1).contiguous()  # [S, B, N, T]
        return JointSamples(
            dict(zip(task.joint.names, codes, strict=True)),
            dict(zip(task.joint.names, log_prior, strict=True)),
            log_likelihood,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The name and the fields."""
        return {"name": "AncestralSampler", **asdict(self)}

    def _codes(
        self, task: SamplingTask, step: int, log_p: Tensor, uniform: Tensor, exact: bool
    ) -> Drawn:
        """The codes of every source, from log-probabilities [S, B, N, K]."""
        truncation = Truncation(self.top_k, self.top_p)
        if not truncation.active:
            return task.codes(step, log_p, uniform, exact)
        tables = task.tables.at(step)
        pair = draw_truncated(tables, log_p[0], log_p[1], uniform, truncation)
        return Drawn(torch.stack([pair.first, pair.second]), *pair[2:])
