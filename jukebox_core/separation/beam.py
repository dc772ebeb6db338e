"""Beam search for the most probable pair of code sequences (LASS: 10 beams).

A beam's score is log p1 + log p2 + log-likelihood (pair scores and log-factors) of all its steps.
The scores that come out of a step's top-k belong to the new beams and stay as they are; upstream's
program re-orders them by parent a second time, so that later steps rank with the scores of other
beams.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from jukebox_core.prior.joint import JointPriors, Prior
from jukebox_core.separation.likelihood import Likelihood
from jukebox_core.separation.posterior import FullTable, PairTable, log_joint
from jukebox_core.separation.samples import JointSamples, Progress
from jukebox_core.separation.sampling_task import SamplingTask, Step, check_temperature
from jukebox_core.separation.truncation import leading, top_k_bound

_ENTRIES = 1 << 23  # of the explicit joint of stored pairs, held at a time


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

    independent: ClassVar[bool] = False

    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a temperature without meaning."""
        check_temperature("temperature", self.temperature)

    def numbers(self, candidates: int) -> int:
        """Nothing is random."""
        return 0

    @torch.no_grad()
    def __call__(
        self,
        priors: Mapping[str, Prior] | JointPriors,
        likelihood: Likelihood | None,
        mixture_codes: Tensor,
        candidates: int,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        log_factors: Mapping[str, Tensor] | None = None,
    ) -> JointSamples:
        """The N best beams of every mixture; nothing is random, so the generator is not used.

        Arguments as in `SamplingTask`.

        Raises:
            ValueError: as `SamplingTask`, there are not two sources, or at a step no pair of codes
                is possible.
        """
        task = SamplingTask(priors, likelihood, mixture_codes, candidates, log_factors)
        task.require_pairs("beam search is for two sources; use the sampler particle or ancestral")
        steps, batch, device = task.steps, task.batch, task.device
        cache, last = task.new_cache(), None
        beams = [_Beams(candidates, steps, device) for _ in range(batch)]
        offsets = torch.arange(batch, device=device).unsqueeze(1) * candidates
        for step in range(steps):
            law = task.step(step, last, cache, self.temperature, _precision(device))
            parents = []
            for b, (state, table) in enumerate(zip(beams, task.tables.at(step), strict=True)):
                parents.append(state.advance(step, law, b, table))
                if not state.alive:
                    raise ValueError(
                        f"no pair of codes is possible at step {step}, whose mixture code is "
                        f"{int(mixture_codes[b, step])}: the likelihoods allow none"
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
        names = task.joint.names
        return JointSamples(
            {name: torch.stack([s.codes[i] for s in beams]) for i, name in enumerate(names)},
            {
                name: torch.stack([s.parts[i] for s in beams]).float()
                for i, name in enumerate(names)
            },
            torch.stack([state.parts[2] for state in beams]).float(),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The name and the fields."""
        return {"name": "BeamSampler", **asdict(self)}


def _precision(device: torch.device) -> torch.dtype:
    """float64, because scores are sums over many steps; float32 on MPS, which has no float64."""
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

    def advance(self, step: int, law: Step, b: int, table: FullTable | PairTable) -> Tensor:
        """Extend by one pair of codes; return the parents [N] of the new beams.

        Args:
            step: whose codes these are.
            law: the sources' distributions, in the precision of the scores.
            b: the mixture's place in the batch.
            table: of the mixture code.
        """
        n = len(self.score)
        log_p1, log_p2 = law.log_p[:, b]
        if law.log_norm is not None:
            self.score = self.score + law.log_norm[b]
        best = self._best(log_p1, log_p2, table)
        if not len(best.values):
            self.score.fill_(-math.inf)
            return best.rows.new_zeros(n)
        if isinstance(table, PairTable):
            first, second = table.pairs[:, best.columns].long()
            score = table.values[best.columns]
        else:
            n_codes = log_p2.shape[1]
            first = torch.div(best.columns, n_codes, rounding_mode="floor")
            second = best.columns % n_codes
            score = table.at(first, second)
        missing = n - len(best.values)  # fewer continuations than places: those stay unused
        parents, first, second = (
            torch.cat([x.new_zeros(missing), x]) for x in (best.rows, first, second)
        )
        self.score = torch.cat([best.values.new_full((missing,), -math.inf), best.values])
        self.codes = [codes[parents] for codes in self.codes]
        self.codes[0][:, step], self.codes[1][:, step] = first, second
        score = torch.cat([score.new_zeros(missing), score]).to(self.score.dtype)
        if law.factors is not None:
            score = score + law.factors[0, b, 0, first] + law.factors[1, b, 0, second]
        prior1, prior2 = law.log_prior[:, b]
        gains = torch.stack([prior1[parents, first], prior2[parents, second], score])
        self.parts = self.parts[:, parents] + gains
        return parents

    def _best(self, log_p1: Tensor, log_p2: Tensor, table: FullTable | PairTable) -> Best:
        """The best continuations: (beam, pair) as (rows, columns); pairs as the table has them."""
        live = (self.score > -math.inf).nonzero().squeeze(1)
        nothing = live.new_zeros(0)
        best = Best(self.score.new_zeros(0), nothing, nothing)
        if not len(live):  # log-factors have forbidden every code
            return best
        rest = live, log_p1[live], log_p2[live]
        if isinstance(table, FullTable):
            parts = self._of_all(table, *rest)
        else:
            parts = self._of_stored(table, *rest)
        for found in parts:
            best = _merge(best, found, len(self.score))
        return best

    def _of_all(
        self, table: FullTable, live: Tensor, log_p1: Tensor, log_p2: Tensor
    ) -> Iterator[Best]:
        """The best of some beams at a time, among their leading pairs."""
        n = len(self.score)
        for some in leading(table, log_p1, log_p2, top_k_bound(min(n, log_p1.shape[1] ** 2))):
            beams = live[some.candidates]
            found = best_entries(some.kept() + self.score[beams].unsqueeze(1), n)
            first, second = some.codes(found.rows, found.columns)
            yield Best(found.values, beams[found.rows], first * log_p2.shape[1] + second)

    def _of_stored(
        self, table: PairTable, live: Tensor, log_p1: Tensor, log_p2: Tensor
    ) -> Iterator[Best]:
        """The best of some beams at a time, from the explicit joint of the stored pairs."""
        if not len(table.values):
            return
        scores = table.explicit()
        scores = scores._replace(values=scores.values.to(self.score.dtype))
        size = max(1, _ENTRIES // len(table.values))
        parts = zip(*(x.split(size) for x in (live, log_p1, log_p2)), strict=True)
        for beams, p1, p2 in parts:
            joint = log_joint(p1, p2, scores) + self.score[beams].unsqueeze(1)
            found = best_entries(joint, len(self.score))
            yield found._replace(rows=beams[found.rows])

    def fill(self) -> None:
        """Put the best beam, which is the last, into the places that were never used."""
        unused = self.score == -math.inf
        best = len(self.score) - 1
        self.score = torch.where(unused, self.score[best], self.score)
        self.codes = [torch.where(unused.unsqueeze(1), c[best], c) for c in self.codes]
        self.parts = torch.where(unused, self.parts[:, best:], self.parts)


def _merge(one: Best, other: Best, k: int) -> Best:
    """The k best of both, ties by the lowest row and column as in `best_entries`."""
    values, rows, columns = (torch.cat(pair) for pair in zip(one, other, strict=True))
    order = columns.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    best = best_entries(values[order].unsqueeze(0), k)
    return Best(best.values, rows[order][best.columns], columns[order][best.columns])
