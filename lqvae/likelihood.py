"""The LQ-VAE's Gaussian likelihood over the table of code sums."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from jukebox_core.checks import require
from jukebox_core.separation.protocols import PairScores
from lqvae.sums import check_sum_codes, load_sums

SIGMA = 0.4
_SMALLEST, _LARGEST = 1e-15, 1e15  # so that sigma^2, and quotients by it, fit in float32


def check_sigma(name: str, value: object) -> None:
    """Raise ValueError unless it is a valid standard deviation; the message calls it `name`."""
    require(name, value, at_least=_SMALLEST, at_most=_LARGEST)


class LatentGaussianLikelihood:
    """N(e[z_mix]; e[sum_codes[z1, z2]], sigma^2 I) (LQ-VAE, eq. 10, in the quantised space).

    Two tables do: the distances between codes [K, K], and the code of every pair's sum [K, K].
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
        self.sum_codes = sum_codes.int().flatten()
        """The code of every pair's sum, [K * K]."""
        if not codebook.isfinite().all():
            raise ValueError("the codebook has NaN or infinite values")
        distances = torch.cdist(
            codebook.float(), codebook.float(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        self.log_density = -distances.square() / (2 * sigma**2)
        """Of mixture codes under the code of a sum, [K, K], up to a constant."""
        if not self.log_density.isfinite().all():
            raise ValueError(
                f"sigma is {sigma}, too small for codes up to {distances.max():.3g} apart: use a "
                "larger one"
            )

    def scores(self, mixture_code: int) -> PairScores:
        """log-density of the mixture code's vector under every sum, and the sum of every pair."""
        return PairScores(self.log_density[mixture_code], lookup=self.sum_codes)


def build_likelihood(
    sums: Path,
    codebook: Tensor,
    *,
    sigma: float = SIGMA,
    codec_fingerprint: str | None = None,
) -> LatentGaussianLikelihood:
    """The likelihood of a codec, from its file of code sums.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it belongs to another codec.
    """
    table = load_sums(sums, codec_fingerprint).to(codebook.device)
    return LatentGaussianLikelihood(codebook, table, sigma)
