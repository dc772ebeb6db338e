"""Beam search for the most probable pair of code sequences (LASS decodes with 10 beams).

A beam's score is log p1 + log p2 + log-likelihood of all its steps. The scores that come out of a
step's top-k belong to the new beams and go on as they are; the originals' program re-ordered them
by parent a second time, so that later steps ranked with the scores of other beams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from jukebox_core.separation.joint import as_joint
from jukebox_core.separation.posterior import log_joint
from jukebox_core.separation.protocols import (
    JointPriors,
    Likelihood,
    PairScores,
    Prior,
    Separations,
)
from jukebox_core.separation.sampling import Progress, check_parts, start

__all__ = ["BeamSampler", "Best", "best_entries"]

_ENTRIES = 1 << 23  # of the explicit joint, held at a time


class Best(NamedTuple):
    """The k largest entries of a matrix, ascending: values, rows, columns, each [k]."""

    values: Tensor
    rows: Tensor
    columns: Tensor


def best_entries(matrix: Tensor, k: int) -> Best:
    """The k largest entries of [N, P] in ascending order; fewer where the matrix has fewer.

    Among equal values the ones with the lowest row and column are taken, and come first.
    """
    flat = matrix.flatten()
    k = min(k, flat.numel())
    threshold = flat.topk(k).values[-1]
    above = (flat > threshold).nonzero().squeeze(1)
    equal = (flat == threshold).nonzero().squeeze(1)[: k - len(above)]
    chosen = torch.cat([above, equal]).sort().values
    values, order = flat[chosen].sort(stable=True)
    chosen = chosen[order]
    width = matrix.shape[1]
    return Best(values, torch.div(chosen, width, rounding_mode="floor"), chosen % width)


@dataclass(frozen=True)
class BeamSampler:
    """Deterministic search that keeps the `candidates` best pairs of sequences at every step.

    Candidates come in ascending order of score, the best one last. Where fewer pairs of sequences
    are possible than candidates were asked for, the best one fills the rest.

    temperature: divides the priors' logits.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a temperature without meaning."""
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, it must be positive")

    @torch.no_grad()
    def __call__(
        self,
        priors: Mapping[str, Prior] | JointPriors,
        likelihood: Likelihood,
        mixture_codes: Tensor,
        candidates: int,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        context: Mapping[str, Tensor] | None = None,
    ) -> Separations:
        """The `candidates` best beams of every mixture.

        Args:
            priors: the two sources' priors; the first is z1 of the likelihood, the second z2.
            likelihood: scores of code pairs given a mixture code.
            mixture_codes: int64 [B, T], T within the priors' context.
            candidates: N, beams per mixture.
            generator: not used; nothing here is random.
            progress: called after every step.
            context: {source: [B, P]}, codes before these; P + T within the priors' context.

        Raises:
            ValueError: the parts do not fit together, or no pair of codes is possible at a step.
        """
        joint = as_joint(priors)
        check_parts(joint, likelihood, mixture_codes, context)
        if candidates < 1:
            raise ValueError(f"candidates is {candidates}, it must be at least 1")
        batch, steps = mixture_codes.shape
        device = mixture_codes.device
        host_codes = mixture_codes.tolist()
        cache, last = start(joint, batch, candidates, steps, context, device)
        beams = [_Beams(candidates, steps, device) for _ in range(batch)]
        offsets = torch.arange(batch, device=device).unsqueeze(1) * candidates
        for step in range(steps):
            logits = joint.step(last, cache).to(_precision(device)) / self.temperature
            log_p = torch.log_softmax(logits, -1).view(2, batch, candidates, -1)
            parents = []
            for b, state in enumerate(beams):
                scores = likelihood.scores(host_codes[b][step]).explicit()
                parents.append(state.advance(step, log_p[0][b], log_p[1][b], scores))
                if not state.alive:
                    raise ValueError(
                        f"no pair of codes is possible at step {step}, whose mixture code is "
                        f"{host_codes[b][step]}: the likelihood has no such pair"
                    )
            rows = (torch.stack(parents) + offsets).flatten()
            cache.reorder(rows)
            last = torch.stack(
                [torch.cat([state.codes[source][:, step] for state in beams]) for source in (0, 1)]
            )
            if progress is not None:
                progress(step + 1, steps)
        for state in beams:
            state.fill()
        return Separations(
            {name: torch.stack([s.codes[i] for s in beams]) for i, name in enumerate(joint.names)},
            {
                name: torch.stack([s.parts[i] for s in beams]).float()
                for i, name in enumerate(joint.names)
            },
            torch.stack([state.parts[2] for state in beams]).float(),
        )


