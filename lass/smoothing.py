"""What a pair of codes says of the mixture's code before the pair itself was counted often.

A back-off is a distribution q(m | z1, z2) over the mixture codes of every pair; the smoothed
likelihood (`lass.likelihood.SmoothedLikelihood`) takes it for so many observations. This is
Dirichlet smoothing with q as the prior's mean (MacKay and Bauman Peto 1995).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lass.counts import Counts

__all__ = ["BACKOFFS", "Backoff", "MakeBackoff", "Marginals", "Overall", "overall_frequencies"]

_TOWARDS_OVERALL = 10.0
"""Observations that p(m) is worth in p(m | code)."""


class Backoff(Protocol):
    """q(m | z1, z2) of all pairs."""

    n_codes: int

    def given(self, mixture_code: int) -> Tensor:
        """q(mixture_code | z1, z2), [K * K] in row-major order; the caller may write to it."""
        ...


def overall_frequencies(counts: Counts) -> Tensor:
    """p(m), float64 [K], with half an observation of every code: none is impossible."""
    seen = np.bincount(counts.mixture, weights=counts.counts, minlength=counts.n_codes) + 0.5
    return torch.from_numpy(seen / seen.sum())


class Overall:
    """q(m | z1, z2) = p(m): what is known without looking at the pair."""

    def __init__(self, counts: Counts, device: torch.device | str = "cpu"):
        self.n_codes = counts.n_codes
        self._frequencies = overall_frequencies(counts).float().to(device)

    def given(self, mixture_code: int) -> Tensor:
        """p(mixture_code) for every pair, [K * K]."""
        return self._frequencies[mixture_code].repeat(self.n_codes**2)


class Marginals:
    """q(m | z1, z2) = (p(m | z1) + p(m | z2)) / 2: the mean of what each code says alone."""

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
        smoothed = table.view(k, k) + _TOWARDS_OVERALL * overall
        return smoothed / smoothed.sum(1, keepdim=True)

    def given(self, mixture_code: int) -> Tensor:
        """The mean of both codes' p(mixture_code | code), [K * K]."""
        first, second = (half[mixture_code] for half in self._halves)
        return (first.unsqueeze(1) + second).flatten()


MakeBackoff: TypeAlias = Callable[[Counts, torch.device | str], Backoff]
"""From counts, and the device where q is wanted."""
BACKOFFS: Mapping[str, MakeBackoff] = {"marginals": Marginals, "overall": Overall}
"""Those that counts alone give, by name."""
