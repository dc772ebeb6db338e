"""LQ-VAE (arXiv 2110.05313): a codec with a linear latent space, a Gaussian likelihood."""

from lqvae.likelihood import LatentGaussianLikelihood, build_likelihood
from lqvae.objective import LinearisationObjective
from lqvae.sums import code_sums

__all__ = ["LatentGaussianLikelihood", "LinearisationObjective", "build_likelihood", "code_sums"]
