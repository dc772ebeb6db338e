"""Pairs of codes in groups, such as all pairs with the same sum: their masses, and draws."""

from __future__ import annotations

import torch
from torch import Tensor

from jukebox_core.prior.kernels import Kernels, TorchKernels, find_kernels
from jukebox_core.separation.posterior import invert


class PairGroups:
    """Groups of pairs (first, second) of codes, a group for every code."""

    def __init__(self, first: Tensor, second: Tensor, offsets: Tensor):
        """Take pairs that are sorted by group.

        Args:
            first: first codes [P].
            second: second codes [P].
            offsets: [G + 1]; group g has the pairs from offsets[g] to offsets[g + 1].
        """
        self.first, self.second = first.int().contiguous(), second.int().contiguous()
        self.offsets = offsets.long().contiguous()
        self._bounds: list[int] = self.offsets.tolist()
        on_cpu = first.device.type == "cpu"
        self._kernels: Kernels = find_kernels() if on_cpu else TorchKernels()

    @classmethod
    def by_sum(cls, sums: Tensor, n_codes: int) -> PairGroups:
        """All pairs, grouped by their sums: codes [K * K] in row-major order."""
        order = sums.argsort(stable=True)
        offsets = torch.searchsorted(
            sums[order].contiguous(), torch.arange(n_codes + 1, device=sums.device)
        )
        return cls(order // n_codes, order % n_codes, offsets)

    def pairs(self, group: int) -> Tensor:
        """The pairs of a group, int64 [2, P]."""
        part = slice(self._bounds[group], self._bounds[group + 1])
        return torch.stack([self.first[part], self.second[part]]).long()

    def mass(self, one: Tensor, other: Tensor, shares: Tensor | None = None) -> Tensor:
        """Sums of one[n, first] other[n, second] shares over the pairs of every group, [N, G].

        Args:
            one: [N, K], float64 where the device has it.
            other: [N, K].
            shares: of every pair [P]; None: ones.
        """
        rows, columns = one.T.contiguous(), other.T.contiguous()
        parts = (rows, columns, self.first, self.second, self.offsets, shares)
        return self._kernels.pair_mass(*parts).T

    def draw(
        self,
        groups: Tensor,
        one: Tensor,
        other: Tensor,
        uniform: Tensor,
        shares: Tensor | None = None,
    ) -> Tensor:
        """A pair [N] of each of the groups [N], with probability ~ one other shares; its place.

        Args:
            groups: [N].
            one: [N, K].
            other: [N, K].
            uniform: [N], in [0, 1).
            shares: of every pair [P]; None: ones.
        """
        places = []
        for n, group in enumerate(groups.tolist()):
            start, stop = self._bounds[group], self._bounds[group + 1]
            if start == stop:  # drawn only where nothing is possible: any pair
                start, stop = 0, 1
            weights = one[n, self.first[start:stop]] * other[n, self.second[start:stop]]
            if shares is not None:
                weights *= shares[start:stop]
            places.append(start + invert(weights, uniform[n])[0])
        return torch.stack(places)
