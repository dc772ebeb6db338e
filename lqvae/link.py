"""The partial sums of a linear latent space: the code of a sum is a function of two codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jukebox_core.separation.chain import mass_of_sums
from jukebox_core.separation.likelihood import PairScores
from lqvae.sums import check_sum_codes


class SumLink:
    """p(s | first, second) = 1 for s = sum_codes[first, second]: a `separation.chain.Link`."""

    def __init__(self, sum_codes: Tensor):
        """Sort the pairs by their sums.

        Args:
            sum_codes: [K, K], the code of the sum so far plus the next source, on the device of the
                scores.

        Raises:
            ValueError: a sum is not a code.
        """
        check_sum_codes("sum_codes", sum_codes)
        self.n_codes = len(sum_codes)
        self._sums = sum_codes.flatten().long()
        order = self._sums.argsort(stable=True)
        self._pairs = torch.stack([order // self.n_codes, order % self.n_codes])  # [2, K * K]
        codes = torch.arange(self.n_codes + 1, device=order.device)
        self._offsets = torch.searchsorted(self._sums[order], codes).tolist()

    def scores(self, code: int) -> PairScores:
        """Zeros for the pairs whose sum is the code."""
        pairs = self._pairs[:, self._offsets[code] : self._offsets[code + 1]]
        return PairScores(torch.zeros(pairs.shape[1], device=pairs.device), pairs)

    def message(self, first: Tensor, second: Tensor) -> Tensor:
        """The mass of the pairs of every sum, [N, K]."""
        return mass_of_sums(first, second, self._sums)

    @property
    def settings(self) -> dict[str, Any]:
        """None."""
        return {}
