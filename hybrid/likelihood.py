"""The hybrid's likelihood: LASS's counts times the LQ-VAE's Gaussian."""

from __future__ import annotations

from typing import Any

from jukebox_core.separation.likelihood import FactoredScores, Likelihood, PairScores, Scores
from lqvae.likelihood import LatentGaussianLikelihood


class PooledLikelihood:
    """The counted likelihood times the LQ-VAE's Gaussian, on the pairs that the counts allow.

    A log-linear pool (Genest and Zidek 1986). The product is not normalised over the mixture codes;
    compared with a normalised one, it favours the pairs on which counts and Gaussian agree.
    """

    def __init__(self, counted: Likelihood, gaussian: LatentGaussianLikelihood):
        if counted.n_codes != gaussian.n_codes:
            raise ValueError(
                f"counts over {counted.n_codes} codes, a Gaussian over {gaussian.n_codes}"
            )
        self.n_codes = counted.n_codes
        self.counted = counted
        self.gaussian = gaussian

    def scores(self, mixture_code: int) -> Scores:
        """The sum of both scores; sparse where the counts are."""
        counted = self.counted.scores(mixture_code)
        if isinstance(counted, FactoredScores):
            return counted.plus(self.gaussian.term(mixture_code))
        gaussian = self.gaussian.scores(mixture_code)
        if counted.pairs is None:
            return PairScores(counted.values + gaussian.values)
        pairs = counted.pairs[0] * self.n_codes + counted.pairs[1]
        return PairScores(counted.values + gaussian.at(pairs), counted.pairs)

    @property
    def settings(self) -> dict[str, Any]:
        """Both likelihoods' settings."""
        return {**self.counted.settings, "gaussian": True, **self.gaussian.settings}
