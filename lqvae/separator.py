"""LQ-VAE as a separation method."""

from __future__ import annotations

from pathlib import Path

from jukebox_core.neural.method import NeuralMethod
from jukebox_core.separation.method import Method, Parts
from jukebox_core.separation.settings import Settings
from lqvae.likelihood import SIGMA, LatentGaussianLikelihood
from lqvae.sums import load_sums

SUMS = "sums.safetensors"


class LQVAE(Method):
    """The codec and priors of the linearisation family, a Gaussian over the table of code sums."""

    name = "lqvae"
    family = "linearisation"
    settings = ("sigma",)

    def defaults(self, settings: Settings) -> Settings:
        """The standard deviation."""
        return Settings(sigma=SIGMA)

    def tables(self, settings: Settings) -> tuple[str, ...]:
        """The code sums."""
        return (SUMS,)

    def check_tables(self, family: Path, settings: Settings) -> None:
        """Read the code sums."""
        load_sums(family / SUMS)

    def likelihood(self, parts: Parts, settings: Settings) -> LatentGaussianLikelihood:
        """The Gaussian likelihood of the family's codec."""
        codebook = parts.codec.codebook
        sums = load_sums(parts.family / SUMS, parts.codec_fingerprint).to(codebook.device)
        return LatentGaussianLikelihood(codebook, sums, settings.sigma or SIGMA)


METHOD = LQVAE()
load_separator = METHOD.load_separator

NEURAL = NeuralMethod(METHOD)
load_neural_separator = NEURAL.load_separator
