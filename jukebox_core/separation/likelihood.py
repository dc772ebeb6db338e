"""The interfaces of the likelihoods.

A pair likelihood scores pairs of source codes given one code of the mixture; a source likelihood
reads the mixture's waveform and scores every source's codes by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from jukebox_core.checks import require

_SMALLEST, _LARGEST = 1e-15, 1e15  # so that squares, and products with counts, fit in float32


class PairScores(NamedTuple):
    """log p(mixture code | z1, z2), up to a constant, for one mixture code.

    One of two forms:
    - all pairs: values [K * K] in row-major order, z1 the row;
    - stored pairs alone: values [P] and pairs [2, P], the codes (z1, z2) of every value.
    """

    values: Tensor
    pairs: Tensor | None = None

    def explicit(self) -> PairScores:
        """These scores."""
        return self


class Power(NamedTuple):
    """exponent * log((first[i] + second[j]) rest[i, j]), a term of the scores.

    first, second: [K], positive sums. rest: [K * K], in (0, 1]. least: of `rest`.
    """

    first: Tensor
    second: Tensor
    rest: Tensor
    exponent: float
    least: float


class Gathered(NamedTuple):
    """values[lookup[p]], a term of the scores: few values [U], looked up for every pair [K * K].

    The lookup is int16 or int32.
    """

    values: Tensor
    lookup: Tensor

    def at(self, pairs: Any) -> Tensor:
        """The term of the pairs that an index of the lookup selects."""
        return self.values.index_select(0, self.lookup[pairs].int())


class Stored(NamedTuple):
    """The scores [P] of some pairs, whatever the terms say; pairs i * K + j, int64 [P], ascending.

    No score is below that of the terms.
    """

    pairs: Tensor
    scores: Tensor


@dataclass(frozen=True)
class FactoredScores:
    """Scores of all pairs as a sum of terms, for likelihoods whose table is a product of factors.

    Nothing of size K * K belongs to the mixture code alone: `posterior.make_table` multiplies the
    factors in one pass, without the scores. n_codes: K.
    """

    n_codes: int
    power: Power | None = None
    gathered: Gathered | None = None
    stored: Stored | None = None

    pairs: ClassVar[None] = None
    """All pairs have a score, as in `PairScores`."""

    @property
    def device(self) -> torch.device:
        """The device of the terms."""
        term = self.power or self.gathered
        assert term is not None
        return term[0].device

    @property
    def values(self) -> Tensor:
        """The score of every pair, [K * K]."""
        every = slice(None)
        total = self._terms((every, None), every, every)
        if self.stored is not None:
            total[self.stored.pairs] = self.stored.scores.to(total.dtype)
        return total

    def explicit(self) -> PairScores:
        """The same scores with one value per pair."""
        return PairScores(self.values)

    def at(self, pairs: Tensor) -> Tensor:
        """The scores of some pairs i * K + j, int64 [n], on the device of the terms."""
        total = self._terms(pairs // self.n_codes, pairs % self.n_codes, pairs)
        if self.stored is None or not len(self.stored.pairs):
            return total
        place = torch.searchsorted(self.stored.pairs, pairs).clamp_max(len(self.stored.pairs) - 1)
        found = self.stored.scores[place].to(total.dtype)
        return torch.where(self.stored.pairs[place] == pairs, found, total)

    def plus(self, term: Gathered) -> Scores:
        """The scores with another term."""
        if self.gathered is None:
            gathered = term
        elif self.gathered.lookup is term.lookup:
            gathered = Gathered(self.gathered.values + term.values, term.lookup)
        else:
            return PairScores(self.values + term.at(slice(None)))
        stored = self.stored
        if stored is not None:
            stored = Stored(stored.pairs, stored.scores + term.at(stored.pairs))
        return FactoredScores(self.n_codes, self.power, gathered, stored)

    def _terms(self, rows: Any, columns: Any, pairs: Any) -> Tensor:
        """The sum of the terms; the arguments index the codes and the tables of pairs."""
        parts = []
        if self.power is not None:
            sums = (self.power.first[rows] + self.power.second[columns]).flatten()
            logs = sums.log_().add_(self.power.rest[pairs].log())
            parts.append(logs.mul_(self.power.exponent))
        if self.gathered is not None:
            parts.append(self.gathered.at(pairs))
        return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])


Scores: TypeAlias = PairScores | FactoredScores
"""What a likelihood returns: its scores, or their terms."""


@runtime_checkable
class Likelihood(Protocol):
    """Scores pairs of source codes against a mixture code."""

    n_codes: int

    def scores(self, mixture_code: int) -> Scores:
        """Log-likelihoods of the pairs of codes that may have given `mixture_code`."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """The values that it was made with, ready for JSON."""
        ...


class SourceLikelihood(Protocol):
    """Scores every source's codes against the mixture's waveform."""

    n_codes: int
    alpha: dict[str, float]
    """{source: gain in the mixtures that it is for}."""

    def log_factors(self, mixtures: Tensor) -> dict[str, Tensor]:
        """Log-factors {source: [B, T, K]} of the codes at every step of mixtures [B, T * hop].

        A posterior is proportional to the priors, the pair likelihood and exp(log-factors).
        """
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """The values that it was made with, ready for JSON."""
        ...


def check_sigma(name: str, value: object) -> None:
    """Raise ValueError unless it is a valid standard deviation; the message calls it `name`."""
    require(name, value, at_least=_SMALLEST, at_most=_LARGEST)


def check_exponent(name: str, value: object) -> None:
    """Raise ValueError unless it is a valid exponent; the message calls it `name`."""
    require(name, value, at_least=_SMALLEST, at_most=_LARGEST)


def check_smoothing(name: str, value: object, *, or_none: bool = True) -> None:
    """Raise ValueError unless it is a number of pseudo-observations, or 0 for no smoothing."""
    if not or_none or value != 0 or isinstance(value, bool):
        hint = "or 0 for no smoothing" if or_none else ""
        require(name, value, at_least=_SMALLEST, at_most=_LARGEST, hint=hint)
