"""Compare log-probabilities of fixed sequences in each precision with the prior's float32.

    python -m benchmarks.bench_precision --threads 4 --positions 256 --candidates 8

For every precision of the device, prints the largest and the root mean square difference of the
log-probability of a code, and the largest difference of a sequence's mean, in nats per code.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from benchmarks._common import Flags, prepare, print_row
from jukebox_core.presets import PRESETS
from jukebox_core.prior.joint import Precision, accelerate
from jukebox_core.prior.model import AutoregressivePrior
from scripts._cli import program


@dataclass(frozen=True)
class Args(Flags):
    """Flags."""

    candidates: tuple[int, ...] = (8,)
    """Number of sequences."""
    positions: int = 256
    """Codes of each."""
    device: str = "cpu"
    """Where the fast path runs."""


@program
def main(args: Args) -> None:
    """Measure and print."""
    prepare(args, args.methods)
    prior = AutoregressivePrior(PRESETS[args.preset].prior).eval()
    shape = (args.candidates[0], args.positions)
    codes = torch.randint(prior.n_codes, shape)
    expected = _log_probabilities(prior(codes), codes)
    rows = []
    columns = {"precision": "{precision}", "largest": "{largest:.1e}", "rms": "{rms:.1e}"}
    columns |= {"largest mean of a sequence": "{mean:.1e}"}
    print_row(columns)
    cuda = args.device.startswith("cuda")
    for precision in ("float32", "bfloat16", *(("float16",) if cuda else ())):
        both = {"bass": prior.to(args.device), "drums": prior}
        fast = accelerate(both, cast(Precision, precision))
        cache = fast.new_cache(*shape)
        logits = []
        for t in range(args.positions):
            last = codes[:, t - 1].expand(2, -1).to(args.device) if t else None
            logits.append(fast.step(last, cache)[0].float().cpu())
        difference = _log_probabilities(torch.stack(logits, 1), codes) - expected
        row = {
            "precision": precision,
            "largest": difference.abs().max().item(),
            "rms": difference.square().mean().sqrt().item(),
            "mean": difference.mean(1).abs().max().item(),
        }
        rows.append(row)
        print_row(columns, row)
    if args.json:
        print(json.dumps(rows))


def _log_probabilities(logits: Tensor, codes: Tensor) -> Tensor:
    """Return the log-probabilities of codes [N, T], in nats."""
    return torch.log_softmax(logits, -1).gather(2, codes.unsqueeze(2)).squeeze(2)


if __name__ == "__main__":
    sys.exit(torch.inference_mode()(main)())
