"""Ancestral sampling of joint candidates (LASS, algorithm 1; LQ-VAE, section 3.4)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jukebox_core.separation.posterior import DenseTable, Draw, draw_sparse
from jukebox_core.separation.protocols import Likelihood, Prior, Separations

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True)
class AncestralSampler:
    """Draws every step's pair of codes from the exact one-step posterior.

    temperature: divides the priors' logits; 1 samples the posterior itself.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a temperature without meaning."""
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, it must be positive")

    @torch.no_grad()
    def __call__(
        self,
        priors: Mapping[str, Prior],
        likelihood: Likelihood,
        mixture_codes: Tensor,
        candidates: int,
        generator: torch.Generator,
        progress: Progress | None = None,
    ) -> Separations:
        """Candidates for B mixtures.

        Args:
            priors: the two sources' priors; the first is z1 of the likelihood, the second z2.
            likelihood: scores of code pairs given a mixture code.
            mixture_codes: int64 [B, T], T within the priors' context.
            candidates: N, joint candidates per mixture.
            generator: on the priors' device.
            progress: called after every step.

        Raises:
            ValueError: not two priors, or priors, likelihood and codes do not fit together.
        """
        check_parts(priors, likelihood, mixture_codes)
        batch, steps = mixture_codes.shape
        host_codes = mixture_codes.tolist()  # the likelihood is looked up by host integers
        caches = {
            name: prior.new_cache(batch * candidates, steps) for name, prior in priors.items()
        }
        device = mixture_codes.device
        codes = {
            name: torch.empty(steps, batch, candidates, dtype=torch.int64, device=device)
            for name in priors
        }
        log_prior = {name: torch.zeros(batch, candidates, device=device) for name in priors}
        log_likelihood = torch.zeros(batch, candidates, device=device)
        last: dict[str, Tensor | None] = dict.fromkeys(priors)
        tables = _Tables(likelihood)
        for step in range(steps):
            log_p = {
                name: self._log_probabilities(prior.step(last[name], caches[name]))
                for name, prior in priors.items()
            }  # {source: [B * N, K]}
            first, second = (p.view(batch, candidates, -1) for p in log_p.values())
            draws = [
                tables.draw(host_codes[b][step], first[b], second[b], generator)
                for b in range(batch)
            ]
            log_likelihood += torch.stack([d.score for d in draws])
            for name, drawn in zip(
                priors, (_stack(draws, "first"), _stack(draws, "second")), strict=True
            ):
                codes[name][step] = drawn
                last[name] = drawn.flatten()
                chosen = log_p[name].gather(1, drawn.view(-1, 1))
                log_prior[name] += chosen.view(batch, candidates)
            if progress is not None:
                progress(step + 1, steps)
        return Separations(
            {name: drawn.permute(1, 2, 0).contiguous() for name, drawn in codes.items()},
            log_prior,
            log_likelihood,
        )

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits.float() / self.temperature, dim=-1)


class _Tables:
    """Dense tables of mixture codes that come again, prepared once, within a budget of bytes."""

    def __init__(self, likelihood: Likelihood, budget: int = 1 << 29):
        self._likelihood = likelihood
        self._budget = budget
        self._kept: OrderedDict[int, DenseTable] = OrderedDict()

    def draw(
        self, mixture_code: int, log_p1: Tensor, log_p2: Tensor, generator: torch.Generator
    ) -> Draw:
        """One pair of codes for each of N candidates, log-probabilities [N, K]."""
        table = self._kept.get(mixture_code)
        if table is None:
            scores = self._likelihood.scores(mixture_code)
            if scores.pairs is not None:
                return draw_sparse(log_p1, log_p2, scores.values, scores.pairs, generator)
            table = DenseTable(scores.values.view(log_p1.shape[1], log_p2.shape[1]))
            while self._kept and (len(self._kept) + 1) * table.nbytes > self._budget:
                self._kept.popitem(last=False)
            self._kept[mixture_code] = table
        self._kept.move_to_end(mixture_code)
        return table.draw(log_p1, log_p2, generator)


def _stack(draws: list, name: str) -> Tensor:
    """[B, N] of one field of the chunks' draws."""
    return torch.stack([getattr(d, name) for d in draws])


def check_parts(priors: Mapping[str, Prior], likelihood: Likelihood, mixture_codes: Tensor) -> None:
    """Raise ValueError unless two priors, the likelihood and the codes fit together."""
    if len(priors) != 2:
        raise ValueError(f"separation needs two priors, got {len(priors)}: {', '.join(priors)}")
    if mixture_codes.ndim != 2 or mixture_codes.shape[1] == 0:
        raise ValueError(f"mixture codes are {tuple(mixture_codes.shape)}, expected [B, T], T > 0")
    steps = mixture_codes.shape[1]
    for name, prior in priors.items():
        if prior.n_codes != likelihood.n_codes:
            raise ValueError(
                f"the prior of {name} has {prior.n_codes} codes, "
                f"the likelihood {likelihood.n_codes}: they belong to different codecs"
            )
        if steps > prior.n_ctx:
            raise ValueError(f"{steps} codes exceed the {name} prior's context of {prior.n_ctx}")
