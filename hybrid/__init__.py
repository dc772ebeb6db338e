"""Hybrid: the LQ-VAE's training objective, LASS's counted likelihood.

The counts are few for the number of pairs. Since the objective makes the latent space linear, the
geometry of the codes says something about pairs that were never counted: by default the counted
likelihood is multiplied by the LQ-VAE's Gaussian kernel, a log-linear pool of both. Instead, or
besides, it may fall back on the kernel (`hybrid.smoothing`). Without the kernel it is LASS's
likelihood as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hybrid.smoothing import Kernel
from jukebox_core.separation.protocols import Likelihood, PairScores
from lass.likelihood import BACKOFF
from lass.likelihood import build_likelihood as build_counted
from lass.smoothing import BACKOFFS, MakeBackoff
from lqvae.likelihood import SIGMA, LatentGaussianLikelihood
from lqvae.likelihood import build_likelihood as build_gaussian
from lqvae.objective import LinearisationObjective as Objective

__all__ = ["Objective", "PooledLikelihood", "build_likelihood"]

POOLED_WEIGHT = 1.0


class PooledLikelihood:
    """Counted scores plus the log-density of the kernel, on the pairs that the counts allow.

    The product is not normalised over the mixture codes: beside one that is, it favours the pairs
    whose counts and kernel agree.
    """

    def __init__(self, counted: Likelihood, kernel: LatentGaussianLikelihood):
        if counted.n_codes != kernel.n_codes:
            raise ValueError(f"counts over {counted.n_codes} codes, a kernel over {kernel.n_codes}")
        self.n_codes = counted.n_codes
        self.counted = counted
        self.sigma = kernel.sigma
        self._kernel = kernel

    def scores(self, mixture_code: int) -> PairScores:
        """The sum of both scores; sparse where the counts are."""
        counted, kernel = self.counted.scores(mixture_code), self._kernel.scores(mixture_code)
        assert kernel.lookup is not None
        if counted.pairs is None:
            index = kernel.lookup
        else:
            index = kernel.lookup[counted.pairs[0] * self.n_codes + counted.pairs[1]]
        return PairScores(counted.values + kernel.values.index_select(0, index), counted.pairs)


def build_likelihood(
    counts: Path,
    sums: Path | None = None,
    codebook: Tensor | None = None,
    *,
    weight: float | None = None,
    backoff: float = BACKOFF,
    back_off_to: str = "marginals",
    symmetric: bool | None = None,
    pooled: bool = True,
    sigma: float = SIGMA,
    device: torch.device | str = "cpu",
    codec_fingerprint: str | None = None,
    sources: Sequence[str] | None = None,
) -> Likelihood:
    """The hybrid's likelihood; without `sums` and `codebook`, the counted one alone.

    Args:
        counts: the file of triples.
        sums: the file of code sums.
        codebook: of the codec, [K, D].
        weight: lambda of the counts; default 1 beside the kernel, 3 alone.
        backoff: observations of a pair that the back-off is worth; 0: none.
        back_off_to: `marginals`, `overall`, or `kernel`, which needs `sums` and `codebook`.
        symmetric: count every triple for both orders, see `lass.likelihood.build_likelihood`.
        pooled: multiply by the kernel where `sums` and `codebook` are given.
        sigma: of the kernel, pooled or fallen back on.
        device: where the scores are wanted, that of the codebook.
        codec_fingerprint: of the codec it is to be used with.
        sources: names of the sources in the order of the priors.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: a table belongs to another codec or other sources, or the back-off is unknown
            or lacks its tables.
    """
    kernel = None
    if sums is not None and codebook is not None:
        kernel = build_gaussian(sums, codebook, sigma=sigma, codec_fingerprint=codec_fingerprint)
    known: dict[str, MakeBackoff] = dict(BACKOFFS)
    if kernel is not None:
        known["kernel"] = lambda seen, _: Kernel(kernel, seen)
    if backoff and back_off_to not in known:
        raise ValueError(f"back_off_to is {back_off_to}, expected {' or '.join(known)} here")
    pool = kernel if pooled else None
    counted = build_counted(
        counts,
        weight=POOLED_WEIGHT if pool is not None and weight is None else weight,
        backoff=backoff,
        towards=known.get(back_off_to, BACKOFFS["marginals"]),
        symmetric=symmetric,
        device=device,
        codec_fingerprint=codec_fingerprint,
        sources=sources,
    )
    return counted if pool is None else PooledLikelihood(counted, pool)
