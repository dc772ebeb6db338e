"""Exact draws from one step's joint posterior, p(z1, z2) ~ p1(z1) exp(scores[z1, z2]) p2(z2).

Every draw takes two uniform numbers per candidate, whatever path it goes, so that a candidate's
codes do not depend on what else is drawn beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.separation.protocols import PairScores

__all__ = [
    "Draw",
    "FullTable",
    "PairTable",
    "categorical",
    "draw",
    "draw_chunks",
    "draw_joint",
    "keep_top_k",
    "log_joint",
    "make_table",
    "redraw",
    "uniform_numbers",
]

_SMALLEST = -87.0  # logarithm of what is not taken for zero
_LOST = -63.0  # log-mass from which on what is taken for zero has no place in float32
_ENTRIES = 1 << 24  # of a padded or explicit joint, held at a time
_BLOCK = 256  # pairs summed at once in the sparse draw


class Draw(NamedTuple):
    """Of every candidate, [...]: the codes, their log-likelihood and log sum p1 p2 exp(scores).

    lost: candidates whose draw may be wrong because float32 lost mass, where asking would have
    waited for the device; None: none is.
    """

    first: Tensor
    second: Tensor
    score: Tensor
    log_total: Tensor
    lost: Tensor | None = None


class FullTable:
    """Scores of all pairs for one mixture code, and W = exp(scores - maximum), [K, K].

    The two-stage draw: z1 from its marginal p1 * (W @ p2), then z2 from W[z1] * p2. It needs N x K
    memory instead of the N x K x K of the joint.
    """

    def __init__(self, scores: PairScores, n_codes: int):
        self._values = scores.values
        self._index = None if scores.lookup is None else scores.lookup.view(n_codes, n_codes)
        self._n_codes = n_codes
        # All pairs impossible: a finite maximum keeps the weights at 0 instead of NaN.
        least = torch.finfo(self._values.dtype).min
        self.maximum = self._values.amax().clamp_min(least)
        weights = _exp(self._values - self.maximum)
        if scores.lookup is not None:
            weights = weights.index_select(0, scores.lookup.view(-1))
        self.weights = weights.view(n_codes, n_codes)

    @property
    def nbytes(self) -> int:
        """Memory of the table; an index is shared with other tables."""
        return self._values.nbytes + self.weights.nbytes

    def rows(self, first: Tensor) -> Tensor:
        """Scores of the pairs (first, any), [N, K]."""
        if self._index is None:
            return self._values.view(self._n_codes, self._n_codes)[first]
        return self._values[self._index[first]]

    def explicit(self) -> PairScores:
        """One value per pair."""
        index = None if self._index is None else self._index.view(-1)
        return PairScores(self._values, None, index).explicit()


class PairTable:
    """Scores of the stored pairs alone."""

    def __init__(self, scores: PairScores):
        assert scores.pairs is not None
        self.values, self.pairs = scores.values, scores.pairs
        self.nbytes = 0  # views of the likelihood's own memory

    def explicit(self) -> PairScores:
        """One value per pair."""
        return PairScores(self.values, self.pairs)


def make_table(scores: PairScores, n_codes: int) -> FullTable | PairTable:
    """The scores of one mixture code, ready to be drawn from."""
    return FullTable(scores, n_codes) if scores.pairs is None else PairTable(scores)


def uniform_numbers(
    generator: torch.Generator, shape: Sequence[int], device: torch.device
) -> Tensor:
    """Numbers in [0, 1), of shape [*shape, 2], on `device`; drawn on the generator's own."""
    drawn = torch.rand(*shape, 2, generator=generator, dtype=torch.float64, device=generator.device)
    return drawn.to(device, _precise(device))


def draw(log_p1: Tensor, log_p2: Tensor, scores: PairScores, uniform: Tensor) -> Draw:
    """One pair of codes for each of N candidates.

    Args:
        log_p1: [N, K] log-probabilities of the first source's next code.
        log_p2: [N, K] of the second source's.
        scores: the pairs' log-likelihoods.
        uniform: [N, 2], see `uniform_numbers`.
    """
    table = make_table(scores, log_p1.shape[1])
    found = draw_chunks([table], log_p1[None], log_p2[None], uniform[None])
    lost = None if found.lost is None else found.lost[0]
    return Draw(found.first[0], found.second[0], found.score[0], found.log_total[0], lost)


