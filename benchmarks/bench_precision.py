"""Compare log-probabilities of fixed sequences in each precision with the prior's float32.

    python -m benchmarks.bench_precision --threads 4 --positions 256 --candidates 8
    python -m benchmarks.bench_precision --prior runs/demo/models/linearisation/prior_bass

For every precision of the device, prints the largest and the root mean square difference of the
log-probability of a code, and the largest difference of a sequence's mean, in nats per code. Random
weights are given random codes; a trained prior (`--prior`), codes drawn from it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import Flags, prepare, print_row
from jukebox_core.checkpoints import load_prior
from jukebox_core.presets import PRESETS
from jukebox_core.prior.cpu import CpuDecoder
from jukebox_core.prior.joint import Precision, accelerate
from jukebox_core.prior.kernels import find_kernels
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
    prior: Path | None = None
    """Run folder of a trained prior; default: random weights of the preset's size."""


@program
def main(args: Args) -> None:
    """Measure and print."""
    prepare(args, args.methods)
    shape = (args.candidates[0], args.positions)
    if args.prior is None:
        prior = AutoregressivePrior(PRESETS[args.preset].prior).eval()
        codes = torch.randint(prior.n_codes, shape)
    else:
        prior = load_prior(args.prior)
        codes = drawn(prior, *shape)
    expected = _log_probabilities(prior(codes), codes)
    rows = []
    columns = {"precision": "{precision}", "largest": "{largest:.1e}", "rms": "{rms:.1e}"}
    columns |= {"largest mean of a sequence": "{mean:.1e}"}
    print_row(columns)
    cuda = args.device.startswith("cuda")
    more: tuple[Precision, ...] = ("float16",) if cuda else ()
    if not cuda and find_kernels().integer_limit:
        more = ("int8",)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", *more)
    for precision in precisions:
        both = {"bass": prior.to(args.device), "drums": prior}
        fast = accelerate(both, precision)
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


def drawn(prior: AutoregressivePrior, count: int, length: int) -> Tensor:
    """Sequences of codes [count, length], each code drawn from its distribution."""
    decoder = CpuDecoder(prior)
    cache = decoder.new_cache(count, length)
    codes: list[Any] = [None]
    for _ in range(length):
        logits = decoder.step(codes[-1], cache)
        codes.append(torch.multinomial(logits.softmax(-1), 1).squeeze(1))
    return torch.stack(codes[1:], 1)


def _log_probabilities(logits: Tensor, codes: Tensor) -> Tensor:
    """Return the log-probabilities of codes [N, T], in nats."""
    return torch.log_softmax(logits, -1).gather(2, codes.unsqueeze(2)).squeeze(2)


if __name__ == "__main__":
    sys.exit(torch.inference_mode()(main)())
