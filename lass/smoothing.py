"""Base distributions for the smoothing of counts.

A base distribution q(m | z1, z2) estimates the mixture code of every pair; the smoothed likelihood
(`lass.likelihood.SmoothedLikelihood`) adds it to the counts as pseudo-observations. This is
Dirichlet smoothing with q as the mean of the prior (MacKay and Bauman Peto 1995).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lass.counts import Counts

_CONCENTRATION = 10.0
"""Pseudo-observations of p(m) in p(m | code)."""


class Base(Protocol):
    """A base distribution q(m | z1, z2) over the mixture codes of all pairs."""

    n_codes: int

    def probabilities(self, mixture_code: int) -> Tensor:
        """q(mixture_code | z1, z2), [K * K] in row-major order; the caller may write to it."""
        ...

    def expected(self, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
        """Sum of first[n, i] second[n, j] weights[i, j] q(m | i, j) over the pairs, [N, K].

        Args:
            first: [N, K].
            second: [N, K].
            weights: [K, K], all of one type.
        """
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Its name as `smoothing_base`, and further values, ready for JSON."""
        ...


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

    def probabilities(self, mixture_code: int) -> Tensor:
        """p(mixture_code) for every pair, [K * K]."""
        return self._frequencies[mixture_code].repeat(self.n_codes**2)

    def expected(self, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
        """The whole mass, shared out by p(m), [N, K]."""
        mass = (first * (second @ weights.T)).sum(1, keepdim=True)
        return mass * self._frequencies.to(first.dtype)


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

    def probabilities(self, mixture_code: int) -> Tensor:
        """The mean of both codes' p(mixture_code | code), [K * K]."""
        first, second = (half[mixture_code] for half in self._halves)
        return (first.unsqueeze(1) + second).flatten()

    def expected(self, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
        """The mass of every first and of every second code, shared out by p(m | code), [N, K]."""
        of_first, of_second = (half.to(first.dtype).T for half in self._halves)  # [code, m]
        by_first = (first * (second @ weights.T)) @ of_first
        return by_first + (second * (first @ weights)) @ of_second


MakeBase: TypeAlias = Callable[[Counts, torch.device | str], Base]
"""Makes a base distribution of counts on a device."""
BASES: Mapping[str, MakeBase] = {"marginals": Marginals, "overall": Overall}
"""The base distributions that need only counts, by name."""
