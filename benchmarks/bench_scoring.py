"""Scores of many candidates of two sources in one call, against museval candidate by candidate.

    python -m benchmarks.bench_scoring --candidates 64 --threads 4 --json

framewise_sdr   BSSEval v4's SDR, windows of 44,100 samples. Plain: `museval.evaluate`, which
                upstream calls for every candidate.
sdr             SDR of the whole chunk. Plain: museval with one window over it.
si_sdr          scale-invariant SDR. museval has none; plain: the formula in NumPy, one by one.

museval can be imported only where ffmpeg and ffprobe are on the PATH (`apt-get install ffmpeg`).
max_difference is in dB.
"""

from __future__ import annotations

import shutil
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import Flags, compare, finish, prepare, row
from jukebox_core.evaluation import metrics
from jukebox_core.presets import PRESETS
from scripts._cli import program

METHODS = ("framewise_sdr", "sdr", "si_sdr")
_SOURCES = 2


@program
def main(args: Flags) -> None:
    """Measure and print."""
    methods = prepare(args, METHODS)
    if set(methods) - {"si_sdr"}:
        check_museval()
    rows = []
    for count in args.candidates:
        references, estimates = signals(args, count)
        rows += [bench(args, name, references, estimates) for name in methods]
    finish(args, rows)


def check_museval() -> None:
    """Import museval, or raise ValueError or ImportError with what it needs."""
    tools = [name for name in ("ffmpeg", "ffprobe") if not shutil.which(name)]
    if tools:
        raise ValueError(f"museval needs {' and '.join(tools)} on the PATH: install ffmpeg")
    import museval  # noqa: F401


def signals(args: Flags, count: int) -> tuple[Tensor, Tensor]:
    """References [S, T] and estimates [N, S, T], from good to bad."""
    samples = args.positions * PRESETS[args.preset].vqvae.hop
    references = 0.1 * torch.randn(_SOURCES, samples)
    level = torch.linspace(0.02, 0.2, count).view(-1, 1, 1)
    return references, references + level * torch.randn(count, _SOURCES, samples)


def bench(args: Flags, name: str, references: Tensor, estimates: Tensor) -> dict[str, Any]:
    """One score of all estimates in one call, against one by one."""
    score = getattr(metrics, name)
    if name == "si_sdr":
        plain, plain_repeats = plain_si_sdr, args.repeats
    else:
        plain, plain_repeats = plain_museval, 1
    window = metrics.BSSEVAL_WINDOW if name == "framewise_sdr" else references.shape[1]
    timed = compare(
        lambda: score(references, estimates),
        lambda: plain(references, estimates, window),
        repeats=args.repeats,
        plain_repeats=plain_repeats,
        warm_up=False,
    )
    difference = np.abs(timed.result.numpy() - timed.plain_result).max().item()
    return row(args, name, len(estimates), args.positions, timed, difference)


def plain_museval(references: Tensor, estimates: Tensor, window: int) -> np.ndarray:
    """SDR [N, S]: museval's median over windows, candidate by candidate."""
    import museval

    truth = references.double().unsqueeze(-1).numpy()  # [S, T, 1]
    scores = []
    for candidate in estimates.double().unsqueeze(-1).numpy():
        frames = museval.evaluate(truth, candidate, window, window, mode="v4")[0]  # [S, W]
        scores.append(np.nanmedian(np.where(np.isfinite(frames), frames, np.nan), axis=1))
    return np.stack(scores)


def plain_si_sdr(references: Tensor, estimates: Tensor, window: int) -> np.ndarray:
    """SI-SDR [N, S] over the whole signal, one by one."""
    truth, candidates = references.double().numpy(), estimates.double().numpy()
    scores = np.empty(candidates.shape[:2])
    for n, s in np.ndindex(scores.shape):
        reference, estimate = truth[s], candidates[n, s]
        target = (estimate @ reference) / (reference @ reference) * reference
        noise = target - estimate
        scores[n, s] = 10 * np.log10((target**2).sum() / (noise**2).sum())
    return scores


if __name__ == "__main__":
    sys.exit(main())
