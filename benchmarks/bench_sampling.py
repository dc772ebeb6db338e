"""Time of a sampling step: priors of the paper's size with random weights, 1024 positions.

    python -m benchmarks.bench_sampling --candidates 16 64 --threads 4
    python -m benchmarks.bench_sampling --sources 2 3 4 --candidates 64 --positions 64 --plain 0

The package runs all positions one after the other, like the sampler. The plain path (_plain.py)
runs only at `--plain` positions spread over the same range, with caches filled up to there, since
all positions would take half an hour. Counts and code sums are random: the mixture code changes at
every step, unlike in real music.

The columns `first 16` and `last 16` are medians over the first and last positions of the chunk.
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import Flags, peak_mb, prepare, print_row, reset_peak
from benchmarks._plain import PlainDecoder, plain_draw
from data.composer import PARTS
from hybrid import PooledLikelihood
from hybrid.separator import POOLED_EXPONENT
from hybrid.smoothing import GaussianBase
from jukebox_core.config import PriorConfig
from jukebox_core.presets import PRESETS, Preset
from jukebox_core.prior.cache import slot_of
from jukebox_core.prior.cpu import activation_dtype
from jukebox_core.prior.joint import JointPriors, Precision, accelerate, choose_dtype
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.chain import Chain
from jukebox_core.separation.likelihood import Likelihood
from lass.counts import Counts
from lass.likelihood import EXPONENT, SMOOTHING, CountLikelihood, SmoothedLikelihood
from lass.link import CountLink
from lass.smoothing import Marginals
from lqvae.likelihood import LatentGaussianLikelihood
from lqvae.link import SumLink
from scripts._cli import program

METHODS = ("lqvae", "lass", "hybrid")
COLUMNS = {
    "method": "{method}",
    "sources": "{sources}",
    "N": "{candidates}",
    "ms/position": "{ms_per_position:.1f}",
    "plain": "{plain_ms_per_position:.0f}",
    "ratio": "{ratio:.1f}x",
    "first 16": "{first_ms:.1f}",
    "last 16": "{last_ms:.1f}",
    "cache MB": "{cache_mb:.0f}",
    "tables MB": "{tables_mb:.0f}",
    "peak MB": "{peak_mb:.0f}",
}


@dataclass(frozen=True)
class Args(Flags):
    """Flags."""

    candidates: tuple[int, ...] = (1, 16, 64)
    """Joint candidates, sampled together."""
    precision: Precision = "auto"
    """Precision of the package; the plain path is float32."""
    published: bool = False
    """Counted likelihoods as published, over stored pairs alone; otherwise the defaults."""
    pairs: int = 20_000
    """Stored pairs per mixture code."""
    plain: int = 16
    """Positions at which the plain path is measured; 0 leaves it out. It has two sources only."""
    sources: tuple[int, ...] = (2,)
    """Numbers of sources, 2 to 5."""
    device: str = "cpu"
    """Device of the package's path."""


