"""Exact draws from one step's joint posterior, p(z1, z2) ~ p1(z1) exp(scores[z1, z2]) p2(z2).

Every draw takes two uniform numbers per candidate on all code paths, so that a candidate's codes
do not depend on the other candidates.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.inverse_cdf import invert, precise
from jukebox_core.prior.kernels import find_kernels
from jukebox_core.separation.likelihood import FactoredScores, PairScores, Scores

Bound = Callable[[Tensor, Tensor], Tensor]
"""Maps log joints [n, P] and their total log-mass [n] to the smallest kept log joint [n]."""

_SMALLEST = -87.0  # logarithm; smaller values count as zero
_LOST = -63.0  # log-mass below which values counted as zero may matter in float32
_ENTRIES = 1 << 24  # of an explicit joint, held at a time
_PART = 1 << 18  # scores whose weights are computed at a time: they stay in the cache
_LOOSE = -20.0  # logarithm of the largest weight below which a bound of the scores is no maximum
_TINY = 1e-37  # smaller values are subnormal in float32, or almost


class Draw(NamedTuple):
    """Drawn pairs, all fields [...]: codes, their scores, and log sum p1 p2 exp(scores).

    lost: candidates whose draw may be wrong because float32 lost mass, if checking would have
    waited for the device; None: no draw is wrong.
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
        self._n_codes = n_codes
        # All pairs impossible: a finite maximum keeps the weights at 0 instead of NaN.
        least = torch.finfo(self._values.dtype).min
        self.maximum = self._values.amax().clamp_min(least)
        weights = torch.empty_like(self._values)
        for part, out in zip(self._values.split(_PART), weights.split(_PART), strict=True):
            _exp(torch.sub(part, self.maximum, out=out))
        self.weights = weights.view(n_codes, n_codes)

    @property
    def nbytes(self) -> int:
        """Memory of the table."""
        return self._values.nbytes + self.weights.nbytes

    def sums(self, p2: Tensor) -> Tensor:
        """W p2 of p2 [N, K], [N, K]."""
        return p2 @ self.weights.T

    def second(self, first: Tensor, log_p2: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """The code drawn from W[first] * p2 and the score of the pair, [N] each."""
        rows = self.rows(first)
        code, _ = categorical(rows + log_p2, uniform)
        return code, rows.gather(1, code.unsqueeze(1)).squeeze(1)

    def rows(self, first: Tensor) -> Tensor:
        """Scores of the pairs (first, any), [N, K]."""
        return self._values.view(self._n_codes, self._n_codes)[first]

    def at(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores of the pairs (first, second), [N]."""
        return self._values[first * self._n_codes + second]

    def explicit(self) -> PairScores:
        """One value per pair."""
        return PairScores(self._values)


class FactoredTable(FullTable):
    """W of factored scores, in one pass over the factors; the scores are log W + maximum.

    `maximum` is an upper bound of the scores, from the factors' own maxima.
    """

    def __init__(self, scores: FactoredScores, weights: Tensor, maximum: float):
        """Take what `_factored` makes."""
        self._scores = scores
        self._n_codes = scores.n_codes
        self.weights = weights
        self.maximum = weights.new_tensor(maximum)

    @property
    def nbytes(self) -> int:
        """Memory of the table; factors are shared with other tables."""
        return self.weights.nbytes

    def rows(self, first: Tensor) -> Tensor:
        """Scores of the pairs (first, any), [N, K]; -inf for what counts as zero."""
        return self.weights[first].log_().add_(self.maximum)

    def at(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores of the pairs (first, second), [N]; of no weight as well."""
        return self._scores.at(first * self._n_codes + second)

    def explicit(self) -> PairScores:
        """One value per pair, of the terms: no weight is used."""
        return self._scores.explicit()


class PairTable:
    """Scores of stored pairs only: W is sparse, a row for every z1.

    The two-stage draw is the same as in `FullTable`, over the pairs of a row instead of all K.
    """

    def __init__(self, scores: PairScores, n_codes: int):
        assert scores.pairs is not None
        self.values, self.pairs = scores.values, scores.pairs
        if not len(self.values):  # nothing is possible: store one impossible pair
            self.values = self.values.new_full((1,), -math.inf)
            self.pairs = self.pairs.new_zeros(2, 1)
        values, (first, second) = self.values, self.pairs
        if first.device.type != "cpu" or bool((first.diff() < 0).any()):
            order = first.argsort(stable=True)
            values, first, second = values[order], first[order], second[order]
        self.maximum = values.amax().clamp_min(torch.finfo(values.dtype).min)
        self._values, self._first, self._second = values, first, second
        codes = torch.arange(n_codes + 1, device=first.device)
        self._starts = torch.searchsorted(first.contiguous(), codes)
        lengths = self._starts.diff()
        # On other devices, computing the longest row would wait for the device.
        self._longest = int(lengths.max()) if first.device.type == "cpu" else n_codes
        weights = _exp(values - self.maximum)
        with warnings.catch_warnings():  # that sparse tensors are a beta feature
            warnings.simplefilter("ignore")
            self._weights = torch.sparse_csr_tensor(
                self._starts, second, weights, (n_codes, n_codes), check_invariants=False
            )
        self.nbytes = 3 * values.nbytes

    def sums(self, p2: Tensor) -> Tensor:
        """W p2 of p2 [N, K], [N, K]."""
        return (self._weights @ p2.T).T

    def second(self, first: Tensor, log_p2: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """The code drawn from W[first] * p2 and the score of the pair, [N] each."""
        start, stop = self._starts[first], self._starts[first + 1]
        place = start.unsqueeze(1) + torch.arange(self._longest, device=first.device)
        inside = place < stop.unsqueeze(1)
        place = place.clamp(max=len(self._values) - 1)  # [N, longest]
        scores = self._values[place].masked_fill(~inside, -math.inf)
        codes = self._second[place]
        chosen, _ = categorical(scores + log_p2.gather(1, codes), uniform)
        score, code = (x.gather(1, chosen.unsqueeze(1)).squeeze(1) for x in (scores, codes))
        return code, score

    def explicit(self) -> PairScores:
        """One value per pair."""
        return PairScores(self.values, self.pairs)


class ConstantTable(FullTable):
    """The table of no pair likelihood: every pair has the score 0, so the sources are independent.

    The K x K weights exist only where a search asks for them.
    """

    def __init__(self, n_codes: int, device: torch.device):
        self._n_codes = n_codes
        self.maximum = torch.zeros((), device=device)

    @property
    def _values(self) -> Tensor:  # type: ignore[override]
        return self.maximum.expand(self._n_codes**2)

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """Ones, [K, K]."""
        return self.maximum.new_ones(self._n_codes, self._n_codes)

    @property
    def nbytes(self) -> int:
        """None."""
        return 0

    def sums(self, p2: Tensor) -> Tensor:
        """The mass of p2 [N, K] for every z1, [N, K]."""
        return p2.sum(1, keepdim=True).expand_as(p2)

    def rows(self, first: Tensor) -> Tensor:
        """Zeros, [N, K]."""
        return self.maximum.expand(len(first), self._n_codes)


def make_table(scores: Scores, n_codes: int) -> FullTable | PairTable:
    """The scores of one mixture code, ready to be drawn from."""
    if isinstance(scores, FactoredScores):
        return _factored(scores) or FullTable(scores.explicit(), n_codes)
    return FullTable(scores, n_codes) if scores.pairs is None else PairTable(scores, n_codes)


def _factored(scores: FactoredScores) -> FactoredTable | None:
    """The table of the factors' product; None where that could lose what is not negligible.

    So could a bound far above all scores, and a power of what underflows. On other devices than a
    CPU, asking for either would wait for the device.
    """
    tables = (scores.power and scores.power.rest, scores.gathered and scores.gathered.lookup)
    if any(table is not None and table.device.type != "cpu" for table in tables):
        return None
    bound = 0.0  # of the scores, pairs stored apart
    power, gathered, stored = scores.power, scores.gathered, scores.stored
    if power is not None:
        largest = float(power.first.max() + power.second.max())
        least = float(power.first.min() + power.second.min()) / largest
        if least * power.least < _TINY:
            return None
        bound += power.exponent * math.log(largest)
        power = power._replace(first=power.first / largest, second=power.second / largest)
    if gathered is not None:
        top = gathered.values.max().clamp_min(torch.finfo(gathered.values.dtype).min)
        bound += float(top)
        gathered = gathered._replace(values=_exp(gathered.values - top))
    maximum = bound
    if stored is not None and len(stored.scores):
        maximum = max(bound, float(stored.scores.max()))
    scale = math.exp(bound - maximum)
    weights, largest = find_kernels().weigh_pairs(
        scores.n_codes, power and power[:4], gathered, scale
    )
    if stored is not None and len(stored.scores):
        patch = _exp((stored.scores - maximum).float())
        weights.view(-1)[stored.pairs] = patch
        largest = max(largest, float(patch.max()))
    return FactoredTable(scores, weights, maximum) if largest > math.exp(_LOOSE) else None


def uniform_numbers(
    generator: torch.Generator, shape: Sequence[int], device: torch.device, each: int = 2
) -> Tensor:
    """Numbers in [0, 1), of shape [*shape, each], on `device`; drawn on the generator's own."""
    place = generator.device
    drawn = torch.rand(*shape, each, generator=generator, dtype=torch.float64, device=place)
    return drawn.to(device, precise(device))


def draw(log_p1: Tensor, log_p2: Tensor, scores: Scores, uniform: Tensor) -> Draw:
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
    tables: Sequence[FullTable | PairTable],
    log_p1: Tensor,
    log_p2: Tensor,
    uniform: Tensor,
    exact: bool = False,
) -> Draw:
    """One pair of codes for each of N candidates of B chunks, [B, N].

    Args:
        tables: of the chunks' mixture codes.
        log_p1: [B, N, K] log-probabilities of the first source's next code.
        log_p2: [B, N, K] log-probabilities of the second source's next code.
        uniform: [B, N, 2].
        exact: wait for the device and draw lost candidates again, see `redraw`.
    """
    p2 = _exp(log_p2.clone())
    sums = torch.stack([table.sums(p) for p, table in zip(p2, tables, strict=True)])
    first, log_mass = categorical(log_p1 + sums.log(), uniform[..., 0])
    second, score = _second_codes(tables, first, log_p2, uniform[..., 1])
    maximum = torch.stack([table.maximum for table in tables]).unsqueeze(1)
    # What is taken for zero in W, p2 or their products is some K * e^-87 in all.
    lost = ~(log_mass > _LOST)
    drawn = Draw(first, second, score, log_mass + maximum, lost)
    if log_p1.device.type != "cpu" and not exact:  # asking would wait for the device
        return drawn
    return redraw(drawn, tables, log_p1, log_p2, uniform)


def _second_codes(
    tables: Sequence[FullTable | PairTable], first: Tensor, log_p2: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """The second code of every pair and the pair's score, [B, N] each."""
    if all(isinstance(table, FullTable) for table in tables):
        rows = torch.stack([t.rows(z1) for t, z1 in zip(tables, first, strict=True)])  # type: ignore[union-attr]
        second, _ = categorical(rows + log_p2, uniform)
        return second, rows.gather(2, second.unsqueeze(2)).squeeze(2)
    found = [t.second(*x) for t, *x in zip(tables, first, log_p2, uniform, strict=True)]
    return torch.stack([code for code, _ in found]), torch.stack([score for _, score in found])


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
    lost = drawn.lost.nonzero().tolist()
    scores = {b: tables[b].explicit() for b, _ in lost}  # a pass over all pairs each
    for b, n in lost:
        one = slice(n, n + 1)
        again = draw_joint(log_p1[b, one], log_p2[b, one], scores[b], uniform[b, one])
        for field, value in zip(drawn[:4], again[:4], strict=True):
            field[b, n] = value[0]
    return drawn._replace(lost=None)


def draw_joint(
    log_p1: Tensor,
    log_p2: Tensor,
    scores: Scores,
    uniform: Tensor,
    bound: Bound | None = None,
) -> Draw:
    """The same draw from the explicit joint, in float64 if the device has it.

    Slow, and correct for any probabilities.

    Args:
        log_p1: [N, K] log-probabilities of the first source's next code.
        log_p2: [N, K] log-probabilities of the second source's next code.
        scores: the pairs' log-likelihoods.
        uniform: [N, 2]; the first of the two numbers is used.
        bound: the smallest log joint that may be drawn; None: all pairs may be drawn.
    """
    dtype = precise(log_p1.device)
    scores = scores.explicit()
    values = PairScores(scores.values.to(dtype), scores.pairs)
    size = max(1, _ENTRIES // max(1, len(scores.values)))
    indices, totals = [], []
    for p1, p2, u in zip(*(x.split(size) for x in (log_p1, log_p2, uniform)), strict=True):
        joint = log_joint(p1.to(dtype), p2.to(dtype), values)
        if bound is not None:
            least = bound(joint, joint.logsumexp(1))
            joint = joint.masked_fill(joint < least.unsqueeze(1), -math.inf)
        index, total = categorical(joint, u[:, 0])
        indices.append(index)
        totals.append(total)
    index = torch.cat(indices)
    if scores.pairs is None:
        first, second = index // log_p2.shape[1], index % log_p2.shape[1]
    else:
        first, second = scores.pairs[:, index].long()
    return Draw(first, second, scores.values[index], torch.cat(totals).to(log_p1.dtype))


def log_joint(log_p1: Tensor, log_p2: Tensor, scores: Scores) -> Tensor:
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
    index, total = invert(_exp(log_weights - largest), uniform)
    return index, largest.squeeze(-1) + total.log().to(largest.dtype)


def _exp(x: Tensor) -> Tensor:
    """Exponentiate in place, zeros for what would be subnormal: slow numbers to compute."""
    return F.threshold(x.clamp_min_(_SMALLEST).exp_(), 2e-38, 0.0, inplace=True)