def draw_chunks(
    tables: Sequence[FullTable | PairTable], log_p1: Tensor, log_p2: Tensor, uniform: Tensor
) -> Draw:
    """One pair of codes for each of N candidates of B chunks, [B, N].

    Args:
        tables: of the chunks' mixture codes.
        log_p1: [B, N, K] log-probabilities of the first source's next code.
        log_p2: [B, N, K] of the second source's.
        uniform: [B, N, 2].
    """
    full = [table for table in tables if isinstance(table, FullTable)]
    stored = [table for table in tables if isinstance(table, PairTable)]
    if not stored:
        return _draw_full(full, log_p1, log_p2, uniform)
    if not full:
        return _draw_stored(stored, log_p1, log_p2, uniform)
    singly = [
        draw_chunks([table], log_p1[b : b + 1], log_p2[b : b + 1], uniform[b : b + 1])
        for b, table in enumerate(tables)
    ]
    return _joined(singly)


def _joined(parts: Sequence[Draw]) -> Draw:
    """The draws of successive chunks as one."""
    first, second, score, log_total = (
        torch.cat(field) for field in zip(*(part[:4] for part in parts), strict=True)
    )
    lost = [part.first < 0 if part.lost is None else part.lost for part in parts]
    asked = all(part.lost is None for part in parts)
    return Draw(first, second, score, log_total, None if asked else torch.cat(lost))


def _draw_full(
    tables: Sequence[FullTable], log_p1: Tensor, log_p2: Tensor, uniform: Tensor
) -> Draw:
    """The two-stage draw."""
    p2 = _exp(log_p2)
    sums = torch.stack([p @ table.weights.T for p, table in zip(p2, tables, strict=True)])
    first, log_mass = categorical(log_p1 + sums.log(), uniform[..., 0])
    rows = torch.stack([table.rows(z1) for z1, table in zip(first, tables, strict=True)])
    second, _ = categorical(rows + log_p2, uniform[..., 1])
    score = rows.gather(2, second.unsqueeze(2)).squeeze(2)
    maximum = torch.stack([table.maximum for table in tables]).unsqueeze(1)
    # What is taken for zero in W, p2 or their products is some K * e^-87 in all.
    lost = ~(log_mass > _LOST)
    drawn = Draw(first, second, score, log_mass + maximum, lost)
    if log_p1.device.type != "cpu":  # asking would wait for the device
        return drawn
    return redraw(drawn, tables, log_p1, log_p2, uniform)


def redraw(
    drawn: Draw,
    tables: Sequence[FullTable | PairTable],
    log_p1: Tensor,
    log_p2: Tensor,
    uniform: Tensor,
) -> Draw:
    """The draw with its lost candidates drawn from the explicit joint; arguments as before."""
    if drawn.lost is None:
        return drawn
    for b, n in drawn.lost.nonzero().tolist():
        one = slice(n, n + 1)
        scores = tables[b].explicit()
        again = draw_joint(log_p1[b, one], log_p2[b, one], scores, uniform[b, one])
        for field, value in zip(drawn[:4], again[:4], strict=True):
            field[b, n] = value[0]
    return drawn._replace(lost=None)


