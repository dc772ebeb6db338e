"""Means with bootstrap confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
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

    def as_json(self) -> dict[str, float | None]:
        """The fields; None for NaN."""
        return {name: finite(value) for name, value in self._asdict().items()}


def finite(value: float) -> float | None:
    """The value for JSON, which has no NaN: None."""
    return None if math.isnan(value) else value


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """The mean and its 95% percentile bootstrap interval of 10,000 means; NaNs are left out.

    With groups it is the cluster bootstrap: a resample draws as many groups as there are, with
    replacement, and takes all values of each. Values of one group, such as the chunks of a song,
    are then not treated as independent. If every group has one value, the interval is the same as
    without groups, bit for bit.

    Args:
        values: one number per item, such as a score per chunk.
        seed: same seed, same interval.
        groups: the group of every value, such as its song; None: every value is its own.

    Raises:
        ValueError: an infinite value, an invalid seed, or not one group per value.
    """
    require_seed("seed", seed)
    kept = np.asarray(values, dtype=np.float64).ravel()
    if groups is not None and len(groups) != len(kept):
        raise ValueError(f"there are {len(groups)} groups, expected one for each of {len(kept)}")
    scored = ~np.isnan(kept)
    kept = kept[scored]
    if np.isinf(kept).any():
        raise ValueError(f"{int(np.isinf(kept).sum())} of {len(kept)} values are infinite")
    if len(kept) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    sums, sizes = kept, None
    if groups is not None:
        sums, sizes = _by_group(kept, [g for g, s in zip(groups, scored, strict=True) if s])
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(sums))
    means = []
    for i in range(0, _RESAMPLES, rows):
        drawn = generator.integers(len(sums), size=(min(rows, _RESAMPLES - i), len(sums)))
        totals = sums[drawn].sum(1)
        means.append(totals / (len(sums) if sizes is None else sizes[drawn].sum(1)))
    low, high = np.quantile(np.concatenate(means), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Interval(float(kept.mean()), float(low), float(high), len(kept))


def _by_group(values: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """The sums and the numbers of the values of every group, in the order of first appearance."""
    order: dict[Hashable, int] = {}
    index = [order.setdefault(group, len(order)) for group in groups]
    return np.bincount(index, weights=values), np.bincount(index).astype(np.float64)


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """The mean of `first - second` over items that both have, with its bootstrap interval.

    What the items have in common (an easy song is easy for every method) drops out, so the interval
    is narrower than the intervals of the two means.

    Args:
        first: one number per item.
        second: of the same items.
        groups: the group of every item, see `bootstrap_mean`.

    Raises:
        ValueError: the two differ in length, or the groups do.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs are wanted, but there are {a.shape} and {b.shape} values")
    return bootstrap_mean(a - b, groups=groups)
