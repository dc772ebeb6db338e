"""The LQ-VAE's Gaussian likelihood over the table of code sums (LQ-VAE, eq. 10)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jukebox_core.separation.likelihood import FactoredScores, Gathered, check_sigma
from lqvae.sums import check_sum_codes

SIGMA = 0.4


class LatentGaussianLikelihood:
    """N(e[z_mix]; e[sum_codes[z1, z2]], sigma^2 I) (LQ-VAE, eq. 10, in the quantised space).

    It needs two tables: the distances between codes [K, K] and the code of every pair's sum [K, K].
    """

    def __init__(self, codebook: Tensor, sum_codes: Tensor, sigma: float = SIGMA):
        """Build from a codec's codebook.

        Args:
            codebook: [K, D].
            sum_codes: [K, K], the code of the quantised mean of codes z1 and z2.
            sigma: standard deviation per latent dimension, in units of the latent space.

        Raises:
            ValueError: the shapes disagree, a sum is not a code, the codebook is not finite, or
                sigma is not positive or does not fit the codebook.
        """
        self.n_codes = codebook.shape[0]
        if sum_codes.shape != (self.n_codes, self.n_codes):
            raise ValueError(
                f"sum_codes is {tuple(sum_codes.shape)}, the codebook has {self.n_codes} codes"
            )
        check_sum_codes("sum_codes", sum_codes)
        check_sigma("sigma", sigma)
        self.sigma = sigma
        narrow = torch.int16 if self.n_codes <= 1 << 15 else torch.int32
        self.sum_codes = sum_codes.to(narrow).flatten()
        """The code of every pair's sum, [K * K]."""
        if not codebook.isfinite().all():
            raise ValueError("the codebook has NaN or infinite values")
        distances = torch.cdist(
            codebook.float(), codebook.float(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        self.log_density = -distances.square() / (2 * sigma**2)
        """Log-density of mixture codes given the code of a sum, [K, K], up to a constant."""
        if not self.log_density.isfinite().all():
            raise ValueError(
                f"sigma is {sigma}, too small for codes up to {distances.max():.3g} apart: use a "
                "larger one"
            )

    def scores(self, mixture_code: int) -> FactoredScores:
        """Log-densities of the mixture code per sum code, and the sum code of every pair."""
        return FactoredScores(self.n_codes, gathered=self.term(mixture_code))

    def term(self, mixture_code: int) -> Gathered:
        """The scores as a term of others."""
        return Gathered(self.log_density[mixture_code], self.sum_codes)

    @property
    def settings(self) -> dict[str, Any]:
        """The standard deviation."""
        return {"sigma": self.sigma}
