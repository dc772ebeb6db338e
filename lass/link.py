"""The partial sums of any latent space: how often a pair of codes gave the code of its sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jukebox_core.separation.chain import ENTRIES
from jukebox_core.separation.likelihood import PairScores
from lass.counts import Counts
from lass.likelihood import SmoothedLikelihood
from lass.smoothing import Base


class CountLink:
    """p(s | first, second) by smoothed counts of (first, second, s): a `separation.chain.Link`.

    (c[i, j, s] + a q(s | i, j)) / (c[i, j] + a), with the base distribution q and the concentration
    a of `SmoothedLikelihood`. The exponent of the mixture's likelihood has no part in it: s is
    summed out, so its distribution must be normalised.
    """

    def __init__(
        self, counts: Counts, base: Base, concentration: float, device: torch.device | str = "cpu"
    ):
        """Sum the counts of every pair.

        Args:
            counts: of (sum so far, next source, sum of both).
            base: q(s | first, second).
            concentration: number of pseudo-observations per pair.
            device: of the scores.

        Raises:
            ValueError: the concentration is not positive, or counts and base have different numbers
                of codes.
        """
        self._smoothed = SmoothedLikelihood(
            counts, base, 1.0, concentration=concentration, device=device
        )
        k = self.n_codes = counts.n_codes
        self._base = base
        first, second, sums = (
            torch.from_numpy(codes).long().to(device)
            for codes in (counts.first, counts.second, counts.mixture)
        )
        seen = torch.from_numpy(counts.counts).to(device)
        pairs = first * k + second
        totals = torch.zeros(k * k, dtype=torch.int64, device=device).index_add_(0, pairs, seen)
        self._first, self._second, self._sums = first, second, sums
        self._shares = seen / (totals[pairs] + concentration)  # [P]
        self._rest = (concentration / (totals + concentration)).view(k, k)

    def scores(self, code: int) -> PairScores:
        """Log p(code | first, second) of all pairs."""
        return self._smoothed.scores(code)

    def message(self, first: Tensor, second: Tensor) -> Tensor:
        """The mass of every code of the sum, [N, K]."""
        rest = self._rest.to(first.dtype)
        total = self._base.expected(first, second, rest).T.contiguous()  # [K, N]
        rows, columns = first.T.contiguous(), second.T.contiguous()
        parts = (self._first, self._second, self._sums, self._shares.to(first.dtype))
        size = max(1, ENTRIES // len(first))
        for i, j, s, share in zip(*(x.split(size) for x in parts), strict=True):
            total.index_add_(0, s, rows[i] * columns[j] * share.unsqueeze(1))
        return total.T

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the smoothing."""
        return self._smoothed.settings
