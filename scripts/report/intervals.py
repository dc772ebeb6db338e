"""Pictures of means with intervals, one line high, in the page's colours and width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jukebox_core.evaluation.bootstrap import Interval

_HIDDEN = ' aria-hidden="true" focusable="false"'
_MARGIN = 3.0  # per cent on both sides, so that marks at the ends are complete


class Scale(NamedTuple):
    """The values at the left and right ends of a column's pictures."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float]) -> Scale:
        """Return whole numbers that enclose zero and the finite `values`."""
        finite = [0.0, *(v for v in values if math.isfinite(v))]
        low, high = math.floor(min(finite)), math.ceil(max(finite))
        return cls(low, max(high, low + 1))

    def at(self, value: float) -> str:
        """Return the position of a value, in per cent of the picture's width."""
        share = (value - self.low) / (self.high - self.low)
        return f"{_MARGIN + (100 - 2 * _MARGIN) * share:.2f}%"


def span(interval: Interval, scale: Scale, hollow: bool = False) -> str:
    """Return SVG of a mean and its 95% interval."""
    if not math.isfinite(interval.mean):
        return ""
    mid, low, high, zero = map(scale.at, (*interval[:3], 0.0))
    mark = ' class="hollow"' if hollow else ""
    return (
        f'<svg height="24"{_HIDDEN}><line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="24"/>'
        f'<line x1="{low}" x2="{high}" y1="12" y2="12"/>'
        f'<circle{mark} cx="{mid}" cy="12" r="5"/></svg>'
    )


def strip(values: Sequence[float], interval: Interval, scale: Scale) -> str:
    """Return SVG of all values as points, with their mean and its 95% interval below."""
    if not math.isfinite(interval.mean):
        return ""
    mid, low, high, zero = map(scale.at, (*interval[:3], 0.0))
    # Three lines of points, so that neighbours in value do not hide each other.
    points = "".join(
        f'<circle cx="{scale.at(value)}" cy="{6 + 6 * (i % 3)}" r="3"/>'
        for i, value in enumerate(sorted(v for v in values if math.isfinite(v)))
    )
    return (
        f'<svg class="strip" height="42"{_HIDDEN}>'
        f'<line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="42"/>{points}'
        f'<line class="reach" x1="{low}" x2="{high}" y1="32" y2="32"/>'
        f'<circle class="mean" cx="{mid}" cy="32" r="6"/></svg>'
    )


def ticks(scale: Scale) -> str:
    """Return the scale's ends and zero as text at their positions."""
    shown = "".join(
        f'<span style="left:{scale.at(value)}">{value:g}</span>'
        for value in sorted({scale.low, 0.0, scale.high})
    )
    return f'<div class="ticks">{shown}</div>'
