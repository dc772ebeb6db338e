"""A model of the cost of sampling and training: fitted to measured points, checked against others.

    python -m benchmarks.cost --points runs/cost.json --threads 2     # measures, 25 minutes
    python -m benchmarks.cost --points docs/data/cost_model.json      # calculates

A position of sampling takes

    step  +  layer * S L  +  GB / bandwidth  +  GFLOP / speed  +  table * K^2
          +  pair * (S - 2) N (K^2 + M)

seconds, for S sources, priors of L layers, K codes, N candidates, and M counted triples of a
partial sum. GB and GFLOP are the least that a step reads and computes (`bench_sampling.floor`) and
the draw's N K^2 products; they depend on the width, on N and, through the attended positions, on T.
The six coefficients are fitted by least squares of the relative errors, none below zero. A point is
the mean time of T positions with random mixture codes; a code that comes for the first time needs a
table.

A training step takes its FLOP at a share of the speed of large matrix products: one share for the
codec, one for the priors; activations that are recomputed count.

Other devices have bandwidth, speed and memory of their data sheets. `least` takes all of the
bandwidth or of the speed, whichever takes longer. `likely` reaches the shares of them that the fit
reaches of the copies and products measured on its own device, adds `LAUNCHES` for each layer and
`SMALL` times that for each draw, and scales the tables with the bandwidth; trainings are assumed to
reach `TRAINING_SHARE`.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks import bench_device, bench_sampling, bench_throughput
from benchmarks._common import print_row
from data.composer import PARTS
from jukebox_core.checkpoints import provenance
from jukebox_core.checks import require, require_fields
from jukebox_core.files import check_replaceable, json_with, write_json
from jukebox_core.machine import set_threads
from jukebox_core.presets import PRESETS, Preset, PresetName
from jukebox_core.prior.cache import PriorCache
from jukebox_core.prior.joint import accelerate
from jukebox_core.prior.model import AutoregressivePrior
from scripts._cli import program
from scripts.training_memory import build

METHOD = "hybrid"
KEYS = ("device", "points", "trainings", "tflop_of_a_crop")
"""Of a record."""
TERMS = ("step", "layer", "gbyte", "gflop", "table", "pair")
RECOMPUTED = 4 / 3
"""FLOP of a step whose activations are computed twice: forward, forward, backward of twice that."""
COURSES: tuple[bench_throughput.Unit, ...] = ("linearisation", "prior, checkpointed")
SMALL = 10
"""Layers whose kernels take as long as those of a draw; assumed."""
TRAINING_SHARE = 1 / 3
"""Of a GPU's speed that trainings reach; assumed, not measured."""
LAUNCHES = 50e-6
"""Seconds for the kernels of a layer, recorded as a graph; assumed, not measured."""
TABLES = 1.6
"""GB of the hybrid's likelihood of 2048 codes (0.6) and of the tables it keeps (1.0)."""
SHARE_OF_MEMORY, MOST_WINDOWS, OVERLAP = 0.9, 32, 64
"""Of a GPU's memory, for sampling; windows together; codes that neighbouring windows share."""
SLAKH_SONGS, SLAKH_SECONDS = 225, 145 * 3600 / 2100
"""Songs of Slakh2100's test split, and their mean duration: 145 hours in 2,100 songs."""


@dataclass(frozen=True)
class Point:
    """What is sampled, and whether the coefficients are fitted to it."""

    preset: PresetName
    depth: int
    sources: int
    candidates: int
    positions: int
    fit: bool

    def size(self) -> Preset:
        """The preset with priors of this depth."""
        preset = PRESETS[self.preset]
        return replace(preset, prior=replace(preset.prior, depth=self.depth))


POINTS = (
    Point("demo", 4, 2, 1, 256, True),
    Point("demo", 4, 2, 16, 256, True),
    Point("demo", 4, 2, 64, 256, True),
    Point("demo", 4, 3, 16, 64, True),
    Point("small", 12, 2, 1, 256, True),
    Point("small", 12, 2, 16, 256, True),
    Point("paper", 12, 2, 1, 64, True),
    Point("paper", 12, 2, 16, 64, True),
    Point("paper", 12, 2, 64, 32, True),
    Point("paper", 12, 3, 16, 16, True),
    Point("demo", 4, 2, 32, 1024, False),
    Point("demo", 8, 2, 16, 512, False),
    Point("demo", 4, 4, 32, 64, False),
    Point("small", 12, 2, 64, 1024, False),
    Point("small", 12, 3, 16, 64, False),
    Point("paper", 48, 2, 1, 64, False),
    Point("paper", 48, 2, 16, 32, False),
    Point("paper", 48, 2, 64, 16, False),
    Point("paper", 24, 2, 32, 256, False),
    Point("paper", 12, 4, 8, 16, False),
)


