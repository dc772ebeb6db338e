"""Exact draws from one step's joint posterior, p(z1, z2) ~ p1(z1) exp(scores[z1, z2]) p2(z2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jukebox_core.separation.protocols import PairScores

_FLOOR = 1e-34  # a float32 sum under this may have lost terms
_NEGLIGIBLE = 16.0  # nats below the total that no longer matter in float32


class Draw(NamedTuple):
    """first, second: codes [N]. score: log-likelihood of each drawn pair, [N]."""

    first: Tensor
    second: Tensor
    score: Tensor


def draw(
    log_p1: Tensor, log_p2: Tensor, scores: PairScores, generator: torch.Generator | None = None
) -> Draw:
    """One pair of codes for each of N candidates.

    Args:
        log_p1: [N, K] log-probabilities of the first source's next code.
        log_p2: [N, K] of the second source's.
        scores: the pairs' log-likelihoods.
        generator: on the device of the inputs.
    """
    if scores.pairs is None:
        table = scores.values.view(log_p1.shape[1], log_p2.shape[1])
        return draw_dense(log_p1, log_p2, table, generator)
    return draw_sparse(log_p1, log_p2, scores.values, scores.pairs, generator)


def draw_dense(
    log_p1: Tensor, log_p2: Tensor, table: Tensor, generator: torch.Generator | None = None
) -> Draw:
    """The two-stage draw from a table of scores [K, K]; see `DenseTable`."""
    return DenseTable(table).draw(log_p1, log_p2, generator)


class DenseTable:
    """Two-stage draw: z1 from its marginal p1 * (W @ p2), then z2 from W[z1] * p2.

    Needs N x K memory instead of the N x K x K of the joint. W = exp(scores [K, K]) is scaled row
    by row; candidates for which float32 may have lost mass all the same take the explicit joint.
    """

    def __init__(self, scores: Tensor):
        self.scores = scores
        # A row of impossible pairs keeps a finite maximum, so that its weights are 0 and not NaN.
        self._row_max = scores.amax(dim=1).clamp_min(torch.finfo(scores.dtype).min)  # [K]
        self._weights = torch.exp(scores - self._row_max.unsqueeze(1))

    @property
    def nbytes(self) -> int:
        """Memory of the table and its weights."""
        return self.scores.nbytes + self._weights.nbytes

    def draw(
        self, log_p1: Tensor, log_p2: Tensor, generator: torch.Generator | None = None
    ) -> Draw:
        """One pair of codes for each of N candidates, log-probabilities [N, K]."""
        sums = log_p2.exp() @ self._weights.T  # [N, K]
        bound = log_p1 + self._row_max  # log-mass of row z1 is at most this
        log_marginal = bound + sums.log()
        first = categorical(log_marginal, generator)
        second = categorical(self.scores[first] + log_p2, generator)
        if log_p1.device.type == "cpu":  # elsewhere the question would wait for the device
            self._redraw_lost(log_p1, log_p2, sums, bound, log_marginal, (first, second), generator)
        return Draw(first, second, self.scores[first, second])

    def _redraw_lost(
        self,
        log_p1: Tensor,
        log_p2: Tensor,
        sums: Tensor,
        bound: Tensor,
        log_marginal: Tensor,
        drawn: tuple[Tensor, Tensor],
        generator: torch.Generator | None,
    ) -> None:
        """Draw from the float64 joint where rows whose sum underflowed may matter."""
        underflown = sums < _FLOOR
        if not bool(underflown.any()):
            return
        total = log_marginal.logsumexp(dim=1, keepdim=True).nan_to_num(nan=-math.inf)
        lost = underflown & (bound + math.log(_FLOOR) > total - _NEGLIGIBLE)
        for n in lost.any(dim=1).nonzero().flatten().tolist():
            joint = log_p1[n, :, None].double() + self.scores.double() + log_p2[n].double()
            flat = categorical(joint.flatten(), generator)
            drawn[0][n], drawn[1][n] = flat // joint.shape[1], flat % joint.shape[1]


def draw_sparse(
    log_p1: Tensor,
    log_p2: Tensor,
    values: Tensor,
    pairs: Tensor,
    generator: torch.Generator | None = None,
) -> Draw:
    """Draw among the stored pairs alone: values [P], pairs [2, P]."""
    joint = log_joint(log_p1, log_p2, PairScores(values, pairs))
    chosen = categorical(joint, generator)
    return Draw(pairs[0][chosen], pairs[1][chosen], values[chosen])


def log_joint(log_p1: Tensor, log_p2: Tensor, scores: PairScores) -> Tensor:
    """The un-normalised log-posterior of every pair, explicitly: [N, P], P = K * K without pairs.

    Args:
        log_p1: [N, K], the first source.
        log_p2: [N, K], the second.
        scores: the pairs' log-likelihoods.
    """
    if scores.pairs is None:
        return (log_p1.unsqueeze(2) + log_p2.unsqueeze(1)).flatten(1) + scores.values
    return log_p1[:, scores.pairs[0]] + log_p2[:, scores.pairs[1]] + scores.values


def keep_top_k(log_weights: Tensor, k: int) -> Tensor:
    """All but the k largest entries of every row of [N, P] at -inf (LQ-VAE's `top_k`); 0 keeps all.

    Entries equal to the k-th largest stay.
    """
    if k <= 0 or k >= log_weights.shape[1]:
        return log_weights
    least = log_weights.topk(k, dim=1).values[:, -1:]
    return log_weights.masked_fill(log_weights < least, -math.inf)


def categorical(log_weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Indices [...] drawn with probability ~ exp(log_weights [..., P]).

    By inversion of the cumulated weights, one uniform number a row. The sums are in float64, so
    that no entry gains or loses by its place.
    """
    largest = log_weights.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(log_weights.dtype).min)
    cumulated = torch.exp(log_weights - largest).cumsum(-1, dtype=torch.float64)
    total = cumulated[..., -1:].contiguous()
    uniform = torch.rand(
        total.shape, generator=generator, dtype=torch.float64, device=log_weights.device
    )
    # `right` skips entries of weight zero; rounding must not lead beyond the last positive one.
    drawn = torch.searchsorted(cumulated, uniform * total, right=True).squeeze(-1)
    last = torch.searchsorted(cumulated, total).squeeze(-1)
    return torch.minimum(drawn, last)