@program
def main(args: Args) -> None:
    """Measure, print the table, and the JSON line."""
    methods = prepare(args, METHODS)
    preset = PRESETS[args.preset]
    if args.positions > preset.prior.n_ctx:
        raise ValueError(f"{args.positions} positions, the prior has {preset.prior.n_ctx}")
    if not args.sources or not {2, 3, 4, 5}.issuperset(args.sources):
        raise ValueError(f"sources are {args.sources}, expected numbers from 2 to 5")
    every = {name: AutoregressivePrior(preset.prior).eval() for name in PARTS[: max(args.sources)]}
    print(f"{args.preset}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print_row(COLUMNS)
    rows = []
    for sources in args.sources:
        priors = dict(itertools.islice(every.items(), sources))
        fast = accelerate({k: p.to(args.device) for k, p in priors.items()}, args.precision)
        for method in methods:
            scores = make_likelihood(method, preset, args, sources)
            for candidates in args.candidates:
                rows.append(measure(method, candidates, priors, fast, scores, args))
                print_row(COLUMNS, rows[-1])
    if args.json:
        print(json.dumps(rows))


def measure(
    method: str,
    candidates: int,
    priors: Mapping[str, AutoregressivePrior],
    fast: JointPriors,
    scores: Likelihood,
    args: Args,
) -> dict[str, Any]:
    """One row: ours at every position, the plain path between some of them."""
    mixture = torch.randint(scores.n_codes, (1, args.positions), device=args.device)
    count = args.plain if len(priors) == 2 else 0
    where = set(np.linspace(0, args.positions - 1, count).astype(int).tolist())
    ours: list[float] = []
    plain: list[float] = []
    held: list[float] = []
    began = [0.0]

    def after(done: int, _: int) -> None:
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        ours.append(1e3 * (time.perf_counter() - began[0]))
        held.append(peak_mb())
        if done - 1 in where:
            plain.append(1e3 * plain_step(priors, scores, mixture, candidates, done - 1))
            reset_peak()
        began[0] = time.perf_counter()

    reset_peak()
    sampler, generator = AncestralSampler(), torch.Generator().manual_seed(0)
    sampler(fast, scores, mixture[:, :4], candidates, generator)  # packs weights, records graphs
    began[0] = time.perf_counter()
    sampler(fast, scores, mixture, candidates, generator, after)
    mean, plain_mean = statistics.fmean(ours), statistics.fmean(plain) if plain else None
    return {
        "method": method,
        "sources": len(priors),
        "candidates": candidates,
        "positions": args.positions,
        "ms_per_position": mean,
        "plain_ms_per_position": plain_mean,
        "ratio": None if plain_mean is None else plain_mean / mean,
        "peak_mb": max(held),
        "cache_mb": fast.new_cache(candidates, args.positions).nbytes() / 1e6,
        "tables_mb": tensor_bytes(scores) / 1e6,
        "weights_mb": weights_bytes(priors, args) / 1e6,
        "first_ms": statistics.median(ours[1:17]),
        "last_ms": statistics.median(ours[-16:]),
        **floor(priors, candidates, args),
    }


def tensor_bytes(value: object, seen: set[int] | None = None) -> int:
    """Return the bytes of all tensors that an object holds, each once."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        new = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return storage.nbytes() if new else 0
    if isinstance(value, list | tuple):
        parts: Iterable[object] = value
    elif isinstance(value, Mapping):
        parts = value.values()
    elif hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
        parts = vars(value).values()
    else:
        return 0
    if id(value) in seen:
        return 0
    seen.add(id(value))
    return sum(tensor_bytes(part, seen) for part in parts)


def weights_bytes(priors: Mapping[str, AutoregressivePrior], args: Args) -> int:
    """Return the bytes of the priors' weights in the type that they are decoded in."""
    dtype = choose_dtype(torch.device(args.device), args.precision)
    sizes = (p.numel() for prior in priors.values() for p in prior.parameters())
    return dtype.itemsize * sum(sizes)


def floor(
    priors: Mapping[str, AutoregressivePrior], candidates: int, args: Args
) -> dict[str, float]:
    """Return the least work of a step: gigabytes read once, and billions of operations, on average.

    Weights of all matrices, and the keys and values that the layers attend to; two operations per
    weight and candidate, four per component of an attended position.
    """
    dtype = choose_dtype(torch.device(args.device), args.precision)
    layers = heads = rows = 0.0
    for prior in priors.values():
        layers += sum(p.numel() for p in prior.blocks.parameters())
        heads += prior.head.weight.numel()
        rows += attended(prior.config, range(args.positions))
    other = activation_dtype(dtype).itemsize
    read = layers * dtype.itemsize + (heads + 2 * candidates * rows) * other
    weights = layers + heads
    operations = 2 * candidates * weights + 4 * candidates * rows
    return {"gbyte_per_position": read / 1e9, "gflop_per_position": operations / 1e9}


def attended(config: PriorConfig, positions: range) -> float:
    """Return the components of keys that all layers of a prior attend to, mean of positions."""
    rows = 0.0
    for kind in config.attention_kinds:
        slots = [slot_of(kind, t, config.block_length) for t in positions]
        rows += statistics.fmean(slot.rows for slot in slots) * config.attn_width
    return rows


def plain_step(
    priors: Mapping[str, AutoregressivePrior],
    scores: Likelihood,
    mixture: Tensor,
    candidates: int,
    position: int,
) -> float:
    """Seconds of one step of the plain path at `position`; one prior's caches at a time."""
    seconds, log_p = 0.0, []
    codes = mixture.new_zeros(candidates) if position else None
    for prior in priors.values():
        decoder = PlainDecoder(prior, candidates, position + 1)
        decoder.pretend(position)
        began = time.perf_counter()
        log_p.append(torch.log_softmax(decoder.step(codes, position), -1))
        seconds += time.perf_counter() - began
        del decoder
    began = time.perf_counter()
    plain_draw(log_p[0], log_p[1], scores.scores(int(mixture[0, position])))
    return seconds + time.perf_counter() - began


def make_likelihood(method: str, preset: Preset, args: Args, sources: int = 2) -> Likelihood:
    """A likelihood of the right size with random tables, on the device of ours.

    The partial sums of more than two sources have the tables of the mixture.
    """
    n_codes, width = preset.vqvae.l_bins, preset.vqvae.emb_width
    generator = torch.Generator().manual_seed(1)
    codebook = torch.randn(n_codes, width, generator=generator).to(args.device)
    sums = torch.randint(n_codes, (n_codes, n_codes), generator=generator).to(args.device)
    # A trained codebook's neighbours are near: distances of a few sigma, not of tens.
    gaussian = LatentGaussianLikelihood(codebook / width**0.5, sums)
    if method == "lqvae":
        return Chain([SumLink(sums)] * (sources - 2), gaussian) if sources > 2 else gaussian
    counts = random_counts(n_codes, min(args.pairs, n_codes**2 // 2))
    if args.published:
        return CountLikelihood(counts, device=args.device)
    exponent = EXPONENT if method == "lass" else POOLED_EXPONENT
    base = Marginals(counts, args.device)
    counted = SmoothedLikelihood(counts, base, exponent, device=args.device)
    last = counted if method == "lass" else PooledLikelihood(counted, gaussian)
    if sources == 2:
        return last
    own = base if method == "lass" else GaussianBase(gaussian, counts)
    return Chain([CountLink(counts, own, SMOOTHING, args.device)] * (sources - 2), last)


@functools.cache
def random_counts(n_codes: int, pairs: int) -> Counts:
    """About `pairs` random pairs per mixture code, counted up to three times."""
    generator = np.random.default_rng(0)
    keys = np.unique(generator.integers(0, n_codes**3, pairs * n_codes))
    mixture, first, second = keys // n_codes**2, keys // n_codes % n_codes, keys % n_codes
    offsets = np.concatenate([[0], np.cumsum(np.bincount(mixture, minlength=n_codes))])
    narrow = [x.astype(np.int32) for x in (first, second, mixture)]
    return Counts(n_codes, *narrow, generator.integers(1, 4, len(keys)), offsets)  # type: ignore[call-arg]


if __name__ == "__main__":
    sys.exit(main())
