"""LQ-VAE as a separation method."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from jukebox_core.neural.method import NeuralMethod
from jukebox_core.separation.chain import Chain
from jukebox_core.separation.likelihood import Likelihood
from jukebox_core.separation.method import Method, Parts
from jukebox_core.separation.partial_sums import steps_of, table_of_step, tables_of
from jukebox_core.separation.settings import Settings
from lqvae.likelihood import SIGMA, LatentGaussianLikelihood
from lqvae.link import SumLink
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

    def tables(self, settings: Settings, sources: int = 2) -> tuple[str, ...]:
        """The code sums."""
        return tables_of(SUMS, sources)

    def check_tables(self, family: Path, settings: Settings) -> None:
        """Read the code sums."""
        sources = len(self.priors(family, settings))
        for size, table in enumerate(self.tables(settings, sources), start=2):
            load_sums(family / table, place=f"{size} of {sources}")

    def gaussians(self, parts: Parts, settings: Settings) -> list[LatentGaussianLikelihood]:
        """The Gaussian likelihood of every step to the mixture, which is the last."""
        codebook, sigma = parts.codec.codebook, settings.sigma or SIGMA
        return [LatentGaussianLikelihood(codebook, s, sigma) for s in self._sums(parts, settings)]

    def likelihood(self, parts: Parts, settings: Settings) -> Likelihood:
        """The Gaussian likelihood of the mixture, after the sums of all but the last source."""
        *partial, last = self._sums(parts, settings)
        gaussian = LatentGaussianLikelihood(parts.codec.codebook, last, settings.sigma or SIGMA)
        return Chain([SumLink(table) for table in partial], gaussian) if partial else gaussian

    def _sums(self, parts: Parts, settings: Settings) -> list[Tensor]:
        """The code sums of every step, on the codec's device."""
        count, device = len(parts.sources), parts.codec.codebook.device
        return [
            load_sums(
                parts.family / table_of_step(SUMS, step.size, step.of),
                parts.codec_fingerprint,
                step.place,
                step.weights if count > 2 else None,
            ).to(device)
            for step in steps_of(dict.fromkeys(parts.sources, 1 / count))
        ]


METHOD = LQVAE()
load_separator = METHOD.load_separator

NEURAL = NeuralMethod(METHOD)
load_neural_separator = NEURAL.load_separator
