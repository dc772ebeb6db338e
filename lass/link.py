"""The partial sums of any latent space: how often a pair of codes gave the code of its sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jukebox_core.inverse_cdf import precise
from jukebox_core.separation.chain import Parts
from jukebox_core.separation.likelihood import check_smoothing
from jukebox_core.separation.pair_groups import PairGroups
from lass.counts import Counts, to_keys
from lass.smoothing import Base, Spread, check_base


class CountLink:
    """p(s | first, second) by smoothed counts of (first, second, s): a `separation.chain.Link`.

    (c[i, j, s] + a q(s | i, j)) / (c[i, j] + a), with the base distribution q and the concentration
    a of `lass.likelihood.SmoothedLikelihood`. The exponent of the mixture's likelihood has no part
    in it: s is summed out, so its distribution must be normalised.
    """

    def __init__(
        self, counts: Counts, base: Base, concentration: float, device: torch.device | str = "cpu"
    ):
        """Sum the counts of every pair.

        Args:
            counts: of (sum so far, next source, sum of both).
            base: q(s | first, second).
            concentration: number of pseudo-observations per pair.
            device: of the messages.

        Raises:
            ValueError: the concentration is not positive, or counts and base have different numbers
                of codes.
        """
        check_smoothing("concentration", concentration, or_none=False)
        check_base(base, counts)
        k = self.n_codes = counts.n_codes
        self.base = base
        first, second, offsets, seen, keys = (
            torch.from_numpy(values).to(device)
            for values in (
                counts.first,
                counts.second,
                counts.offsets,
                counts.counts,
                to_keys(k, counts.first, counts.second, counts.mixture),
            )
        )
        dtype = precise(seen.device)
        pairs = first.long() * k + second
        totals = torch.zeros(k * k, dtype=torch.int64, device=device).index_add_(0, pairs, seen)
        self.shares = seen.to(dtype) / (totals[pairs] + concentration)  # [P]
        self.groups = PairGroups(first, second, offsets, self.shares)
        self.rest = (concentration / (totals.to(dtype) + concentration)).view(k, k)
        self.weighted = base.weighted(self.rest)
        self._keys = keys

    def message(self, first: Tensor, second: Tensor) -> CountMessage:
        """The mass of every code of the sum, counted and by the base distribution."""
        counted = self.groups.mass(first, second)
        spread = self.weighted.spread(first, second)
        return CountMessage(self, first, second, counted, spread)

    def log_p(self, sums: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Log p(sum | first, second) of triples of codes, [N]."""
        keys = (sums * self.n_codes + first) * self.n_codes + second
        place = torch.searchsorted(self._keys, keys).clamp_max(max(0, len(self._keys) - 1))
        share = self.rest[first, second] * self.base.of_pairs(sums, first, second)
        if len(self._keys):
            share = share + torch.where(self._keys[place] == keys, self.shares[place], 0.0)
        return share.log()


@dataclass(frozen=True)
class CountMessage:
    """A `separation.chain.Message` of two components: the counts, and the base distribution."""

    link: CountLink
    first: Tensor
    second: Tensor
    counted: Tensor
    spread: Spread

    @property
    def mass(self) -> Tensor:
        """Both, [N, K]."""
        return self.counted + self.spread.mass

    def parts(self, sums: Tensor, uniform: Tensor) -> Parts:
        """A pair of each of the sums: its component, then the pair."""
        counted, spread = (
            x.gather(1, sums.unsqueeze(1)).squeeze(1) for x in (self.counted, self.spread.mass)
        )
        share = counted / (counted + spread)
        own = uniform[:, 0] < share
        # What is left of the number is uniform within its component.
        rest = torch.where(own, uniform[:, 0] / share, (uniform[:, 0] - share) / (1 - share))
        numbers = torch.stack([rest.clamp(0, 1 - 2**-53), uniform[:, 1]], 1)
        first, second = torch.empty_like(sums), torch.empty_like(sums)
        at = own.nonzero().squeeze(1)
        if len(at):
            groups = self.link.groups
            one, other = self.first[at], self.second[at]
            first[at], second[at] = groups.draw(sums[at], one, other, numbers[at, 0])
        at = (~own).nonzero().squeeze(1)
        if len(at):
            first[at], second[at] = self.spread.draw(at, sums[at], numbers[at])
        return Parts(first, second, self.link.log_p(sums, first, second))
