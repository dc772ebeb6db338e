"""The hybrid as a separation method."""

from __future__ import annotations

from pathlib import Path

from hybrid.likelihood import PooledLikelihood
from hybrid.pretrained import PRETRAINED, SONG
from hybrid.smoothing import GaussianBase
from jukebox_core.neural.method import NeuralMethod
from jukebox_core.separation.likelihood import Likelihood
from jukebox_core.separation.method import Method, Parts
from jukebox_core.separation.settings import Settings
from lass.likelihood import EXPONENT, SMOOTHING, counted_likelihood
from lass.separator import METHOD as LASS
from lass.separator import chain_of_counts, counts_of
from lass.smoothing import BASES, MakeBase
from lqvae.likelihood import SIGMA, LatentGaussianLikelihood
from lqvae.separator import METHOD as LQVAE

POOLED_EXPONENT = 1.0


class Hybrid(Method):
    """The LQ-VAE's codec and priors, and a likelihood counted over their codes as for LASS.

    Counts are few compared with the number of pairs. Since the LQ-VAE's objective makes the latent
    space linear, the geometry of the codes informs about pairs that were never counted: by default
    the counted likelihood is multiplied by the Gaussian likelihood. Instead, or in addition, the
    Gaussian can be the base distribution of the smoothing.
    """

    name = "hybrid"
    family = "linearisation"
    pretrained = PRETRAINED
    settings = ("sigma", "exponent", "smoothing", "smoothing_base", "symmetric", "gaussian")

    def defaults(self, settings: Settings) -> Settings:
        """Smoothed counts times the Gaussian, exponent 1; without the Gaussian, exponent 3."""
        gaussian = settings.gaussian is not False
        smoothing = SMOOTHING if settings.smoothing is None else settings.smoothing
        return Settings(
            sigma=SIGMA,
            exponent=POOLED_EXPONENT if gaussian else EXPONENT,
            smoothing=smoothing,
            smoothing_base="marginals",
            symmetric=not smoothing,
            gaussian=True,
        )

    def unused(self, settings: Settings) -> dict[str, str]:
        """The base distribution without smoothing, sigma without the Gaussian."""
        why: dict[str, str] = {}
        if not settings.smoothing:
            why["smoothing_base"] = f"smoothing is {settings.smoothing:g}"
        if not _uses_gaussian(settings):
            why["sigma"] = "gaussian is False and the smoothing has another base"
        return why

    def tables(self, settings: Settings, sources: int = 2) -> tuple[str, ...]:
        """The counts, and the code sums if the Gaussian is used."""
        sums = LQVAE.tables(settings, sources) if _uses_gaussian(settings) else ()
        return (*LASS.tables(settings, sources), *sums)

    def check_tables(self, family: Path, settings: Settings) -> None:
        """Open the tables."""
        LASS.check_tables(family, settings)
        if _uses_gaussian(settings):
            LQVAE.check_tables(family, settings)

    def likelihood(self, parts: Parts, settings: Settings) -> Likelihood:
        """The counted likelihood, times the Gaussian one if `settings.gaussian`.

        Partial sums of more than two sources have a distribution of their own, which a product
        would not be: where the Gaussian is used, it is the base of their smoothing.
        """
        *partial, last = counts_of(parts)
        device = parts.codec.codebook.device
        base = BASES.get(settings.smoothing_base or "marginals")
        if not _uses_gaussian(settings):
            assert base is not None
            counted = counted_likelihood(last, settings, base, device)
            return chain_of_counts(partial, [base] * len(partial), counted, settings, device)
        *before, gaussian = LQVAE.gaussians(parts, settings)
        counted = counted_likelihood(last, settings, base or _around(gaussian), device)
        pooled = PooledLikelihood(counted, gaussian) if settings.gaussian else counted
        return chain_of_counts(partial, [*map(_around, before)], pooled, settings, device)


def _around(gaussian: LatentGaussianLikelihood) -> MakeBase:
    """Makes the base distribution around the code of a pair's sum."""
    return lambda counts, device: GaussianBase(gaussian, counts)


def _uses_gaussian(settings: Settings) -> bool:
    return bool(settings.gaussian) or (
        bool(settings.smoothing) and settings.smoothing_base == "gaussian"
    )


METHOD = Hybrid()
load_separator = METHOD.load_separator

NEURAL = NeuralMethod(METHOD)
load_neural_separator = NEURAL.load_separator

NEURAL_ONLY = NeuralMethod(pretrained=SONG)
"""The neural likelihood without a pair likelihood."""
load_song_separator = NEURAL_ONLY.load_separator


def neural_method(models: str | Path) -> NeuralMethod:
    """The method of models with a neural likelihood: `NEURAL_ONLY` without tables and priors."""
    family = Path(models) / NEURAL.family
    tables = NEURAL.tables(NEURAL.defaults(Settings()))
    pairs = any((family / table).is_file() for table in tables) or any(family.glob("prior_*"))
    return NEURAL if pairs else NEURAL_ONLY
