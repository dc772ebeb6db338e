"""Compare this implementation with tensors recorded from upstream.

    python -m scripts.check_parity --fixtures DIR
    python -m scripts.check_parity --fixtures DIR --json
    python -m scripts.check_parity --fixtures DIR --output parity.json --markdown docs/parity.md

DIR holds NAME.npz with NAME.json: weights under their upstream names, inputs and expected outputs.
Sizes and hyper-parameters come from these files. The exit status is 1 if anything is out of
tolerance, a file is unknown, or there is none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from jukebox_core.files import check_replaceable, json_with, marked, write_json, write_text
from scripts._cli import program
from scripts._results import markdown_table, text_table
from scripts.check_parity import (  # noqa: F401 - each registers its checks
    codec,
    data,
    posterior,
    prior,
    search,
    tables,
    training,
)
from scripts.check_parity.fixtures import (
    FORWARD,
    GRADIENT,
    HEAD,
    MARGIN,
    TRAJECTORY,
    Row,
    as_json,
    cells,
    find_fixtures,
    run_fixture,
)

_INTRODUCTION = """\
# Numerical parity

This table compares our implementation with tensors recorded from upstream at small sizes: upstream
weights are loaded under their upstream names, the recorded inputs go through our public functions,
and the outputs are compared. The command

    python -m scripts.check_parity --fixtures DIR --markdown docs/parity.md

writes this file from any folder of that format, on a CPU in float32 with one thread.

An error is the largest difference relative to the largest magnitude of the recorded tensor.

- Codec, losses, logits, posteriors, tables: {forward:.0e}. Counts, choices and orders: exact.
- Codes: equal wherever the second-best code is further than the best by more than {margin:.0e}
  (squared distance); nearer to a tie, any code within {margin:.0e} of the least distance is right.
- Gradient norms and gradients {gradient:.0e}: sums over thousands of positions, in an order that
  the kernels choose.
- Training trajectories {trajectory:.0e}: every step builds on the rounding of the steps before.

The checks read every option of the loss (`jukebox_core/upstream/loss.py`) from the side-cars:
`loss_fn`, the weights of `lmix`, `linf_k`, the STFTs, `use_nonrelative_specloss`, the bandwidths.
Tests compare the options that no recording has with formulas in float64
(`tests/test_upstream_loss.py`).

The checks allow for two properties of the recordings, and note each case:

- The training trajectories hold their parameters by reference, so that `sd_before` is the state
  after the last step. A seeded generator drew their start; the check draws it again and runs the
  whole trajectory from there (`scripts/check_parity/seeds.py`). If no seed fits, it compares only
  the loss at the recorded end. A codec's trajectory does not record its loss: the check takes the
  loss that reproduces the first recorded step, from the loss fixtures or upstream's default.
- During the optimiser steps an average on the CPU shared its memory with the parameters and removed
  (1 - mu)^2 of them at every step.

The mean of two codes is equally far from both, so that rounding decides in the evaluated
linearisation loss. One thread reproduces the recorded choices; elsewhere the largest difference
that ties can make is subtracted and noted.

Not reproduced, on purpose: the ranking of the recorded beam search, which re-orders its scores a
second time (we score its beams and obtain the recorded true scores). Not implemented: attention to
an encoder, lyrics and label conditioning, which upstream's separation does not use; loading such
weights is refused.
"""
_IS_MARKDOWN = marked(
    "# Numerical parity",
    "python -m scripts.check_parity --fixtures DIR --markdown docs/parity.md",
)


@dataclass(frozen=True)
class Args:
    """Flags of scripts.check_parity."""

    fixtures: Path
    """Folder of fixtures."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the table as JSON."""
    output: Path | None = None
    """File to write the table to as JSON."""
    markdown: Path | None = None
    """File to write the table to as Markdown, with an introduction."""


def run(folder: Path) -> list[Row]:
    """Check all fixtures of a folder.

    Raises:
        FileNotFoundError: There is none.
    """
    rows: list[Row] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as recorded: another order of sums breaks ties differently
    try:
        for path in find_fixtures(folder):
            rows += run_fixture(path)
    finally:
        torch.set_num_threads(threads)
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown, with an introduction."""
    introduction = _INTRODUCTION.format(
        forward=FORWARD, gradient=GRADIENT, trajectory=TRAJECTORY, margin=MARGIN
    )
    return f"{introduction}\n{markdown_table(HEAD, cells(rows))}\n{summary(rows)}\n"


def summary(rows: Sequence[Row]) -> str:
    """Summarise the rows in one sentence."""
    listed = sum(row.error is None for row in rows)
    return (
        f"{len({row.fixture for row in rows})} fixtures, {len(rows) - listed} comparisons, "
        f"{sum(not row.ok for row in rows)} out of tolerance, {listed} variants not implemented."
    )


@program
def main(args: Args) -> int:
    """Run, print and write the table; return 1 if anything is out of tolerance."""
    if args.output is not None:
        check_replaceable(args.output, json_with("ok", "rows.0.fixture"), "a table of parity")
    if args.markdown is not None:
        check_replaceable(args.markdown, _IS_MARKDOWN, "a table of parity")
        if args.output is not None and args.output.resolve() == args.markdown.resolve():
            raise ValueError(f"output and markdown are both {args.output}: choose two files")
    rows = run(args.fixtures)
    if args.json:
        print(json.dumps(as_json(rows), indent=2))
    else:
        print(f"{text_table([HEAD, *cells(rows)], left=len(HEAD))}\n\n{summary(rows)}")
    if args.output is not None:
        write_json(args.output, as_json(rows))
    if args.markdown is not None:
        write_text(args.markdown, markdown(rows))
    failed = [f"{row.fixture} {row.function}" for row in rows if not row.ok]
    if failed:
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        print(f"error: out of tolerance: {', '.join(failed[:5])}{more}", file=sys.stderr)
    return int(bool(failed))
