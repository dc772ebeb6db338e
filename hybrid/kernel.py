"""The back-off that a linear latent space justifies: codes near a pair's sum are likely."""

from __future__ import annotations

from torch import Tensor

from lqvae.likelihood import LatentGaussianLikelihood


class Kernel:
    """q(m | z1, z2): the LQ-VAE's Gaussian around the code of the pair's sum, normalised over m.

    A `lass.backoff.Backoff`: pairs that were never counted are known by the geometry of the codes,
    pairs that were counted often by their counts.
    """

    def __init__(self, gaussian: LatentGaussianLikelihood):
        self.n_codes = gaussian.n_codes
        self._frequencies = gaussian.log_density.softmax(0)  # [m, code of the sum]
        self._sum_codes = gaussian.sum_codes

    def given(self, mixture_code: int) -> Tensor:
        """q(mixture_code | z1, z2), [K * K]."""
        return self._frequencies[mixture_code].index_select(0, self._sum_codes)