def _draw_stored(
    tables: Sequence[PairTable], log_p1: Tensor, log_p2: Tensor, uniform: Tensor
) -> Draw:
    """The draw among stored pairs; all chunks at once, padded to the longest list of pairs."""
    batch, candidates, n_codes = log_p1.shape
    blocks = -(-max(1, *(len(t.values) for t in tables)) // _BLOCK)
    size = max(1, _ENTRIES // (blocks * _BLOCK * candidates))
    if size < batch:  # some chunks at a time
        parts = [
            _draw_stored(
                tables[i : i + size], *(x[i : i + size] for x in (log_p1, log_p2, uniform))
            )
            for i in range(0, batch, size)
        ]
        return Draw(*(torch.cat(part) for part in zip(*(p[:4] for p in parts), strict=True)))
    length = blocks * _BLOCK
    values = torch.stack(
        [F.pad(t.values, (0, length - len(t.values)), value=-math.inf) for t in tables]
    )  # [B, P]
    pairs = torch.stack([F.pad(t.pairs, (0, length - t.pairs.shape[1])) for t in tables])
    # Candidates last: a pair's probabilities are then read as one contiguous row of N numbers.
    offset = torch.arange(batch, device=pairs.device).unsqueeze(1) * n_codes
    joint = _by_code(log_p1).index_select(0, (pairs[:, 0] + offset).view(-1))
    joint += _by_code(log_p2).index_select(0, (pairs[:, 1] + offset).view(-1))
    joint = joint.view(batch, length, candidates).add_(values.unsqueeze(2))
    largest = joint.amax(1).clamp_min(torch.finfo(joint.dtype).min)  # [B, N]
    weights = _exp(joint.sub_(largest.unsqueeze(1))).view(batch, blocks, _BLOCK, candidates)
    # By inversion in two stages, the block and then the pair in it.
    precise = _precise(joint.device)
    in_block = weights.sum(2, dtype=precise).transpose(1, 2)  # [B, N, blocks]
    block, total, rest = _invert(in_block, uniform[..., 0])
    rows = (torch.arange(batch, device=block.device).unsqueeze(1), block, slice(None))
    inside = weights[(*rows, torch.arange(candidates, device=block.device))]  # [B, N, _BLOCK]
    within = _invert(inside, rest)[0]
    chosen = block * _BLOCK + within  # [B, N]
    first, second = (pairs[:, i].gather(1, chosen) for i in range(2))
    log_total = largest + total.log().to(largest.dtype)
    return Draw(first, second, values.gather(1, chosen), log_total)


def _by_code(log_p: Tensor) -> Tensor:
    """[B, N, K] to [B * K, N]."""
    return log_p.transpose(1, 2).reshape(-1, log_p.shape[1])


def draw_joint(log_p1: Tensor, log_p2: Tensor, scores: PairScores, uniform: Tensor) -> Draw:
    """The same draw from the explicit joint, in float64 where the device has it.

    Slow, and right whatever the probabilities; arguments as in `draw`.
    """
    precise = _precise(log_p1.device)
    scores = scores.explicit()
    values = scores.values.to(precise)
    size = max(1, _ENTRIES // max(1, len(values)))
    chosen, totals = [], []
    for i in range(0, len(log_p1), size):
        part = slice(i, i + size)
        joint = log_joint(
            log_p1[part].to(precise), log_p2[part].to(precise), PairScores(values, scores.pairs)
        )
        found, total = categorical(joint, uniform[part, 0])
        chosen.append(found)
        totals.append(total)
    flat = torch.cat(chosen)
    if scores.pairs is None:
        first, second = flat // log_p2.shape[1], flat % log_p2.shape[1]
    else:
        first, second = scores.pairs[0][flat], scores.pairs[1][flat]
    return Draw(first, second, scores.values[flat], torch.cat(totals).to(log_p1.dtype))


def log_joint(log_p1: Tensor, log_p2: Tensor, scores: PairScores) -> Tensor:
    """The un-normalised log-posterior of every pair, explicitly: [N, P], P = K * K without pairs.

    Args:
        log_p1: [N, K], the first source.
        log_p2: [N, K], the second.
        scores: the pairs' log-likelihoods.
    """
    scores = scores.explicit()
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


def categorical(log_weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [...] drawn with probability ~ exp(log_weights [..., P]), and log sum exp, [...].

    By inversion of the cumulated weights, at `uniform` [...] of their sum. The sums are in float64
    (where the device has it), so that no entry gains or loses by its place.
    """
    largest = log_weights.amax(-1, keepdim=True).clamp_min(torch.finfo(log_weights.dtype).min)
    index, total, _ = _invert(_exp(log_weights - largest), uniform)
    return index, largest.squeeze(-1) + total.log().to(largest.dtype)


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Index [...] of weights [..., P] at `uniform` of their sum, the sum, what is left of uniform.

    What is left is again uniform in [0, 1): the place within the chosen entry.
    """
    cumulated = weights.cumsum(-1, dtype=_precise(weights.device))
    total = cumulated[..., -1:].contiguous()
    target = uniform.unsqueeze(-1).to(cumulated.dtype) * total
    # `right` skips entries of weight zero; rounding must not lead beyond the last positive one.
    index = torch.searchsorted(cumulated, target, right=True)
    index = torch.minimum(index, torch.searchsorted(cumulated, total))
    weight = weights.gather(-1, index).to(cumulated.dtype)
    rest = (target - cumulated.gather(-1, index)) / weight + 1
    return index.squeeze(-1), total.squeeze(-1), rest.squeeze(-1).clamp(0, 1)


def _exp(x: Tensor) -> Tensor:
    """exp, with zeros in place of what would be subnormal: those numbers are slow to compute."""
    return F.threshold(x.clamp_min(_SMALLEST).exp_(), 2e-38, 0.0, inplace=True)


def _precise(device: torch.device) -> torch.dtype:
    """float64, which MPS alone does not have."""
    return torch.float32 if device.type == "mps" else torch.float64
