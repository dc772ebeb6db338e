"""LQ-VAE (arXiv 2110.05313): a codec with a linear latent space, a Gaussian likelihood."""

from lqvae.likelihood import LatentGaussianLikelihood
from lqvae.objective import LinearisationObjective
from lqvae.separator import METHOD, NEURAL, load_neural_separator, load_separator
from lqvae.sums import code_sums

__all__ = [
    "METHOD",
    "NEURAL",
    "LatentGaussianLikelihood",
    "LinearisationObjective",
    "code_sums",
    "load_neural_separator",
    "load_separator",
]
