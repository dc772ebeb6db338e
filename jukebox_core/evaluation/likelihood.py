"""How much a likelihood knows of held-out triples, before anything is separated with it.

bits per code: the mean of -log2 p(m | z1, z2), where p is the likelihood normalised over the
mixture codes (the exponent lambda left out). The entropy of a code that is guessed blindly is
log2 K.

bits about the pair: the mean of log2 p(m | z1, z2)^lambda / E p(m | z1', z2')^lambda, the
expectation over pairs z1', z2' drawn apart from each other: what the mixture's code, through the
likelihood, says about which pair it was. With a true model and lambda 1 it is the mutual
information of code and pair; a lambda that lowers it says more than the data do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jukebox_core.separation.likelihood import Likelihood, PairScores

__all__ = ["Information", "PairLogs", "pair_logs"]

_IMPOSSIBLE = -1e30


class Information(NamedTuple):
    """Of n held-out triples.

    bits_per_code: inf where an observed code had probability zero. impossible: the share of those.
    pair_bits: {lambda: bits about the pair}, over the triples that were possible.
    """

    bits_per_code: float
    impossible: float
    pair_bits: dict[float, float]
    n: int


class PairLogs(NamedTuple):
    """log p(m | z1, z2), normalised over all codes m, float64; about -1e30 where impossible.

    observed: [F], of the held-out triples. others: [F, R], of their mixture codes given R pairs
    that were drawn apart from them.
    """

    observed: Tensor
    others: Tensor

    def information(self, weights: Sequence[float] = (1.0,)) -> Information:
        """Mean bits; `weights` are the lambdas to take the bits about the pair at."""
        possible = self.observed > _IMPOSSIBLE / 2
        bits = -self.observed.mean().item() / math.log(2) if possible.all() else math.inf
        own, others = self.observed[possible], self.others[possible]
        pair_bits = {}
        for weight in weights:
            # The pair itself is one of those it is compared with: the ratio is bounded.
            powers = torch.cat([own.unsqueeze(1), others], 1) * weight
            expected = powers.logsumexp(1) - math.log(powers.shape[1])
            pair_bits[weight] = (weight * own - expected).mean().item() / math.log(2)
        return Information(bits, 1 - possible.double().mean().item(), pair_bits, len(possible))


def pair_logs(
    likelihood: Likelihood, first: Tensor, second: Tensor, mixture: Tensor, others: Tensor
) -> PairLogs:
    """Normalise a likelihood over the mixture codes, at some pairs.

    Args:
        likelihood: at lambda 1.
        first: codes of the first source of F held-out triples, int64 [F].
        second: those of the second source, [F].
        mixture: those of the mixture, [F].
        others: pairs to compare with, int64 [2, R].
    """
    k = likelihood.n_codes
    wanted = torch.cat([first * k + second, others[0] * k + others[1]])  # [F + R]
    count = len(first)
    logs = torch.empty(k, len(wanted), dtype=torch.float64)
    for code in range(k):
        logs[code] = _at(likelihood.scores(code), wanted, k)
    impossible = logs < _IMPOSSIBLE / 2
    logs -= logs.logsumexp(0)
    logs[impossible] = _IMPOSSIBLE  # also of pairs that no code is possible for
    at = torch.arange(count)
    return PairLogs(logs[mixture, at], logs[mixture, count:])


def _at(scores: PairScores, wanted: Tensor, k: int) -> Tensor:
    """The scores of some pairs, given as first * K + second."""
    if scores.pairs is None:
        where = wanted if scores.lookup is None else scores.lookup.cpu()[wanted]
        return scores.values.cpu()[where].double()
    table = torch.full((k * k,), _IMPOSSIBLE, dtype=torch.float64)
    table[(scores.pairs[0] * k + scores.pairs[1]).cpu()] = scores.values.double().cpu()
    return table[wanted]
