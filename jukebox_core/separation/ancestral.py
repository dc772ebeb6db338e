"""Ancestral sampling of joint candidates (LASS, algorithm 1; LQ-VAE, section 3.4)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from jukebox_core.checks import require
from jukebox_core.prior.joint import as_joint
from jukebox_core.separation.posterior import (
    Draw,
    FullTable,
    PairTable,
    draw_chunks,
    make_table,
    redraw,
    uniform_numbers,
)
from jukebox_core.separation.protocols import JointPriors, Likelihood, Prior, Separations
from jukebox_core.separation.truncation import Truncation, draw_truncated

__all__ = ["AncestralSampler", "Progress", "Tables", "check_parts", "check_temperature", "start"]

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True)
class AncestralSampler:
    """Draws every step's pair of codes from the exact one-step posterior.

    A candidate takes its random numbers from the generator in the order of the chunks: the same
    chunks give the same candidates in whatever batches they come.

    temperature: divides the priors' logits; 1 samples the posterior itself.
    top_k: draw among the k most probable pairs of a step's joint posterior; 0: among all.
    top_p: draw among the fewest most probable pairs whose mass reaches p; 1: among all. With both,
        among the fewer. Truncated draws wait for the device at every step.
    """

    independent: ClassVar[bool] = True
    """Candidates may be drawn in groups, one after the other."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        check_temperature("temperature", self.temperature)
        Truncation(self.top_k, self.top_p)

    @torch.no_grad()
    def __call__(
        self,
        priors: Mapping[str, Prior] | JointPriors,
        likelihood: Likelihood,
        mixture_codes: Tensor,
        candidates: int,
        generator: torch.Generator,
        progress: Progress | None = None,
        context: Mapping[str, Tensor] | None = None,
    ) -> Separations:
        """Candidates for B mixtures.

        Args:
            priors: the two sources' priors; the first is z1 of the likelihood, the second z2.
            likelihood: scores of code pairs given a mixture code.
            mixture_codes: int64 [B, T], T within the priors' context.
            candidates: N, joint candidates per mixture.
            generator: on any device.
            progress: called after every step.
            context: {source: [B, P]}, codes before these; P + T within the priors' context.

        Raises:
            ValueError: there are not two priors, there is no candidate, or priors, likelihood and
                codes do not fit together.
        """
        joint = as_joint(priors)
        check_parts(joint, likelihood, mixture_codes, context)
        require("candidates", candidates, whole=True, at_least=1)
        batch, steps = mixture_codes.shape
        device = mixture_codes.device
        uniform = uniform_numbers(generator, (batch, steps, candidates), device)
        uniform = uniform.transpose(0, 1).contiguous()  # [T, B, N, 2]
        tables = Tables(likelihood, mixture_codes)
        drawn = self._draw(joint, tables, candidates, uniform, progress, context)
        if drawn is None:  # float32 lost mass on a device that could not be asked in between
            drawn = self._draw(joint, tables, candidates, uniform, progress, context, exact=True)
        assert drawn is not None
        return drawn

    def _draw(
        self,
        joint: JointPriors,
        tables: Tables,
        candidates: int,
        uniform: Tensor,
        progress: Progress | None,
        context: Mapping[str, Tensor] | None,
        exact: bool = False,
    ) -> Separations | None:
        """All steps; None where a draw may have been wrong, which `exact` avoids by waiting."""
        steps, batch = uniform.shape[:2]
        device = uniform.device
        cache, last = start(joint, batch, candidates, steps, context, device)
        codes = torch.empty(2, steps, batch, candidates, dtype=torch.int64, device=device)
        log_prior = torch.zeros(2, batch, candidates, device=device)
        log_likelihood = torch.zeros(batch, candidates, device=device)
        lost = torch.zeros((), dtype=torch.bool, device=device)
        for step in range(steps):
            logits = joint.step(last, cache).float()  # [2, B * N, K]
            log_p = torch.log_softmax(logits / self.temperature, -1)
            log_p = log_p.view(2, batch, candidates, -1)
            drawn = self._pairs(tables.at(step), log_p, uniform[step], exact)
            if drawn.lost is not None:
                lost |= drawn.lost.any()
            codes[0, step], codes[1, step] = drawn.first, drawn.second
            log_prior += log_p.gather(3, codes[:, step].unsqueeze(3)).squeeze(3)
            log_likelihood += drawn.score
            last = codes[:, step].flatten(1)
            if progress is not None:
                progress(step + 1, steps)
        if bool(lost):
            return None
        codes = codes.permute(0, 2, 3, 1).contiguous()  # [2, B, N, T]
        return Separations(
            dict(zip(joint.names, codes, strict=True)),
            dict(zip(joint.names, log_prior, strict=True)),
            log_likelihood,
        )

    def _pairs(
        self,
        tables: Sequence[FullTable | PairTable],
        log_p: Tensor,
        uniform: Tensor,
        exact: bool,
    ) -> Draw:
        """A pair per candidate, [B, N], from log-probabilities [2, B, N, K]."""
        truncation = Truncation(self.top_k, self.top_p)
        if truncation.active:
            return draw_truncated(tables, log_p[0], log_p[1], uniform, truncation)
        drawn = draw_chunks(tables, log_p[0], log_p[1], uniform)
        return redraw(drawn, tables, log_p[0], log_p[1], uniform) if exact else drawn


