"""Pairs of codes in groups, such as all pairs with the same sum: their masses, and draws."""

from __future__ import annotations

import torch
from torch import Tensor

from jukebox_core.prior.kernels import Kernels, Pairs, TorchKernels, find_kernels


class PairGroups:
    """Groups of pairs (first, second) of codes, a group for every code."""

    def __init__(
        self, first: Tensor, second: Tensor, offsets: Tensor, shares: Tensor | None = None
    ):
        """Take pairs that are sorted by group.

        Args:
            first: first codes [P].
            second: second codes [P].
            offsets: [G + 1]; group g has the pairs from offsets[g] to offsets[g + 1].
            shares: of every pair [P], float64 where the device has it; None: ones.
        """
        first, second = first.int().contiguous(), second.int().contiguous()
        self._pairs = Pairs(first, second, offsets.long().contiguous(), shares)
        lengths = self._pairs.offsets.diff()
        self._some = (lengths > 0).long().argmax()  # a group that has pairs, if there are any
        on_cpu = first.device.type == "cpu"
        self._kernels: Kernels = find_kernels() if on_cpu else TorchKernels()

    @classmethod
    def by_sum(cls, sums: Tensor, n_codes: int, weights: Tensor | None = None) -> PairGroups:
        """All pairs, grouped by their sums.

        Args:
            sums: codes [K * K], of the pairs in row-major order.
            n_codes: K.
            weights: the pairs' shares [K, K]; None: ones.
        """
        order = sums.argsort(stable=True)
        codes = torch.arange(n_codes + 1, device=sums.device)
        offsets = torch.searchsorted(sums[order].contiguous(), codes)
        shares = None if weights is None else weights.flatten()[order]
        return cls(order // n_codes, order % n_codes, offsets, shares)

    def mass(self, one: Tensor, other: Tensor) -> Tensor:
        """Sums of one[n, first] other[n, second] shares over the pairs of every group, [N, G].

        Args:
            one: [N, K], float64 where the device has it.
            other: [N, K].
        """
        return self._kernels.pair_mass(self._pairs, one, other)

    def draw(
        self, groups: Tensor, one: Tensor, other: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A pair of each of the groups [N], with probability ~ one other shares; codes [N] each.

        Args:
            groups: [N]; one without pairs, which only what is impossible draws, gets any pair.
            one: [N, K].
            other: [N, K].
            uniform: [N], in [0, 1).
        """
        offsets = self._pairs.offsets
        if not len(self._pairs.first):
            return torch.zeros_like(groups), torch.zeros_like(groups)
        groups = torch.where(offsets[groups] < offsets[groups + 1], groups, self._some)
        place = self._kernels.draw_pairs(self._pairs, groups, one, other, uniform)
        return self._pairs.first[place].long(), self._pairs.second[place].long()
