"""The interfaces that separation is written against; methods differ by the objects passed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from jukebox_core.prior.cache import PriorCache


class PairScores(NamedTuple):
    """log p(mixture code | z1, z2), up to a constant, for one mixture code.

    values: [P]. pairs: [2, P], the codes (z1, z2) of every value, or None when all K * K pairs are
    there in row-major order, z1 the row.
    """

    values: Tensor
    pairs: Tensor | None = None


@runtime_checkable
class Likelihood(Protocol):
    """Scores pairs of source codes against a mixture code."""

    n_codes: int

    def scores(self, mixture_code: int) -> PairScores:
        """Log-likelihoods of the pairs of codes that may have given `mixture_code`."""
        ...


class Prior(Protocol):
    """An autoregressive model of one source's codes."""

    n_codes: int
    n_ctx: int

    def new_cache(self, batch_size: int, length: int) -> PriorCache:
        """An empty cache for `batch_size` sequences of at most `length` codes."""
        ...

    def step(self, codes: Tensor | None, cache: PriorCache) -> Tensor:
        """Logits [B, K] of the next code, after the last codes [B] (None at the start)."""
        ...


class Separations(NamedTuple):
    """Joint candidates of B chunks: N sequences of T codes per source, drawn together.

    codes: {source: [B, N, T]}. log_prior: {source: [B, N]}, log p(codes) in nats.
    log_likelihood: [B, N], summed pair scores of the chosen codes.
    """

    codes: dict[str, Tensor]
    log_prior: dict[str, Tensor]
    log_likelihood: Tensor


class Sampler(Protocol):
    """Draws joint candidates from the posterior over both sources' codes."""

    def __call__(
        self,
        priors: Mapping[str, Prior],
        likelihood: Likelihood,
        mixture_codes: Tensor,
        candidates: int,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Separations:
        """Candidates for the mixture codes [B, T]; the first prior is z1, the second z2.

        `progress` is called with (steps done, steps in all).
        """
        ...
