"""The order in which more than two sources are added up, and the tables of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """The sum of the sources so far, and one more source.

    The sum so far is a weighted mean, as loud as one source; so are all sums but the last one, the
    mixture.

    first: {source: weight in the sum so far}; they add up to 1. second: the next source. weights:
    of the sum so far and of the next source, in their sum. of: number of sources of the mixture.
    """

    first: Mapping[str, float]
    second: str
    weights: tuple[float, float]
    of: int

    @property
    def size(self) -> int:
        """Number of sources in the sum."""
        return len(self.first) + 1

    @property
    def names(self) -> tuple[str, str]:
        """The names of both parts, such as bass+drums and other."""
        return "+".join(self.first), self.second

    @property
    def place(self) -> str:
        """The step among all, such as `2 of 3`."""
        return f"{self.size} of {self.of}"


def in_order(alpha: Mapping[str, float]) -> dict[str, float]:
    """{source: gain} in the order of the sums: more than two sources by their names."""
    names = list(alpha) if len(alpha) < 3 else sorted(alpha)
    return {name: alpha[name] for name in names}


def steps_of(alpha: Mapping[str, float]) -> list[Step]:
    """The S - 1 steps to the mixture of S sources, the mixture last.

    Args:
        alpha: {source: gain in the mixture}, in any order.
    """
    names, gains = tuple(in_order(alpha)), tuple(in_order(alpha).values())
    totals = list(accumulate(gains))
    steps = []
    for k in range(1, len(names)):
        first = {name: gain / totals[k - 1] for name, gain in zip(names[:k], gains, strict=False)}
        scale = 1.0 if k == len(names) - 1 else totals[k]
        weights = (totals[k - 1] / scale, gains[k] / scale)
        steps.append(Step(first, names[k], weights, len(names)))
    return steps


def table_of_step(table: str, size: int, of: int) -> str:
    """The file of the sum of `size` among `of` sources: `counts_2.safetensors`.

    The mixture's is the table itself, `counts.safetensors`.
    """
    path = Path(table)
    return table if size == of else path.with_stem(f"{path.stem}_{size}").as_posix()


def tables_of(table: str, sources: int) -> tuple[str, ...]:
    """The files of all steps to a mixture of so many sources, in their order."""
    return tuple(table_of_step(table, size, sources) for size in range(2, max(2, sources) + 1))
