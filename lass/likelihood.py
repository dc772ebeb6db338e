"""LASS's likelihood: how often a pair of source codes gave a mixture code (LASS, eq. 9)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jukebox_core.inverse_cdf import precise
from jukebox_core.separation.likelihood import (
    FactoredScores,
    Gathered,
    PairScores,
    Power,
    Stored,
    check_exponent,
    check_smoothing,
)
from jukebox_core.separation.settings import Settings
from lass.counts import Counts, symmetrise
from lass.smoothing import Base, MakeBase, check_base

EXPONENT = 3.0
SMOOTHING = 3.0


class CountLikelihood:
    """exponent * log(c[z1, z2, m] / sum_m c[z1, z2, m]) over the pairs counted with m.

    Pairs never counted with a mixture code have probability zero. For a mixture code that was never
    counted at all, every pair would be impossible: instead, all pairs score zero, so that the
    priors decide, and `unseen` is incremented.
    """

    def __init__(
        self,
        counts: Counts,
        exponent: float = EXPONENT,
        *,
        symmetric: bool = True,
        device: torch.device | str = "cpu",
    ):
        """Normalise the counts.

        Args:
            counts: class-ordered, the first source of the priors first.
            exponent: lambda, the exponent of the likelihood.
            symmetric: count every triple for both orders of the sources, as LASS does.
            device: of the scores.

        Raises:
            ValueError: the exponent is not positive.
        """
        check_exponent("exponent", exponent)
        if symmetric:
            counts = symmetrise(counts)
        self.n_codes = counts.n_codes
        self.exponent = exponent
        self.symmetric = symmetric
        self.unseen = 0
        """Number of queries for a mixture code that was never counted."""
        pairs = np.stack([counts.first, counts.second]).astype(np.int64)
        index = pairs[0] * counts.n_codes + pairs[1]
        totals = np.bincount(index, weights=counts.counts, minlength=counts.n_codes**2)  # [K * K]
        log_p = np.log(counts.counts / totals[index])
        self._values = torch.from_numpy(exponent * log_p).float().to(device)  # [P]
        self._pairs = torch.from_numpy(pairs).to(device)  # [2, P]
        self._offsets = counts.offsets.tolist()
        self._flat: Tensor | None = None

    def is_seen(self, mixture_code: int) -> bool:
        """Whether the mixture code was counted at all."""
        return self._offsets[mixture_code + 1] > self._offsets[mixture_code]

    def scores(self, mixture_code: int) -> PairScores:
        """The stored pairs [2, P] of a mixture code and their scores [P]."""
        start, stop = self._offsets[mixture_code], self._offsets[mixture_code + 1]
        if start == stop:
            self.unseen += 1
            if self._flat is None:
                self._flat = self._values.new_zeros(self.n_codes**2)
            return PairScores(self._flat)
        return PairScores(self._values[start:stop], self._pairs[:, start:stop])

    @property
    def settings(self) -> dict[str, Any]:
        """Exponent, no smoothing, symmetry."""
        return {"exponent": self.exponent, "smoothing": 0.0, "symmetric": self.symmetric}


class SmoothedLikelihood:
    """Counts with Dirichlet smoothing: rarely counted pairs fall back on a base distribution.

    exponent * log((c[z1, z2, m] + a q(m | z1, z2)) / (c[z1, z2] + a)) over all pairs, with the base
    distribution q and the concentration a.
    No pair has probability zero or one, even if it or the mixture code was never counted.
    """

    def __init__(
        self,
        counts: Counts,
        base: Base,
        exponent: float,
        *,
        concentration: float = SMOOTHING,
        symmetric: bool = False,
        device: torch.device | str = "cpu",
    ):
        """Sum the counts of every pair.

        Args:
            counts: class-ordered, the first source of the priors first.
            base: q(m | z1, z2).
            exponent: lambda, the exponent of the likelihood.
            concentration: number of pseudo-observations per pair; fractions are valid.
            symmetric: count every triple for both orders of the sources.
            device: of the scores.

        Raises:
            ValueError: exponent or concentration is not positive, or counts and base have different
                numbers of codes.
        """
        check_exponent("exponent", exponent)
        check_smoothing("concentration", concentration, or_none=False)
        check_base(base, counts)
        if symmetric:
            counts = symmetrise(counts)
        k = self.n_codes = counts.n_codes
        self.base = base
        self.exponent = exponent
        self.concentration = concentration
        self.symmetric = symmetric
        self._offsets = counts.offsets.tolist()
        seen = torch.from_numpy(counts.counts).double()
        first, second = (
            torch.from_numpy(codes.astype(np.int32)) for codes in (counts.first, counts.second)
        )
        pairs = first.long() * k + second
        totals = torch.zeros(k * k, dtype=torch.float64).index_add_(0, pairs, seen)
        # The concentration is taken out of the logarithm: counts are stored as shares of it.
        rest = 1 / (totals / concentration + 1)
        self._least = float(rest.min())
        self._rest = rest.float().to(device)  # [K * K]
        self._first, self._second = first.to(device), second.to(device)  # [P]
        self._seen = (seen / concentration).float().to(device)  # [P]

    def scores(self, mixture_code: int) -> FactoredScores:
        """The scores of all pairs: those counted with the mixture code are stored apart."""
        first, second, gathered = self.base.factors(mixture_code)
        part = slice(self._offsets[mixture_code], self._offsets[mixture_code + 1])
        one, other, k = self._first[part], self._second[part], self.n_codes
        pairs, dtype = one.long() * k + other, precise(one.device)
        base = (first.index_select(0, one) + second.index_select(0, other)).to(dtype)
        if gathered is not None:
            base *= gathered.at(pairs).to(dtype).exp()
            gathered = Gathered(self.exponent * gathered.values, gathered.lookup)
        shares = (base + self._seen[part]) * self._rest.index_select(0, pairs)
        power = Power(first, second, self._rest, self.exponent, self._least)
        return FactoredScores(k, power, gathered, Stored(pairs, self.exponent * shares.log()))

    @property
    def settings(self) -> dict[str, Any]:
        """Exponent, smoothing, symmetry."""
        return {
            "exponent": self.exponent,
            "smoothing": self.concentration,
            **self.base.settings,
            "symmetric": self.symmetric,
        }


def counted_likelihood(
    counts: Counts,
    settings: Settings,
    base: MakeBase,
    device: torch.device | str = "cpu",
) -> CountLikelihood | SmoothedLikelihood:
    """The likelihood of counts with resolved settings.

    Args:
        counts: class-ordered, the first source of the priors first.
        settings: `exponent`, `smoothing` and `symmetric` are used.
        base: makes the base distribution; not called without smoothing.
        device: of the scores.

    Raises:
        ValueError: exponent or smoothing is out of range.
    """
    exponent = EXPONENT if settings.exponent is None else settings.exponent
    symmetric = bool(settings.symmetric)
    if not settings.smoothing:
        return CountLikelihood(counts, exponent, symmetric=symmetric, device=device)
    return SmoothedLikelihood(
        counts,
        base(symmetrise(counts) if symmetric else counts, device),
        exponent,
        concentration=settings.smoothing,
        symmetric=symmetric,
        device=device,
    )
