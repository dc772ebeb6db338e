"""Where the time of a sampling step goes, beside the least that this processor needs for it.

    python -m benchmarks.bench_step --candidates 1 16 64 --positions 32 --threads 1

The priors have the paper's size and random weights, the likelihood is the hybrid's; mixture codes
are random, and a new one needs a table. `floor` is the time to read a part's
data at the bandwidth of large copies, or to do its arithmetic at the speed of large matrix products
(in the type of the decoding; int8: float32, no bound), whichever is longer. Both speeds are
measured before and after, and the faster counts. Taking the time adds about a microsecond per call.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import bench_device, bench_sampling
from benchmarks._common import Flags, prepare, print_row
from jukebox_core.checks import require_fields
from jukebox_core.presets import PRESETS
from jukebox_core.prior.cpu import CpuDecoder, activation_dtype
from jukebox_core.prior.joint import EachPrior, Precision, choose_dtype
from jukebox_core.prior.kernels import Kernels, find_kernels
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.likelihood import Likelihood
from scripts._cli import program

METHOD = "hybrid"
PRODUCTS = ("qkv", "attention output", "MLP up", "MLP down")
"""Of a layer, in the order in which a decoder prepares them; then comes the output layer."""
COLUMNS = {
    "part": "{method}",
    "N": "{candidates}",
    "ms": "{ms_per_position:.2f}",
    "share": "{share:.0%}",
    "floor ms": "{floor_ms:.2f}",
    "ratio": "{ratio:.2f}",
    "MB": "{mbyte:.1f}",
    "GFLOP": "{gflop:.2f}",
}


@dataclass(frozen=True)
class Args(Flags):
    """Flags."""

    candidates: tuple[int, ...] = (1, 16, 64)
    """Joint candidates, sampled together."""
    positions: int = 32
    """Codes of the chunk; the first is not counted."""
    precision: Precision = "auto"
    """Type of the weights and caches."""
    depth: int | None = None
    """Layers of the priors; default: the preset's."""
    size: int = 2048
    """Rows of the matrices whose product is the floor's speed."""

    def __post_init__(self) -> None:
        require_fields(self, "positions", whole=True, at_least=2)
        require_fields(self, "size", whole=True, at_least=1)
        require_fields(self, "depth", optional=True, whole=True, at_least=1)


class Clock:
    """Seconds spent in each part."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function; its time counts for the part."""

        def run(*given: Any) -> Any:
            began = time.perf_counter()
            result = function(*given)
            self.seconds[part] += time.perf_counter() - began
            return result

        return run


