"""Bits per code of a likelihood on held-out triples.

bits per code: the mean of -log2 p(m | z1, z2), where p is the likelihood normalised over the
mixture codes (the exponent lambda left out). The entropy of a code that is guessed blindly is
log2 K.

bits about the pair: the mean of log2 p(m | z1, z2)^lambda / E p(m | z1', z2')^lambda, the
expectation over pairs z1', z2' drawn apart from each other: what the mixture's code, through the
likelihood, tells which pair it was. With a true model and lambda 1 it is the mutual
information of code and pair; a lambda that lowers it is overconfident.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jukebox_core.separation.likelihood import FactoredScores, Likelihood, Scores

_IMPOSSIBLE = -1e30


class Information(NamedTuple):
    """Scores on n held-out triples.

    bits_per_code: inf where an observed code had probability zero. impossible: the share of those.
    pair_bits: {lambda: bits about the pair}, over the triples that were possible.
    """

    bits_per_code: float
    impossible: float
    pair_bits: dict[float, float]
    n: int


def held_out_bits(
    likelihood: Likelihood,
    first: Tensor,
    second: Tensor,
    mixture: Tensor,
    others: Tensor,
    weights: Sequence[float] = (1.0,),
) -> Information:
    """Mean bits of a likelihood, normalised over the mixture codes in float64.

    Args:
        likelihood: at lambda 1.
        first: codes of the first source of F held-out triples, int64 [F].
        second: codes of the second source, [F].
        mixture: codes of the mixture, [F].
        others: pairs to compare with, int64 [2, R].
        weights: the lambdas to take the bits about the pair at.
    """
    k, count = likelihood.n_codes, len(first)
    pairs = torch.cat([first * k + second, others[0] * k + others[1]])  # [F + R]
    logs = torch.empty(k, len(pairs), dtype=torch.float64)
    for code in range(k):
        logs[code] = _at(likelihood.scores(code), pairs, k)
    impossible = logs < _IMPOSSIBLE / 2
    logs -= logs.logsumexp(0)
    logs[impossible] = _IMPOSSIBLE  # also of pairs that no code is possible for
    observed = logs[mixture, torch.arange(count)]  # [F]
    possible = observed > _IMPOSSIBLE / 2
    bits = -observed.mean().item() / math.log(2) if possible.all() else math.inf
    own, compared = observed[possible], logs[mixture[possible], count:]  # [F'], [F', R]
    del logs, impossible  # large
    pair_bits = {}
    for weight in weights:
        # The pair itself is one of those it is compared with: the ratio is bounded.
        powers = torch.cat([own.unsqueeze(1), compared], 1) * weight
        expected = powers.logsumexp(1) - math.log(powers.shape[1])
        pair_bits[weight] = (weight * own - expected).mean().item() / math.log(2)
    return Information(bits, 1 - possible.double().mean().item(), pair_bits, count)


def _at(scores: Scores, pairs: Tensor, k: int) -> Tensor:
    """The scores of some pairs, given as first * K + second."""
    if isinstance(scores, FactoredScores):
        return scores.at(pairs.to(scores.device)).cpu().double()
    if scores.pairs is None:
        return scores.values.cpu()[pairs].double()
    table = torch.full((k * k,), _IMPOSSIBLE, dtype=torch.float64)
    table[(scores.pairs[0] * k + scores.pairs[1]).cpu()] = scores.values.double().cpu()
    return table[pairs]
