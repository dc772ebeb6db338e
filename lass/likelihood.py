"""LASS's likelihood: how often a pair of source codes gave a mixture code (LASS, eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jukebox_core.separation.protocols import PairScores
from lass.counts import Counts, load_counts, symmetrise

WEIGHT = 3.0


class CountLikelihood:
    """weight * log(c[z1, z2, m] / sum_m c[z1, z2, m]) over the pairs counted with m.

    Pairs never seen with a mixture code have probability zero. A mixture code that was never seen
    at all would stop the separation: it leaves the choice to the priors instead, all pairs score
    zero, and `unseen` counts how often that was asked for.
    """

    def __init__(
        self,
        counts: Counts,
        weight: float = WEIGHT,
        *,
        symmetric: bool = True,
        device: torch.device | str = "cpu",
    ):
        """Normalise the counts.

        Args:
            counts: class-ordered, the first source of the priors first.
            weight: lambda, the exponent of the likelihood.
            symmetric: count every triple for both orders of the sources, as LASS does.
            device: where the scores are wanted.

        Raises:
            ValueError: the weight is not positive.
        """
        if not weight > 0:
            raise ValueError(f"weight is {weight}, it must be positive")
        if symmetric:
            counts = symmetrise(counts)
        self.n_codes = counts.n_codes
        self.weight = weight
        self.unseen = 0
        """How often a mixture code was asked for that was never counted."""
        pairs = np.stack([counts.first, counts.second]).astype(np.int64)
        index = pairs[0] * counts.n_codes + pairs[1]
        totals = np.bincount(index, weights=counts.counts, minlength=counts.n_codes**2)  # [K * K]
        log_p = np.log(counts.counts / totals[index])
        self._values = torch.from_numpy(weight * log_p).float().to(device)  # [P]
        self._pairs = torch.from_numpy(pairs).to(device)  # [2, P]
        self._offsets = counts.offsets.tolist()
        self._flat: Tensor | None = None

    def is_seen(self, mixture_code: int) -> bool:
        """Whether the mixture code was counted at all."""
        return self._offsets[mixture_code + 1] > self._offsets[mixture_code]

    def scores(self, mixture_code: int) -> PairScores:
        """The stored pairs [2, P] of a mixture code and their scores [P]."""
        start, stop = self._offsets[mixture_code], self._offsets[mixture_code + 1]
        if start == stop:
            self.unseen += 1
            if self._flat is None:
                self._flat = self._values.new_zeros(self.n_codes**2)
            return PairScores(self._flat)
        return PairScores(self._values[start:stop], self._pairs[:, start:stop])


def build_likelihood(
    counts: Path,
    *,
    weight: float = WEIGHT,
    symmetric: bool = True,
    device: torch.device | str = "cpu",
    codec_fingerprint: str | None = None,
    sources: Sequence[str] | None = None,
) -> CountLikelihood:
    """The likelihood of a file of counts.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, or belongs to another codec or other sources.
    """
    loaded, _ = load_counts(counts, codec_fingerprint, sources)
    return CountLikelihood(loaded, weight, symmetric=symmetric, device=device)
