"""The base distribution of a linear latent space: codes near a pair's sum are probable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jukebox_core.checks import require
from jukebox_core.inverse_cdf import invert
from jukebox_core.separation.likelihood import Gathered
from jukebox_core.separation.pair_groups import PairGroups
from lass.counts import Counts
from lass.smoothing import BaseFactors, overall_frequencies
from lqvae.likelihood import LatentGaussianLikelihood

SHARE = 0.1
"""Share of p(m): a code costs at most 0.15 bits more than under the Gaussian, and at most 3.3 bits
more than under p(m). Not tuned."""


class GaussianBase:
    """q(m | z1, z2) = (1 - share) N(m; z1, z2) + share p(m), a distribution without zeros.

    N is the LQ-VAE's Gaussian around the code of the pair's sum, normalised over m; by itself it
    underflows at codes far from the sum. p(m) are the `overall_frequencies`. A
    `lass.smoothing.Base`: geometry decides about pairs that were never counted, the counts decide
    about pairs that were counted often.
    """

    def __init__(self, gaussian: LatentGaussianLikelihood, counts: Counts, share: float = SHARE):
        """Mix both, in float64.

        Args:
            gaussian: q is on its device.
            counts: of the codec's triples, in any order of the sources.
            share: of p(m), in (0, 1].

        Raises:
            ValueError: the share is out of range, or the tables have different numbers of codes.
        """
        require("share", share, above=0, at_most=1)
        if counts.n_codes != gaussian.n_codes:
            raise ValueError(
                f"counts over {counts.n_codes} codes, a Gaussian over {gaussian.n_codes}"
            )
        self.n_codes = gaussian.n_codes
        self.settings: dict[str, Any] = {"smoothing_base": "gaussian", **gaussian.settings}
        near = gaussian.log_density.cpu().double().softmax(0)  # [m, code of the sum]
        mixed = (1 - share) * near + share * overall_frequencies(counts).unsqueeze(1)
        self._frequencies = mixed.float().to(gaussian.sum_codes.device)
        self._sum_codes = gaussian.sum_codes

    def factors(self, mixture_code: int) -> BaseFactors:
        """The frequency, looked up at the code of the sum."""
        frequencies = self._frequencies[mixture_code]
        ones = torch.ones_like(frequencies)
        return BaseFactors(ones, 0 * ones, Gathered(frequencies.log(), self._sum_codes))

    def of_pairs(self, codes: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """q(code | first, second) of triples, [N]."""
        return self._frequencies[codes, self._sum_codes[first * self.n_codes + second].long()]

    def weighted(self, weights: Tensor) -> WeightedSums:
        """The pairs by their sums, and the sums by the Gaussian around them."""
        groups = PairGroups.by_sum(self._sum_codes, self.n_codes, weights)
        return WeightedSums(groups, self._frequencies.to(weights.dtype))


@dataclass(frozen=True)
class WeightedSums:
    """A `lass.smoothing.WeightedBase` of q(m | i, j) = frequencies[m, code of the sum].

    groups: the pairs by their sums, with the weights as shares. q: the frequencies [K, K].
    """

    groups: PairGroups
    q: Tensor

    def spread(self, first: Tensor, second: Tensor) -> SumSpread:
        """The distribution for probabilities of both codes."""
        of_sums = self.groups.mass(first, second)
        return SumSpread(self, first, second, of_sums, of_sums @ self.q.T)


@dataclass(frozen=True)
class SumSpread:
    """A `lass.smoothing.Spread`: the mass of every sum, and of the codes around it, [N, K] each."""

    base: WeightedSums
    first: Tensor
    second: Tensor
    of_sums: Tensor
    mass: Tensor

    def draw(self, rows: Tensor, codes: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """The code of the sum, then a pair with this sum."""
        sums, _ = invert(self.of_sums[rows] * self.base.q[codes], uniform[:, 0])
        return self.base.groups.draw(sums, self.first[rows], self.second[rows], uniform[:, 1])
