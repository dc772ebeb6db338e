"""The most probable pairs of one step's joint posterior, and draws among only these pairs.

A pair is at most as probable as either of its codes, p(z1, z2) <= min(p(z1), p(z2)), and each
marginal costs one product with the table. It is therefore enough to consider pairs of the most
probable codes, as many that the least probable kept pair exceeds all marginals left out. The result
equals the explicit joint's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from jukebox_core.checks import require
from jukebox_core.separation.posterior import (
    Bound,
    Draw,
    FullTable,
    PairTable,
    categorical,
    draw_joint,
)

_SIDE = 32  # codes of each source looked at first
_GROWTH = 2  # times as many where they were not enough
_ENTRIES = 1 << 23  # of the joint looked at, held at a time
_FIRST_SORTED = 256  # pairs sorted at first in search of a mass
_MARGIN = 1e-4  # in nats: above the error of the marginals, which are in float32
_SMALLEST = -87.0  # in nats: smaller values are subnormal in float32, which is slow
_SAFE = -60.0  # log-mass above which no factor of a pair was flushed to zero in float32


def check_top_k(name: str, value: object) -> None:
    """Raise ValueError unless it is a valid number of pairs; the message calls it `name`."""
    require(name, value, whole=True, at_least=0, hint="pairs of codes; 0: all")


def check_top_p(name: str, value: object) -> None:
    """Raise ValueError unless it is a valid mass; the message calls it `name`."""
    require(name, value, above=0, at_most=1, hint="the mass of the pairs; 1: all")


@dataclass(frozen=True)
class Truncation:
    """The pairs that may be drawn at a step; their probabilities are renormalised.

    top_k: the k most probable pairs (LQ-VAE's `top_k`); 0: all of them.
    top_p: the smallest set of most probable pairs whose mass reaches p; 1: all of them.

    With both, the smaller of the two sets. Pairs exactly as probable as the last one stay as well.
    """

    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        check_top_k("top_k", self.top_k)
        check_top_p("top_p", self.top_p)

    @property
    def active(self) -> bool:
        """Whether anything may be cut."""
        return self.top_k > 0 or self.top_p < 1

    def bound(self, joint: Tensor, log_total: Tensor) -> Tensor:
        """The least log joint [n] kept of [n, P]; -inf where it is beyond these P.

        Args:
            joint: un-normalised log-probabilities.
            log_total: [n], the log of the mass of all pairs, be they among the P or not.
        """
        least = top_k_bound(self.top_k)(joint, log_total)
        if self.top_p < 1:
            sizes = joint.shape[1], self.top_k or joint.shape[1]
            least = least.maximum(_mass_bound(joint, log_total, self.top_p, min(sizes)))
        return least


def top_k_bound(k: int) -> Bound:
    """Keep the k largest and what equals the last of them; 0 keeps all."""

    def bound(joint: Tensor, log_total: Tensor) -> Tensor:
        if not 0 < k <= joint.shape[1]:
            return torch.full_like(log_total, -math.inf)
        return joint.topk(k, sorted=False).values.amin(1)

    return bound


def _mass_bound(joint: Tensor, log_total: Tensor, p: float, most: int) -> Tensor:
    """The entry [n] at which the largest of [n, P] reach the mass p; -inf beyond the `most`."""
    size = min(_FIRST_SORTED, most)
    while True:
        values = joint.topk(size).values  # [n, size], descending
        mass = (values - log_total.unsqueeze(1)).exp().cumsum(1)
        place = (mass < p).sum(1, keepdim=True)
        reached = place < size
        if size == most or bool(reached.all()):
            found = values.gather(1, place.clamp(max=size - 1))
            return found.masked_fill(~reached, -math.inf).squeeze(1)
        size = min(most, 8 * size)


class Leading(NamedTuple):
    """The pairs of some of the candidates among which are all that are kept.

    candidates: [n], which they are. first: [n, R] and second: [n, C], the codes looked at, both
    ascending. joint: [n, R * C], log p1 + log p2 + score of their pairs. least: [n]; every pair
    that is not here has a smaller log joint than that.
    """

    candidates: Tensor
    first: Tensor
    second: Tensor
    joint: Tensor
    least: Tensor

    def kept(self) -> Tensor:
        """The log joints with all that are cut at -inf."""
        return self.joint.masked_fill(self.joint < self.least.unsqueeze(1), -math.inf)

    def codes(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Both sources' codes of the entries (rows, columns) of `joint`."""
        width = self.second.shape[1]
        place = torch.div(columns, width, rounding_mode="floor")
        return self.first[rows, place], self.second[rows, columns % width]


def leading(table: FullTable, log_p1: Tensor, log_p2: Tensor, bound: Bound) -> Iterator[Leading]:
    """The leading pairs of N candidates, some candidates at a time, each once.

    How many codes have to be looked at depends on the posterior: every step waits for the device.

    Args:
        table: the scores.
        log_p1: [N, K] log-probabilities of the first source's next code, in the joint's precision.
        log_p2: [N, K] of the second source's.
        bound: which pairs are kept.
    """
    n_codes = log_p1.shape[1]
    weights = table.weights
    marginals = _marginals(weights, table.maximum, log_p1, log_p2)
    log_total = marginals[0].logsumexp(1)
    pending = torch.arange(len(log_p1), device=log_p1.device)
    side = min(_SIDE, n_codes)
    while len(pending):
        left = []
        scores = table.explicit().values if side == n_codes else None
        for part in pending.split(max(1, _ENTRIES // side**2)):
            (first, above_first), (second, above_second) = (_most(m[part], side) for m in marginals)
            joint = log_p1[part].gather(1, first).unsqueeze(2)
            joint = (joint + log_p2[part].gather(1, second).unsqueeze(1)).flatten(1)
            if scores is not None:
                joint += scores
                least = bound(joint, joint.logsumexp(1))
                settled = torch.ones_like(part, dtype=torch.bool)
            else:
                # A pair without a weight is far below any that is settled.
                found_weights = weights[first.unsqueeze(2), second.unsqueeze(1)].flatten(1)
                joint += found_weights.log_().add_(table.maximum)
                least = bound(joint, log_total[part])
                settled = least > above_first.maximum(above_second) + _MARGIN
                settled &= least > table.maximum + _SAFE
            left.append(part[~settled])
            found = Leading(part, first, second, joint, least)
            if len(left[-1]) < len(part):
                yield found if not len(left[-1]) else Leading(*(x[settled] for x in found))
        pending = torch.cat(left)
        side = min(_GROWTH * side, n_codes)


def _marginals(
    weights: Tensor, maximum: Tensor, log_p1: Tensor, log_p2: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-masses of all pairs with a first code, [N, K], and with a second code, [N, K]."""
    p1, p2 = (
        log_p.masked_fill(log_p < _SMALLEST, -math.inf).to(weights.dtype).exp()
        for log_p in (log_p1, log_p2)
    )
    return (
        log_p1 + (p2 @ weights.T).log() + maximum,
        log_p2 + (p1 @ weights).log() + maximum,
    )


def _most(log_mass: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The codes [n, count] of most mass of [n, K], ascending; the largest mass left out, [n]."""
    if count == log_mass.shape[1]:
        every = torch.arange(count, device=log_mass.device).expand_as(log_mass)
        return every, log_mass.new_full((len(log_mass),), -math.inf)
    values, codes = log_mass.topk(count + 1)
    return codes[:, :-1].sort(1).values, values[:, -1]


def draw_truncated(
    tables: Sequence[FullTable | PairTable],
    log_p1: Tensor,
    log_p2: Tensor,
    uniform: Tensor,
    truncation: Truncation,
) -> Draw:
    """One pair of codes for each of N candidates of B chunks, [B, N], among the pairs kept.

    `log_total` belongs to the kept pairs. No draw is lost: the joint is explicit, in float64.

    Args:
        tables: of the chunks' mixture codes.
        log_p1: [B, N, K] log-probabilities of the first source's next code.
        log_p2: [B, N, K] of the second source's.
        uniform: [B, N, 2]; the first of the two numbers is used.
        truncation: the pairs kept.
    """
    draws = []
    for table, p1, p2, u in zip(tables, log_p1, log_p2, uniform, strict=True):
        if isinstance(table, FullTable):
            precise = u.dtype  # float64 if the device has it
            draws.append(_draw_full(table, p1.to(precise), p2.to(precise), u[:, 0], truncation))
        else:
            draws.append(draw_joint(p1, p2, table.explicit(), u, truncation.bound))
    first, second, score, log_total = (
        torch.stack(field) for field in zip(*(drawn[:4] for drawn in draws), strict=True)
    )
    return Draw(first, second, score, log_total.to(log_p1.dtype))


def _draw_full(
    table: FullTable, log_p1: Tensor, log_p2: Tensor, uniform: Tensor, truncation: Truncation
) -> Draw:
    """By inversion over the kept pairs in the order of the table."""
    codes = torch.empty(2, len(log_p1), dtype=torch.int64, device=log_p1.device)
    log_total = torch.empty_like(uniform)
    for found in leading(table, log_p1, log_p2, truncation.bound):
        chosen, log_total[found.candidates] = categorical(found.kept(), uniform[found.candidates])
        rows = torch.arange(len(chosen), device=chosen.device)
        codes[:, found.candidates] = torch.stack(found.codes(rows, chosen))
    return Draw(codes[0], codes[1], table.at(codes[0], codes[1]), log_total)
