"""The back-off that a linear latent space justifies: codes near a pair's sum are likely."""

from __future__ import annotations

from torch import Tensor

from jukebox_core.checks import require
from lass.counts import Counts
from lass.smoothing import overall_frequencies
from lqvae.likelihood import LatentGaussianLikelihood

SHARE = 0.1
"""Of p(m): a code costs at most 0.15 bits more than by the Gaussian, and at most 3.3 more than by
p(m), however sure the Gaussian is of another. Not tuned."""


class Kernel:
    """q(m | z1, z2) = (1 - share) N(m; z1, z2) + share p(m), a distribution without zeros.

    N is the LQ-VAE's Gaussian around the code of the pair's sum, normalised over m; alone it
    underflows at codes far from the sum. p(m) is that of `overall_frequencies`. A
    `lass.smoothing.Backoff`: pairs that were never counted are known by the geometry of the codes,
    pairs that were counted often by their counts.
    """

    def __init__(self, gaussian: LatentGaussianLikelihood, counts: Counts, share: float = SHARE):
        """Mix both, in float64.

        Args:
            gaussian: whose device is that of q.
            counts: of the codec's triples, in any order of the sources.
            share: of p(m), in (0, 1].

        Raises:
            ValueError: the share has no meaning, or the tables have different numbers of codes.
        """
        require("share", share, above=0, at_most=1)
        if counts.n_codes != gaussian.n_codes:
            raise ValueError(
                f"counts over {counts.n_codes} codes, a kernel over {gaussian.n_codes}"
            )
        self.n_codes = gaussian.n_codes
        self.sigma = gaussian.sigma
        near = gaussian.log_density.cpu().double().softmax(0)  # [m, code of the sum]
        mixed = (1 - share) * near + share * overall_frequencies(counts).unsqueeze(1)
        self._frequencies = mixed.float().to(gaussian.sum_codes.device)
        self._sum_codes = gaussian.sum_codes

    def given(self, mixture_code: int) -> Tensor:
        """q(mixture_code | z1, z2), [K * K]."""
        return self._frequencies[mixture_code].index_select(0, self._sum_codes)
