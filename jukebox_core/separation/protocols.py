"""The interfaces that separation is written against; methods differ by the objects passed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from jukebox_core.prior.cache import PriorCache


class PairScores(NamedTuple):
    """log p(mixture code | z1, z2), up to a constant, for one mixture code.

    One of three forms:
    - all pairs: values [K * K] in row-major order, z1 the row;
    - stored pairs alone: values [P] and pairs [2, P], the codes (z1, z2) of every value;
    - all pairs, few values: values [U] and lookup [K * K]; pair p has the score values[lookup[p]].
    """

    values: Tensor
    pairs: Tensor | None = None
    lookup: Tensor | None = None

    def explicit(self) -> PairScores:
        """The same scores with one value per pair."""
        return self if self.lookup is None else PairScores(self.values[self.lookup])


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

    def prefill(self, codes: Tensor, cache: PriorCache) -> None:
        """Make codes [B', P] the past of an empty cache, each row of B / B' sequences in order."""
        ...

    def step(self, codes: Tensor | None, cache: PriorCache) -> Tensor:
        """Logits [B, K] of the next code, after the last codes [B] (None at the start)."""
        ...


class JointCache(Protocol):
    """The state of B pairs of sequences that are decoded together."""

    def reorder(self, parents: Tensor) -> None:
        """Replace pair b by pair parents[b] (int64 [B])."""
        ...

    def nbytes(self) -> int:
        """Bytes held."""
        ...


class JointPriors(Protocol):
    """Both sources' priors, advanced together; the order of `names` is (z1, z2)."""

    names: tuple[str, ...]
    n_codes: int
    n_ctx: int

    def new_cache(self, batch_size: int, length: int) -> Any:
        """An empty `JointCache` for `batch_size` pairs of sequences of at most `length` codes."""
        ...

    def prefill(self, codes: Tensor, cache: Any) -> None:
        """Make codes [2, B', P] the past of an empty cache, each row of B / B' pairs in order."""
        ...

    def step(self, codes: Tensor | None, cache: Any) -> Tensor:
        """Logits [2, B, K] of the next codes, after the last codes [2, B] (None at the start)."""
        ...


class Separations(NamedTuple):
    """Joint candidates of B chunks: N sequences of T codes per source, drawn together.

    codes: {source: [B, N, T]}. log_prior: {source: [B, N]}, log p(codes) in nats, of these T codes
    given their context. log_likelihood: [B, N], summed pair scores of the chosen codes.
    log_weights: [B, N], normalised over N, of candidates that are not equally probable draws
    (particles); None: they are. log_evidence: [B], log of an unbiased estimate of
    sum p1 p2 exp(scores) over all pairs of sequences; None: not estimated.
    """

    codes: dict[str, Tensor]
    log_prior: dict[str, Tensor]
    log_likelihood: Tensor
    log_weights: Tensor | None = None
    log_evidence: Tensor | None = None


class Sampler(Protocol):
    """Draws joint candidates from the posterior over both sources' codes."""

    def __call__(
        self,
        priors: Mapping[str, Prior] | JointPriors,
        likelihood: Likelihood,
        mixture_codes: Tensor,
        candidates: int,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
        context: Mapping[str, Tensor] | None = None,
    ) -> Separations:
        """Candidates for the mixture codes [B, T]; the first prior is z1, the second z2.

        `progress` is called with (steps done, steps in all). `context` holds the sources' codes
        before these, {source: [B, P]}, which the priors condition on.
        """
        ...