@dataclass(frozen=True)
class Training:
    """A training step of so many crops."""

    preset: PresetName
    unit: bench_throughput.Unit
    crops: int
    fit: bool


TRAININGS = (
    Training("demo", "reconstruction", 8, True),
    Training("small", "reconstruction", 4, True),
    Training("demo", "linearisation", 8, False),
    Training("t4", "reconstruction", 1, False),
    Training("demo", "prior", 4, True),
    Training("small", "prior, checkpointed", 1, True),
    Training("small", "prior", 2, False),
    Training("paper", "prior, checkpointed", 1, False),
)


class Device(NamedTuple):
    """A device of its data sheet: GB/s, dense TFLOP/s of 16-bit products, GB of memory."""

    name: str
    bandwidth: float
    speed: float
    memory: float
    number: int = 1


DEVICES = (
    Device("T4", 320, 65, 16),
    Device("H100 SXM", 3350, 989, 80),
    Device("8 H100 SXM", 3350, 989, 80, 8),
)


TINY = tuple(
    Point("tiny", 3, sources, candidates, 8, fit)
    for sources, candidates, fit in ((2, 1, True), (3, 4, True), (2, 4, False))
)
"""A trial of the program itself, with `TINY_TRAININGS`."""
TINY_TRAININGS = (
    Training("tiny", "reconstruction", 2, True),
    Training("tiny", "prior", 2, True),
    Training("tiny", "linearisation", 2, False),
)


@dataclass(frozen=True)
class Args:
    """Flags."""

    points: Path
    """JSON of the measured points; measured and written if it does not exist."""
    candidates: tuple[int, ...] = (16, 64)
    """Candidates per window for Slakh's test set."""
    tiny: bool = False
    """Measure two points of tiny models: a trial of the program itself."""
    threads: int | None = None
    """CPU threads of the measurement."""

    def __post_init__(self) -> None:
        require_fields(self, "threads", optional=True, whole=True, at_least=1)
        require("candidates", min(self.candidates, default=0), whole=True, at_least=1)


@program
def main(args: Args) -> None:
    """Measure if need be; fit, check, and print the tables."""
    check_replaceable(args.points, json_with(*KEYS), "a record of measured points")
    if not args.points.is_file():
        set_threads(args.threads)
        points, trainings = (TINY, TINY_TRAININGS) if args.tiny else (POINTS, TRAININGS)
        write_json(args.points, measure(points, trainings, args.tiny) | provenance())
    record = json.loads(args.points.read_text(encoding="utf-8"))
    model = Model(record)
    print("seconds per unit: " + ", ".join(f"{name} {x:.3g}" for name, x in model.fitted.items()))
    shares = {"copies": model.bandwidth, "products": model.speed}
    shares |= {f"products, training a {kind}": share for kind, share in model.training.items()}
    print("shares: " + "; ".join(f"{name} {share:.2f}" for name, share in shares.items()) + "\n")
    report(SAMPLED, [row | {"model": model.position(row)} for row in record["points"]])
    report(TRAINED, [row | {"model": model.step(row)} for row in record["trainings"]])
    print_row(SLAKH)
    for device in DEVICES:
        for candidates in args.candidates:
            print_row(SLAKH, model.test_set(device, candidates))
    print()
    print_row(COURSE)
    for device in DEVICES:
        for unit in COURSES:
            print_row(COURSE, model.course(device, unit))


