"""Two priors as one: what a sampler advances at every step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jukebox_core.prior.cache import PriorCache
from jukebox_core.separation.protocols import JointPriors, Prior

__all__ = ["EachPrior", "as_joint"]


def as_joint(priors: Mapping[str, Prior] | JointPriors) -> JointPriors:
    """Two priors by name as one object; what is one already passes unchanged.

    Raises:
        ValueError: not two priors, or priors over different codes.
    """
    return EachPrior(priors) if isinstance(priors, Mapping) else priors


class EachPrior:
    """Two priors of any kind, one after the other: the plain form of `JointPriors`."""

    def __init__(self, priors: Mapping[str, Prior]):
        if len(priors) != 2:
            raise ValueError(f"separation needs two priors, got {len(priors)}: {', '.join(priors)}")
        self.names = tuple(priors)
        self._priors = tuple(priors.values())
        first, second = self._priors
        if first.n_codes != second.n_codes:
            raise ValueError(
                f"the prior of {self.names[0]} has {first.n_codes} codes, that of "
                f"{self.names[1]} {second.n_codes}: they belong to different codecs"
            )
        self.n_codes = first.n_codes
        self.n_ctx = min(first.n_ctx, second.n_ctx)

    def new_cache(self, batch_size: int, length: int) -> EachCache:
        """An empty cache for `batch_size` pairs of sequences."""
        return EachCache([prior.new_cache(batch_size, length) for prior in self._priors])

    def prefill(self, codes: Tensor, cache: EachCache) -> None:
        """Make codes [2, B', P] the past of an empty cache."""
        for prior, part, own in zip(self._priors, codes, cache.parts, strict=True):
            prior.prefill(part, own)

    def step(self, codes: Tensor | None, cache: EachCache) -> Tensor:
        """Logits [2, B, K] of the next codes, after [2, B] (None at the start)."""
        last = (None, None) if codes is None else codes.unbind()
        steps = zip(self._priors, last, cache.parts, strict=True)
        return torch.stack([prior.step(part, own) for prior, part, own in steps])


class EachCache:
    """Both priors' caches."""

    def __init__(self, parts: list[PriorCache]):
        self.parts = parts

    def reorder(self, parents: Tensor) -> None:
        """Replace pair b by pair parents[b] in both."""
        for part in self.parts:
            part.reorder(parents)

    def nbytes(self) -> int:
        """Bytes held by both."""
        return sum(part.nbytes() for part in self.parts)
