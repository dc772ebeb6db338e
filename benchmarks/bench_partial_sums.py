"""Masses and draws of a partial sum of sources, against a first implementation.

    python -m benchmarks.bench_partial_sums --preset demo --candidates 32 --threads 1

mass    the mass of every code of a sum, over all K x K pairs of codes. Plain: each candidate's
        joint is added up by the sums' codes (`index_add`).
draw    a pair of a given sum for every candidate. Plain: the pairs of this sum are looked for, and
        `torch.multinomial` draws one.

The codes of the sums are random. max_difference is relative to the largest mass; draws have none.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import Flags, compare, finish, prepare, row
from jukebox_core.presets import PRESETS
from jukebox_core.separation.pair_groups import PairGroups
from scripts._cli import program

METHODS = ("mass", "draw")


@program
def main(args: Flags) -> None:
    """Measure and print."""
    methods = prepare(args, METHODS)
    n_codes = PRESETS[args.preset].vqvae.l_bins
    sums = torch.randint(n_codes, (n_codes**2,))
    groups = PairGroups.by_sum(sums, n_codes)
    rows = []
    for count in args.candidates:
        one, other = torch.rand(2, count, n_codes, dtype=torch.float64)
        if "mass" in methods:
            rows.append(bench_mass(args, groups, sums, one, other))
        if "draw" in methods:
            rows.append(bench_draw(args, groups, sums, one, other))
    finish(args, rows)


def bench_mass(
    args: Flags, groups: PairGroups, sums: Tensor, one: Tensor, other: Tensor
) -> dict[str, Any]:
    """All masses of all candidates [N, K]."""

    def plain() -> Tensor:
        total = torch.zeros_like(one)
        for n, (own, next_) in enumerate(zip(one, other, strict=True)):
            total[n].index_add_(0, sums, torch.outer(own, next_).flatten())
        return total

    timed = compare(lambda: groups.mass(one, other), plain, repeats=args.repeats)
    difference = (timed.result - timed.plain_result).abs().max() / timed.plain_result.max()
    return row(args, "mass", len(one), 1, timed, float(difference))


def bench_draw(
    args: Flags, groups: PairGroups, sums: Tensor, one: Tensor, other: Tensor
) -> dict[str, Any]:
    """A pair for every candidate."""
    count, n_codes = one.shape
    drawn = sums[torch.randint(len(sums), (count,))]  # sums that have pairs
    uniform = torch.rand(count, dtype=torch.float64)

    def plain() -> Tensor:
        places = []
        for own, next_, code in zip(one, other, drawn, strict=True):
            pairs = (sums == code).nonzero().squeeze(1)
            weights = own[pairs // n_codes] * next_[pairs % n_codes]
            places.append(pairs[weights.multinomial(1)])
        return torch.cat(places)

    timed = compare(lambda: groups.draw(drawn, one, other, uniform), plain, repeats=args.repeats)
    first, second = timed.result
    assert torch.equal(sums[first * n_codes + second], drawn)
    return row(args, "draw", count, 1, timed, 0.0)


if __name__ == "__main__":
    sys.exit(main())