class Tables:
    """The prepared tables of B chunks' mixture codes; those that come again are kept for a while.

    Mixture codes are looked up as host integers, all known beforehand: no step waits for a device.
    """

    def __init__(self, likelihood: Likelihood, mixture_codes: Tensor, budget: int = 1 << 30):
        self._likelihood = likelihood
        self._codes: list[list[int]] = mixture_codes.T.tolist()  # [T][B]
        self._budget = budget
        self._held = 0
        self._kept: OrderedDict[int, FullTable | PairTable] = OrderedDict()

    def at(self, step: int) -> list[FullTable | PairTable]:
        """The tables of all chunks at a step."""
        return [self._table(code) for code in self._codes[step]]

    def _table(self, mixture_code: int) -> FullTable | PairTable:
        table = self._kept.get(mixture_code)
        if table is None:
            table = make_table(self._likelihood.scores(mixture_code), self._likelihood.n_codes)
            self._held += table.nbytes
            while self._kept and self._held > self._budget:
                self._held -= self._kept.popitem(last=False)[1].nbytes
            self._kept[mixture_code] = table
        self._kept.move_to_end(mixture_code)
        return table


def start(
    joint: JointPriors,
    batch: int,
    candidates: int,
    steps: int,
    context: Mapping[str, Tensor] | None,
    device: torch.device,
) -> tuple[Any, Tensor | None]:
    """A cache for `candidates` of every chunk and the codes [2, B * N] of the first step, if any.

    With a context {source: [B, P]} the cache holds it already.
    """
    if context is None:
        return joint.new_cache(batch * candidates, steps), None
    past = torch.stack([context[name] for name in joint.names]).to(device)  # [2, B, P]
    cache = joint.new_cache(batch * candidates, past.shape[2] + steps)
    joint.prefill(past, cache)
    return cache, past[:, :, -1].repeat_interleave(candidates, 1)


def check_temperature(name: str, value: object) -> None:
    """Refuse a temperature with which logits, divided by it and summed, overflow float32.

    Raises:
        ValueError: It is not a number from 1e-6 to 1e6; the message calls it `name`.
    """
    require(name, value, at_least=1e-6, at_most=1e6)


def check_parts(
    joint: JointPriors,
    likelihood: Likelihood,
    mixture_codes: Tensor,
    context: Mapping[str, Tensor] | None = None,
) -> None:
    """Raise ValueError unless the priors, the likelihood and the codes fit together."""
    if mixture_codes.ndim != 2 or mixture_codes.shape[1] == 0:
        raise ValueError(f"mixture codes are {tuple(mixture_codes.shape)}, expected [B, T], T > 0")
    if joint.n_codes != likelihood.n_codes:
        raise ValueError(
            f"the priors of {' and '.join(joint.names)} have {joint.n_codes} codes, "
            f"the likelihood {likelihood.n_codes}: they belong to different codecs"
        )
    batch, steps = mixture_codes.shape
    past = 0
    if context is not None:
        shapes = {name: tuple(codes.shape) for name, codes in context.items()}
        if set(shapes) != set(joint.names) or len(set(shapes.values())) != 1:
            raise ValueError(f"context is {shapes}, expected [B, P] for {', '.join(joint.names)}")
        rows, past = next(iter(shapes.values()))
        if rows != batch or past == 0:
            raise ValueError(f"context is {shapes}, expected {batch} rows of at least one code")
    if past + steps > joint.n_ctx:
        before = f" after {past} of context" if past else ""
        raise ValueError(f"{steps} codes{before} exceed the priors' context of {joint.n_ctx}")
