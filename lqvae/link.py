"""The partial sums of a linear latent space: the code of a sum is a function of two codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jukebox_core.separation.chain import Parts
from jukebox_core.separation.pair_groups import PairGroups
from lqvae.sums import check_sum_codes


class SumLink:
    """p(s | first, second) = 1 for s = sum_codes[first, second]: a `separation.chain.Link`."""

    def __init__(self, sum_codes: Tensor):
        """Sort the pairs by their sums.

        Args:
            sum_codes: [K, K], the code of the sum so far plus the next source, on the device of the
                messages.

        Raises:
            ValueError: a sum is not a code.
        """
        check_sum_codes("sum_codes", sum_codes)
        self.n_codes = len(sum_codes)
        self._groups = PairGroups.by_sum(sum_codes.flatten(), self.n_codes)

    def message(self, first: Tensor, second: Tensor) -> SumMessage:
        """The mass of the pairs of every sum."""
        return SumMessage(self._groups, first, second, self._groups.mass(first, second))


@dataclass(frozen=True)
class SumMessage:
    """A `separation.chain.Message`: the pairs of a sum, as probable as their codes."""

    groups: PairGroups
    first: Tensor
    second: Tensor
    mass: Tensor

    def parts(self, sums: Tensor, uniform: Tensor) -> Parts:
        """A pair of each of the sums."""
        first, second = self.groups.draw(sums, self.first, self.second, uniform[:, 0])
        return Parts(first, second, torch.zeros_like(uniform[:, 0]))