class TimedKernels:
    """Kernels of a decoder that tell a clock what they take."""

    def __init__(self, kernels: Kernels, clock: Clock, layers: int) -> None:
        self._kernels, self._clock = kernels, clock
        self._names = iter([*PRODUCTS * layers, "output layer"])
        self.attend = clock.timed("attention", kernels.attend)
        self.norm = clock.timed("layer norms", kernels.norm)

    def product(self, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        """A linear layer; the names come in the order in which a decoder asks for them."""
        return TimedProduct(self._kernels.product(weight, bias), self._clock, next(self._names))

    def quantised_product(self, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        """A linear layer in integers."""
        return TimedProduct(
            self._kernels.quantised_product(weight, bias), self._clock, next(self._names)
        )


class TimedProduct:
    """A linear layer that tells a clock what it takes."""

    def __init__(self, product: Any, clock: Clock, name: str) -> None:
        self._call = clock.timed(name, product.__call__)
        self.swish = clock.timed(name, product.swish)
        self.add_to = clock.timed(name, product.add_to)

    def __call__(self, x: torch.Tensor) -> Any:
        """The product."""
        return self._call(x)


@program
def main(args: Args) -> None:
    """Measure, print the table, and the JSON line."""
    prepare(args, (METHOD,))
    preset = PRESETS[args.preset]
    config = preset.prior
    if args.depth is not None:
        config = replace(config, depth=args.depth)
    if args.positions > config.n_ctx:
        raise ValueError(f"{args.positions} positions, the prior has {config.n_ctx}")
    prior = AutoregressivePrior(config).eval()
    size = sum(p.numel() for p in prior.parameters())
    dtype = choose_dtype(torch.device("cpu"), args.precision, size)
    name: Any = str(activation_dtype(dtype)).removeprefix("torch.")
    probe = bench_device.Args(size=args.size, types=(name,), threads=args.threads)
    first = bench_device.measure(probe)
    clock = Clock()
    decoders = {
        source: CpuDecoder(prior, dtype, TimedKernels(find_kernels(), clock, config.depth))  # type: ignore[arg-type]
        for source in ("bass", "drums")
    }
    scores = bench_sampling.make_likelihood(METHOD, preset, bench_sampling.Args(plain=0))
    measured = {n: measure(EachPrior(decoders), scores, clock, n, args) for n in args.candidates}
    speeds = bench_device.faster(first, bench_device.measure(probe))
    bandwidth, tflops = speeds["gbyte_per_second"], speeds["tflops"][name]
    print(f"{args.preset}, {dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"copies {bandwidth:.1f} GB/s, {name} products {tflops:.3f} TFLOP/s")
    print_row(COLUMNS)
    rows = []
    for n, parts in measured.items():
        least = work(prior, n, args.positions, dtype)
        for part in parts:
            read, flop = least.get(part, (0.0, 0.0))
            floor = max(read / bandwidth / 1e9, flop / tflops / 1e12)
            rows.append(
                {
                    "method": part,
                    "candidates": n,
                    "positions": args.positions,
                    "ms_per_position": 1e3 * parts[part],
                    "share": parts[part] / parts["all"],
                    "floor_ms": 1e3 * floor,
                    "ratio": parts[part] / floor if floor else None,
                    "mbyte": read / 1e6,
                    "gflop": flop / 1e9,
                }
            )
            print_row(COLUMNS, rows[-1])
    if args.json:
        print(json.dumps(rows))


def measure(
    joint: EachPrior, scores: Likelihood, clock: Clock, candidates: int, args: Args
) -> dict[str, float]:
    """{part: seconds of a position}, of all positions after the first."""
    mixture = torch.randint(scores.n_codes, (1, args.positions))
    sampler, generator = AncestralSampler(), torch.Generator().manual_seed(0)
    sampler(joint, scores, mixture[:, :2], candidates, generator)  # packs the weights
    began = 0.0

    def after(done: int, _: int) -> None:
        nonlocal began
        if done == 1:
            clock.seconds.clear()
            began = time.perf_counter()

    sampler(joint, scores, mixture, candidates, generator, after)
    taken = {"all": time.perf_counter() - began}
    inside = {
        part: clock.seconds[part]
        for part in (*PRODUCTS, "attention", "layer norms", "output layer")
    }
    taken |= inside | {"draw and the rest": taken["all"] - sum(inside.values())}
    return {part: seconds / (args.positions - 1) for part, seconds in taken.items()}


def work(
    prior: AutoregressivePrior, candidates: int, positions: int, dtype: torch.dtype
) -> dict[str, tuple[float, float]]:
    """{part: bytes to read, FLOP} of a position of two such priors; means over the positions."""
    config = prior.config
    block: Any = prior.blocks[0]
    layers = (block.attn.qkv, block.attn.out, block.mlp.up, block.mlp.down)
    found = {
        part: (2.0 * dtype.itemsize * size, 4.0 * candidates * size)
        for part, size in zip(
            PRODUCTS, (config.depth * x.weight.numel() for x in layers), strict=True
        )
    }
    head = prior.head.weight.numel()  # in float32
    found["output layer"] = (8.0 * head, 4.0 * candidates * head)
    rows = bench_sampling.attended(config, range(1, positions))
    size = activation_dtype(dtype).itemsize
    found["attention"] = (4.0 * size * candidates * rows, 8.0 * candidates * rows)
    read, flop = (sum(values) for values in zip(*found.values(), strict=True))
    return found | {"all": (read, flop)}


if __name__ == "__main__":
    sys.exit(main())
