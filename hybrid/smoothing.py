"""The base distribution of a linear latent space: codes near a pair's sum are probable."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jukebox_core.checks import require
from jukebox_core.separation.chain import mass_of_sums
from lass.counts import Counts
from lass.smoothing import overall_frequencies
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

    def probabilities(self, mixture_code: int) -> Tensor:
        """q(mixture_code | z1, z2), [K * K]."""
        return self._frequencies[mixture_code].index_select(0, self._sum_codes)

    def expected(self, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
        """The mass of the pairs of every sum, shared out by the Gaussian around it, [N, K]."""
        mass = mass_of_sums(first, second, self._sum_codes.long(), weights)
        return mass @ self._frequencies.to(first.dtype).T