def report(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A line per row, and how far the model is from the rows that it was not fitted to."""
    print_row(columns)
    for row in rows:
        words = {"of": "fit" if row["fit"] else "check", "ms": 1e3 * row["seconds"]}
        error = row["model"] / row["seconds"] - 1
        print_row(columns, dict(row) | words | {"model": 1e3 * row["model"], "error": error})
    checks = [abs(math.log(row["model"] / row["seconds"])) for row in rows if not row["fit"]]
    mean, most = math.exp(statistics.fmean(checks)), math.exp(max(checks))
    print(f"checks: a factor of {mean:.2f} in the geometric mean, {most:.2f} at most\n")


_ENDS = {"of": "{of}", "ms": "{ms:.2f}", "model": "{model:.2f}", "error": "{error:+.0%}"}
SAMPLED = {
    "preset": "{preset}",
    "L": "{depth}",
    "K": "{codes}",
    "S": "{sources}",
    "N": "{candidates}",
    "T": "{positions}",
} | _ENDS
TRAINED = {"training": "{unit}", "preset": "{preset}", "crops": "{crops}"} | _ENDS
SLAKH = {
    "Slakh's test set": "{device}",
    "N": "{candidates}",
    "windows": "{windows}",
    "GB": "{memory:.1f}",
    "least, h": "{least:.2g}",
    "likely, h": "{likely:.2g}",
}
COURSE = {
    "training, paper": "{device}",
    "of": "{unit}",
    "steps": "{steps}",
    "PFLOP": "{pflop:,.0f}",
    "least, h": "{least:.2g}",
    "likely, h": "{likely:.2g}",
}


class Model:
    """The fitted model."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        """Fit it to the points that are for it."""
        self.fitted = fit([row for row in record["points"] if row["fit"]])
        device = record["device"]
        self.bandwidth = share(device["gbyte_per_second"], self.fitted["gbyte"])
        self.speed = share(1e3 * device["tflops"]["float32"], self.fitted["gflop"])
        self._copies, self._products = device["gbyte_per_second"], device["tflops"]["float32"]
        self._tflop = record["tflop_of_a_crop"]
        self.training = {}
        for kind in ("codec", "prior"):
            rows = [row for row in record["trainings"] if row["fit"] and kind_of(row) == kind]
            speeds = [row["tflop"] / row["seconds"] / self._products for row in rows]
            self.training[kind] = statistics.geometric_mean(speeds)

    def position(self, row: Mapping[str, Any]) -> float:
        """Seconds of a position on the measured device."""
        return sum(row[name] * seconds for name, seconds in self.fitted.items())

    def step(self, row: Mapping[str, Any]) -> float:
        """Seconds of a training step on the measured device."""
        return float(row["tflop"] / self._products / self.training[kind_of(row)])

    def test_set(self, device: Device, candidates: int) -> dict[str, Any]:
        """Hours to sample two sources of Slakh's test set with the paper's priors in 16 bits.

        As many windows are sampled together as fit `SHARE_OF_MEMORY`, at most `MOST_WINDOWS`.
        """
        preset = PRESETS["paper"]
        positions, hop = preset.window, preset.vqvae.hop
        point = Point("paper", preset.prior.depth, 2, candidates, positions, False)
        weights, caches = memory_of(point)
        room = SHARE_OF_MEMORY * device.memory - weights - TABLES
        windows = max(1, min(MOST_WINDOWS, int(room / caches)))
        # The weights are read once for all windows.
        step = work(replace(point, candidates=candidates * windows), 2)
        table = windows * step["table"]
        read, computed = step["gbyte"] / device.bandwidth, step["gflop"] / (1e3 * device.speed)
        likely = (step["layer"] + SMALL) * LAUNCHES + read / self.bandwidth + computed / self.speed
        likely += table * self.fitted["table"] * self._copies / device.bandwidth
        rate = preset.vqvae.sample_rate
        songs = SLAKH_SECONDS * rate / hop / (positions - OVERLAP)  # windows of a song
        runs = SLAKH_SONGS * math.ceil(songs) / windows / device.number
        return {
            "device": device.name,
            "candidates": candidates,
            "windows": windows,
            "memory": weights + TABLES + windows * caches,
            "least": runs * positions * max(read, computed) / 3600,
            "likely": runs * positions * likely / 3600,
        }

    def course(self, device: Device, unit: bench_throughput.Unit) -> dict[str, Any]:
        """Hours of a training of the paper's size; gradients travel while others are computed."""
        preset = PRESETS["paper"]
        train = preset.prior_train if unit.startswith("prior") else preset.vqvae_train
        pflop = self._tflop[unit] * train.batch_size * train.steps / 1e3
        least = 1e3 * pflop / device.speed / device.number / 3600
        return {
            "device": device.name,
            "unit": unit,
            "steps": train.steps,
            "pflop": pflop,
            "least": least,
            "likely": least / TRAINING_SHARE,
        }


def measure(
    points: Sequence[Point], trainings: Sequence[Training], small: bool = False
) -> dict[str, Any]:
    """The points with their seconds, and the speeds of the device, measured first and last."""
    probe = bench_device.Args(
        size=256 if small else 2048,
        megabytes=8 if small else 512,
        types=("float32",),
        threads=torch.get_num_threads(),
    )
    first = bench_device.measure(probe)
    rows, steps = [], []
    for point in points:
        rows.append(asdict(point) | work(point) | {"seconds": seconds_of(point)})
        print(f"{point}: {1e3 * rows[-1]['seconds']:.2f} ms", file=sys.stderr, flush=True)
    for training in trainings:
        steps.append(asdict(training) | step_of(training))
        print(f"{training}: {steps[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    device = bench_device.faster(first, bench_device.measure(probe))
    crop: PresetName = "tiny" if small else "paper"
    tflop = {unit: tflop_of(crop, unit) for unit in COURSES}
    return {"device": device, "points": rows, "trainings": steps, "tflop_of_a_crop": tflop}


def step_of(training: Training) -> dict[str, float]:
    """Seconds and TFLOP of a step, measured."""
    args = bench_throughput.Args(preset=training.preset, crops=training.crops, repeats=1)
    cpu = torch.device("cpu")
    row = bench_throughput.measure(training.unit, "32", False, args, cpu)
    return {
        "seconds": row["ms"] / 1e3,
        "tflop": training.crops * tflop_of(training.preset, training.unit),
    }


def tflop_of(preset: PresetName, unit: bench_throughput.Unit) -> float:
    """TFLOP of a step of one crop, recomputed activations included."""
    size = PRESETS[preset]
    if unit.startswith("prior"):
        objective, item = build(size, unit)
        objective, item, parts = objective.to("meta"), item.to("meta"), 1  # shapes alone
    else:  # convolutions: as many per sample in a short crop
        train = size.vqvae_train
        parts = max(1, train.crop // 8192)
        size = replace(size, vqvae_train=replace(train, crop=train.crop // parts))
        objective, item = build(size, unit)
    flop = bench_throughput.flop_of(objective, item, torch.device("cpu"), "32")
    again = RECOMPUTED if "checkpointed" in unit else 1.0
    return flop * parts / len(item) / 1e12 * again


def kind_of(training: Mapping[str, Any]) -> str:
    """`prior`, or `codec` with or without linearisation."""
    return "prior" if training["unit"].startswith("prior") else "codec"


def share(measured: float, seconds: float) -> float:
    """The share of a measured speed that `seconds` per unit are; 1 if the fit sees no cost."""
    return min(1.0, 1 / (measured * seconds)) if seconds else 1.0


def memory_of(point: Point) -> tuple[float, float]:
    """GB in 16 bits: of the weights of all priors, and of a window's caches."""
    preset = point.size()
    with torch.device("meta"):
        prior = AutoregressivePrior(preset.prior)
    weights = 2 * point.sources * sum(p.numel() for p in prior.parameters())
    like = torch.empty(0, dtype=torch.bfloat16, device="meta")
    cache = PriorCache(preset.prior, point.candidates, point.positions, like)
    return weights / 1e9, point.sources * cache.nbytes() / 1e9


def flags_of(point: Point) -> bench_sampling.Args:
    """The flags of `bench_sampling` for a point, in float32."""
    return bench_sampling.Args(
        candidates=(point.candidates,),
        positions=point.positions,
        preset=point.preset,
        precision="float32",
        plain=0,
    )


def seconds_of(point: Point) -> float:
    """Seconds of a position, measured."""
    torch.manual_seed(0)
    preset, args = point.size(), flags_of(point)
    priors = {name: AutoregressivePrior(preset.prior).eval() for name in PARTS[: point.sources]}
    scores = bench_sampling.make_likelihood(METHOD, preset, args, point.sources)
    fast = accelerate(priors, "float32")
    row = bench_sampling.measure(METHOD, point.candidates, priors, fast, scores, args)
    return float(row["ms_per_position"]) / 1e3


def work(point: Point, itemsize: int = 4) -> dict[str, float]:
    """K, and the amounts of a position that the coefficients multiply."""
    preset = point.size()
    with torch.device("meta"):
        priors = {name: AutoregressivePrior(preset.prior) for name in PARTS[: point.sources]}
    least = bench_sampling.floor(priors, point.candidates, flags_of(point))
    k, n = preset.prior.l_bins, point.candidates
    triples = min(bench_sampling.Args().pairs, k**2 // 2) * k
    return {
        "codes": k,
        "step": 1,
        "layer": point.sources * point.depth,
        "gbyte": least["gbyte_per_position"] * itemsize / 4,
        "gflop": least["gflop_per_position"] + 2 * n * k**2 / 1e9,
        # Of a mixture code that came before, the table is kept.
        "table": k**2 * k * (1 - (1 - 1 / k) ** point.positions) / point.positions,
        "pair": (point.sources - 2) * n * (k**2 + triples),
    }


def fit(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds per unit of `TERMS`, by least squares of the relative errors."""
    amounts = np.array([[row[name] / row["seconds"] for name in TERMS] for row in rows])
    scale = np.maximum(amounts.max(0), 1e-300)  # the units differ by a factor of 10^10
    found, _ = nnls(amounts / scale, np.ones(len(rows)))
    return dict(zip(TERMS, (found / scale).tolist(), strict=True))


if __name__ == "__main__":
    sys.exit(main())
