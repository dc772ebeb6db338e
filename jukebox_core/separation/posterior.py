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
    """Two-stage draw: z1 from its marginal p1 * (W @ p2), then z2 from W[z1] * p2.

    Needs N x K memory instead of the N x K x K of the joint. W = exp(table [K, K]) is scaled row by
    row; candidates for which float32 may have lost mass all the same take the explicit joint.
    """
    row_max = table.amax(dim=1)  # [K]
    weights = torch.exp(table - row_max.unsqueeze(1))
    sums = log_p2.exp() @ weights.T  # [N, K]
    bound = log_p1 + row_max  # log-mass of row z1 is at most this
    log_marginal = bound + sums.log()
    lost = (sums < _FLOOR) & (
        bound + math.log(_FLOOR)
        > log_marginal.logsumexp(dim=1, keepdim=True).nan_to_num(nan=-math.inf) - _NEGLIGIBLE
    )
    first = categorical(log_marginal, generator)
    second = categorical(table[first] + log_p2, generator)
    if log_p1.device.type == "cpu" and bool(lost.any()):  # no wait for the device elsewhere
        for n in lost.any(dim=1).nonzero().flatten().tolist():
            joint = log_p1[n, :, None].double() + table.double() + log_p2[n].double()
            flat = categorical(joint.flatten(), generator)
            first[n], second[n] = flat // table.shape[1], flat % table.shape[1]
    return Draw(first, second, table[first, second])


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
    """Indices [...] drawn with probability ~ exp(log_weights [..., P]) (Gumbel-max)."""
    exponential = torch.empty_like(log_weights).exponential_(generator=generator)
    return (log_weights - exponential.log()).argmax(dim=-1)
