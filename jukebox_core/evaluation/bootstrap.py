"""Means with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jukebox_core.checks import require_seed

_BLOCK = 1 << 22  # drawn values held at a time
_CONFIDENCE = 0.95
_RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean, its confidence interval, and how many values it is of; NaN where there is none."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """The mean and its 95% percentile bootstrap interval of 10,000 means; NaNs are left out.

    Args:
        values: one number per item, such as a score per chunk.
        seed: same seed, same interval.

    Raises:
        ValueError: an infinite value, or an invalid seed.
    """
    require_seed("seed", seed)
    kept = np.asarray(values, dtype=np.float64).ravel()
    kept = kept[~np.isnan(kept)]
    if np.isinf(kept).any():
        raise ValueError(f"{int(np.isinf(kept).sum())} of {len(kept)} values are infinite")
    if len(kept) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(kept))
    means = np.concatenate(
        [
            kept[generator.integers(len(kept), size=(min(rows, _RESAMPLES - i), len(kept)))].mean(1)
            for i in range(0, _RESAMPLES, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Interval(float(kept.mean()), float(low), float(high), len(kept))


def paired_difference(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray
) -> Interval:
    """The mean of `first - second` over items that both have, with its bootstrap interval.

    What the items have in common (an easy song is easy for every method) drops out, so the interval
    is narrower than the intervals of the two means.

    Raises:
        ValueError: the two differ in length.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs are wanted, but there are {a.shape} and {b.shape} values")
    return bootstrap_mean(a - b)
