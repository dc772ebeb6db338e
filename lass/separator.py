"""LASS as a separation method."""

from __future__ import annotations

from pathlib import Path

from jukebox_core.neural.method import NeuralMethod
from jukebox_core.separation.method import Method, Parts
from jukebox_core.separation.settings import Settings
from lass.counts import CountsFile, load_counts
from lass.likelihood import (
    EXPONENT,
    SMOOTHING,
    CountLikelihood,
    SmoothedLikelihood,
    counted_likelihood,
)
from lass.smoothing import BASES

COUNTS = "counts.safetensors"


class LASS(Method):
    """The codec and priors of the reconstruction family, a likelihood counted over their codes."""

    name = "lass"
    family = "reconstruction"
    settings = ("exponent", "smoothing", "smoothing_base", "symmetric")

    def defaults(self, settings: Settings) -> Settings:
        """Smoothed counts; without smoothing symmetric ones, as published."""
        smoothing = SMOOTHING if settings.smoothing is None else settings.smoothing
        return Settings(
            exponent=EXPONENT,
            smoothing=smoothing,
            smoothing_base="marginals",
            symmetric=not smoothing,
        )

    def unused(self, settings: Settings) -> dict[str, str]:
        """The base distribution without smoothing.

        Raises:
            ValueError: the base distribution is the hybrid's.
        """
        if not settings.smoothing:
            return {"smoothing_base": f"smoothing is {settings.smoothing:g}"}
        if settings.smoothing_base not in BASES:
            raise ValueError(
                f"smoothing_base is {settings.smoothing_base}, expected {' or '.join(BASES)} for "
                f"{self.name}, which has no Gaussian"
            )
        return {}

    def tables(self, settings: Settings) -> tuple[str, ...]:
        """The counts."""
        return (COUNTS,)

    def check_tables(self, family: Path, settings: Settings) -> None:
        """Open the counts."""
        CountsFile(family / COUNTS)

    def likelihood(self, parts: Parts, settings: Settings) -> CountLikelihood | SmoothedLikelihood:
        """The counted likelihood of the family's codec."""
        counts, _ = load_counts(parts.family / COUNTS, parts.codec_fingerprint, parts.sources)
        base = BASES[settings.smoothing_base or "marginals"]
        return counted_likelihood(counts, settings, base, parts.codec.codebook.device)


METHOD = LASS()
load_separator = METHOD.load_separator

NEURAL = NeuralMethod(METHOD)
load_neural_separator = NEURAL.load_separator