def _precision(device: torch.device) -> torch.dtype:
    """Scores are sums over many steps: float64, which MPS alone does not have."""
    return torch.float32 if device.type == "mps" else torch.float64


class _Beams:
    """N beams of one mixture. score: [N], -inf where a place is not used (yet).

    codes: per source [N, T]. parts: [3, N], the score's summands: both priors, the likelihood.
    """

    def __init__(self, n: int, steps: int, device: torch.device):
        dtype = _precision(device)
        self.score = torch.full((n,), -math.inf, dtype=dtype, device=device)
        self.score[0] = 0.0
        self.codes = [torch.zeros(n, steps, dtype=torch.int64, device=device) for _ in range(2)]
        self.parts = torch.zeros(3, n, dtype=dtype, device=device)

    @property
    def alive(self) -> bool:
        """Whether any beam is possible."""
        return bool(self.score.max() > -math.inf)

    def advance(self, step: int, log_p1: Tensor, log_p2: Tensor, scores: PairScores) -> Tensor:
        """Extend by one pair of codes; return the parents [N] of the new beams."""
        values = scores.values.to(self.score.dtype)
        n = len(self.score)
        best = self._best(log_p1, log_p2, PairScores(values, scores.pairs))
        if not len(best.values):
            self.score.fill_(-math.inf)
            return best.rows.new_zeros(n)
        if scores.pairs is None:
            width = log_p2.shape[1]
            pairs = [torch.div(best.columns, width, rounding_mode="floor"), best.columns % width]
        else:
            pairs = [scores.pairs[0][best.columns], scores.pairs[1][best.columns]]
        missing = n - len(best.values)  # fewer continuations than places: those stay unused
        parents, first, second, columns = (
            torch.cat([x.new_zeros(missing), x]) for x in (best.rows, *pairs, best.columns)
        )
        self.score = torch.cat([best.values.new_full((missing,), -math.inf), best.values])
        self.codes = [codes[parents] for codes in self.codes]
        self.codes[0][:, step], self.codes[1][:, step] = first, second
        gains = torch.stack([log_p1[parents, first], log_p2[parents, second], values[columns]])
        self.parts = self.parts[:, parents] + gains
        return parents

    def _best(self, log_p1: Tensor, log_p2: Tensor, scores: PairScores) -> Best:
        """The best continuations; the explicit joint of a few beams at a time is held."""
        n = len(self.score)
        live = (self.score > -math.inf).nonzero().squeeze(1)
        nothing = live.new_zeros(0)
        kept = Best(self.score.new_zeros(0), nothing, nothing)
        for part in live.split(max(1, _ENTRIES // max(1, len(scores.values)))):
            joint = log_joint(log_p1[part], log_p2[part], scores) + self.score[part].unsqueeze(1)
            if joint.numel() == 0:
                continue
            found = best_entries(joint, n)
            # Beams come in order, and what was kept is from lower ones: ties keep their order.
            rows = torch.cat([kept.rows, part[found.rows]])
            columns = torch.cat([kept.columns, found.columns])
            best = best_entries(torch.cat([kept.values, found.values]).unsqueeze(0), n)
            kept = Best(best.values, rows[best.columns], columns[best.columns])
        possible = kept.values > -math.inf
        return Best(*(x[possible] for x in kept))

    def fill(self) -> None:
        """Put the best beam, which is the last, into the places that were never used."""
        unused = self.score == -math.inf
        best = len(self.score) - 1
        self.score = torch.where(unused, self.score[best], self.score)
        self.codes = [torch.where(unused.unsqueeze(1), c[best], c) for c in self.codes]
        self.parts = torch.where(unused, self.parts[:, best:], self.parts)
