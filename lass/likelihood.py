"""LASS's likelihood: how often a pair of source codes gave a mixture code (LASS, eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jukebox_core.checks import require
from jukebox_core.separation.protocols import PairScores
from lass.counts import Counts, load_counts, symmetrise
from lass.smoothing import Backoff, MakeBackoff, Marginals

WEIGHT = 3.0
BACKOFF = 3.0
_PART = 1 << 18
_SMALLEST, _LARGEST = 1e-15, 1e15  # so that products with logarithms and counts fit in float32


def check_weight(name: str, value: object) -> None:
    """Raise ValueError unless the value is a valid exponent; the message calls it `name`."""
    require(name, value, at_least=_SMALLEST, at_most=_LARGEST)


def check_strength(name: str, value: object) -> None:
    """Raise ValueError unless the value is a number of observations; fractions are valid."""
    require(name, value, at_least=_SMALLEST, at_most=_LARGEST)


def check_backoff(name: str, value: object) -> None:
    """Raise ValueError unless the value is a valid strength, or 0 for no back-off."""
    if value != 0 or isinstance(value, bool):
        require(name, value, at_least=_SMALLEST, at_most=_LARGEST, hint="or 0 for no back-off")


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
        check_weight("weight", weight)
        if symmetric:
            counts = symmetrise(counts)
        self.n_codes = counts.n_codes
        self.weight = weight
        self.symmetric = symmetric
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


class SmoothedLikelihood:
    """Counts that fall back on a distribution of every pair where the pair was seen seldom.

    weight * log((c[z1, z2, m] + strength * q(m | z1, z2)) / (c[z1, z2] + strength)) over all pairs.
    A pair seen once no longer has probability one, one never seen no longer zero; neither has a
    mixture code that was never counted.
    """

    def __init__(
        self,
        counts: Counts,
        backoff: Backoff,
        weight: float,
        *,
        strength: float = BACKOFF,
        symmetric: bool = False,
        device: torch.device | str = "cpu",
    ):
        """Add up the pairs.

        Args:
            counts: class-ordered, the first source of the priors first.
            backoff: q(m | z1, z2).
            weight: lambda, the exponent of the likelihood.
            strength: how many observations of a pair the back-off is worth.
            symmetric: count every triple for both orders of the sources.
            device: where the scores are wanted.

        Raises:
            ValueError: weight or strength is not positive, or counts and back-off have different
                numbers of codes.
        """
        check_weight("weight", weight)
        check_strength("strength", strength)
        if backoff.n_codes != counts.n_codes:
            raise ValueError(
                f"counts over {counts.n_codes} codes, a back-off over {backoff.n_codes}"
            )
        if symmetric:
            counts = symmetrise(counts)
        k = self.n_codes = counts.n_codes
        self.backoff = backoff
        self.weight = weight
        self.strength = strength
        self.symmetric = symmetric
        self._offsets = counts.offsets.tolist()
        seen = torch.from_numpy(counts.counts).double()
        first, second = (
            torch.from_numpy(codes.astype(np.int64)) for codes in (counts.first, counts.second)
        )
        pairs = first * k + second
        totals = torch.zeros(k * k, dtype=torch.float64).index_add_(0, pairs, seen)
        # The strength is taken out of the logarithm: counts are stored as shares of it.
        self._offset = (-weight * (totals / strength + 1).log()).float().to(device)  # [K * K]
        self._pairs = pairs.to(device)  # [P]
        self._seen = (seen / strength).float().to(device)  # [P]

    def scores(self, mixture_code: int) -> PairScores:
        """The scores of all pairs, [K * K]."""
        smoothed = self.backoff.given(mixture_code)
        part = slice(self._offsets[mixture_code], self._offsets[mixture_code + 1])
        # Every pair is stored once per mixture code: plain indexed addition is exact.
        smoothed[self._pairs[part]] += self._seen[part]
        # In parts that stay in the cache.
        for p, offset in zip(smoothed.split(_PART), self._offset.split(_PART), strict=True):
            torch.add(offset, p.log_(), alpha=self.weight, out=p)
        return PairScores(smoothed)


def build_likelihood(
    counts: Path,
    *,
    weight: float | None = None,
    backoff: float = 0.0,
    towards: MakeBackoff = Marginals,
    symmetric: bool | None = None,
    device: torch.device | str = "cpu",
    codec_fingerprint: str | None = None,
    sources: Sequence[str] | None = None,
) -> CountLikelihood | SmoothedLikelihood:
    """The likelihood of a file of counts.

    Args:
        counts: the file.
        weight: lambda; default 3, as LASS has it.
        backoff: 0 takes the stored pairs alone, as LASS does; otherwise how many observations of
            a pair the back-off is worth.
        towards: makes the back-off of the counts; unused where `backoff` is 0.
        symmetric: count every triple for both orders of the sources; None: without a back-off, as
            LASS does, and not with one.
        device: where the scores are wanted.
        codec_fingerprint: of the codec it is to be used with.
        sources: names of the sources in the order of the priors.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, or belongs to another codec or other sources, or weight or
            back-off is out of range.
    """
    check_backoff("backoff", backoff)
    if weight is not None:
        check_weight("weight", weight)
    loaded, _ = load_counts(counts, codec_fingerprint, sources)
    if symmetric is None:
        symmetric = not backoff
    if not backoff:
        return CountLikelihood(
            loaded, WEIGHT if weight is None else weight, symmetric=symmetric, device=device
        )
    return SmoothedLikelihood(
        loaded,
        towards(symmetrise(loaded) if symmetric else loaded, device),
        WEIGHT if weight is None else weight,
        strength=backoff,
        symmetric=symmetric,
        device=device,
    )
