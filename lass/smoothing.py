"""Base distributions for the smoothing of counts.

A base distribution q(m | z1, z2) estimates the mixture code of every pair; the smoothed likelihood
(`lass.likelihood.SmoothedLikelihood`) adds it to the counts as pseudo-observations. This is
Dirichlet smoothing with q as the mean of the prior (MacKay and Bauman Peto 1995).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from jukebox_core.inverse_cdf import invert
from jukebox_core.separation.likelihood import Gathered
from lass.counts import Counts

_CONCENTRATION = 10.0
"""Pseudo-observations of p(m) in p(m | code)."""


class Spread(Protocol):
    """Weights of pairs, shared out over the codes that a base distribution gives them."""

    @property
    def mass(self) -> Tensor:
        """The sums over all pairs, [N, K]."""
        ...

    def draw(self, rows: Tensor, codes: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs (first, second), [R] each, that give the codes.

        Args:
            rows: of the N, [R].
            codes: one for each of the rows, [R].
            uniform: [R, 2], in [0, 1).
        """
        ...


class WeightedBase(Protocol):
    """The distribution of weights[i, j] q(m | i, j), for weights that stay."""

    def spread(self, first: Tensor, second: Tensor) -> Spread:
        """The distribution of first[n, i] second[n, j] weights[i, j] q(m | i, j); [N, K] each."""
        ...


class BaseFactors(NamedTuple):
    """q(m | i, j) = (first[i] + second[j]) exp(values[lookup[i, j]]) of one mixture code m.

    first, second: [K]. gathered: values and lookup; None: no such factor.
    """

    first: Tensor
    second: Tensor
    gathered: Gathered | None = None


class Base(Protocol):
    """A base distribution q(m | z1, z2) over the mixture codes of all pairs."""

    n_codes: int

    def factors(self, mixture_code: int) -> BaseFactors:
        """q(mixture_code | z1, z2) of all pairs, as a product."""
        ...

    def of_pairs(self, codes: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """q(code | first, second) of triples, [N]."""
        ...

    def weighted(self, weights: Tensor) -> WeightedBase:
        """Times the weights of pairs, [K, K], whose type is that of the results."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Its name as `smoothing_base`, and further values, ready for JSON."""
        ...


def check_base(base: Base, counts: Counts) -> None:
    """Raise ValueError if counts and base have different numbers of codes."""
    if base.n_codes != counts.n_codes:
        raise ValueError(
            f"counts over {counts.n_codes} codes, a base distribution over {base.n_codes}"
        )


def overall_frequencies(counts: Counts) -> Tensor:
    """p(m), float64 [K], with half an observation of every code: none is impossible."""
    seen = np.bincount(counts.mixture, weights=counts.counts, minlength=counts.n_codes) + 0.5
    return torch.from_numpy(seen / seen.sum())


class Overall:
    """q(m | z1, z2) = p(m), whatever the pair."""

    settings: ClassVar[dict[str, Any]] = {"smoothing_base": "overall"}

    def __init__(self, counts: Counts, device: torch.device | str = "cpu"):
        self.n_codes = counts.n_codes
        self._frequencies = overall_frequencies(counts).float().to(device)

    def factors(self, mixture_code: int) -> BaseFactors:
        """p(mixture_code) for every pair."""
        same = self._frequencies[mixture_code].repeat(self.n_codes)
        return BaseFactors(same, 0 * same)

    def of_pairs(self, codes: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """p(code), [N]."""
        return self._frequencies[codes]

    def weighted(self, weights: Tensor) -> _WeightedFactors:
        """The pairs whatever their code, times p(m)."""
        frequencies = self._frequencies.unsqueeze(1).expand(-1, self.n_codes)
        return _WeightedFactors(weights, frequencies)


class Marginals:
    """q(m | z1, z2) = (p(m | z1) + p(m | z2)) / 2."""

    settings: ClassVar[dict[str, Any]] = {"smoothing_base": "marginals"}

    def __init__(self, counts: Counts, device: torch.device | str = "cpu"):
        self.n_codes = counts.n_codes
        mixture = torch.from_numpy(counts.mixture.astype(np.int64))
        seen = torch.from_numpy(counts.counts).double()
        overall = overall_frequencies(counts)
        self._halves = [
            self._conditional(torch.from_numpy(codes.astype(np.int64)), mixture, seen, overall)
            .div(2)
            .T.contiguous()  # by mixture code
            .float()
            .to(device)
            for codes in (counts.first, counts.second)
        ]

    @staticmethod
    def _conditional(codes: Tensor, mixture: Tensor, seen: Tensor, overall: Tensor) -> Tensor:
        """p(m | code), [K, K], float64."""
        k = len(overall)
        table = torch.zeros(k * k, dtype=torch.float64).index_add_(0, codes * k + mixture, seen)
        smoothed = table.view(k, k) + _CONCENTRATION * overall
        return smoothed / smoothed.sum(1, keepdim=True)

    def factors(self, mixture_code: int) -> BaseFactors:
        """Half of both codes' p(mixture_code | code)."""
        one, other = self._halves
        return BaseFactors(one[mixture_code], other[mixture_code])

    def of_pairs(self, codes: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The mean of p(code | first) and p(code | second), [N]."""
        one, other = self._halves
        return one[codes, first] + other[codes, second]

    def weighted(self, weights: Tensor) -> _WeightedFactors:
        """The pairs by their first codes' distributions and by their second codes'."""
        return _WeightedFactors(weights, *self._halves)


class _WeightedFactors:
    """Weights times q(m | i, j) = of_first[m, i] + of_second[m, j]; None: no second term."""

    def __init__(self, weights: Tensor, of_first: Tensor, of_second: Tensor | None = None):
        self._weights = weights
        self._tables = [
            table.to(weights.dtype) for table in (of_first, of_second) if table is not None
        ]

    def spread(self, first: Tensor, second: Tensor) -> _Factors:
        """The distribution for probabilities of both codes."""
        return _Factors(first, second, self._weights, self._tables)


class _Factors:
    """A `Spread` of q(m | i, j) = tables[0][m, i] + tables[1][m, j], or of the first term alone."""

    def __init__(self, first: Tensor, second: Tensor, weights: Tensor, tables: Sequence[Tensor]):
        self._first, self._second = first, second
        self._weights, self._tables = weights, tables
        self._masses = [first * (second @ weights.T)]  # of the first codes [N, K]
        if len(tables) > 1:
            self._masses.append(second * (first @ weights))
        terms = zip(self._masses, self._tables, strict=True)
        self.mass = torch.stack([mass @ table.T for mass, table in terms]).sum(0)

    def draw(self, rows: Tensor, codes: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """One code by its mass and its table, then the other."""
        terms = zip(self._masses, self._tables, strict=True)
        weights = torch.cat([mass[rows] * table[codes] for mass, table in terms], 1)
        drawn, _ = invert(weights, uniform[:, 0])
        n_codes = self._first.shape[1]
        code, by_first = drawn % n_codes, drawn < n_codes
        given = torch.where(
            by_first.unsqueeze(1),
            self._second[rows] * self._weights[code],
            self._first[rows] * self._weights[:, code].T,
        )
        other, _ = invert(given, uniform[:, 1])
        return torch.where(by_first, code, other), torch.where(by_first, other, code)


MakeBase: TypeAlias = Callable[[Counts, torch.device | str], Base]
"""Makes a base distribution of counts on a device."""
BASES: Mapping[str, MakeBase] = {"marginals": Marginals, "overall": Overall}
"""The base distributions that need only counts, by name."""
