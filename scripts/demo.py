"""A fresh machine to results: data, the three models trained small, separation, table, report.

    python -m scripts.demo --output runs/demo

Every stage is one of the project's commands, run as a process of its own; independent ones run side
by side. What is done is not done again: stop it at any time and start it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.synthetic import MOST_SECONDS
from jukebox_core.checks import require_fields
from jukebox_core.config import PRESETS
from jukebox_core.evaluation.results import load_results
from jukebox_core.files import check_replaceable, write_json
from scripts._cli import program
from scripts._methods import METHODS
from scripts._results import NAMES, format_table
from scripts.evaluate.outputs import EXAMPLES, Outputs
from scripts.report.page import is_report

SOURCES = ("bass", "drums")
OBJECTIVES = ("reconstruction", "linearisation")


@dataclass(frozen=True)
class Args:
    """Flags of scripts.demo."""

    output: Path = Path("runs/demo")
    """Folder of everything that is made."""
    preset: str = "demo"
    """Size of the models."""
    tracks: int = 360
    """Songs to compose."""
    seconds: float = 20.0
    """Length of a song."""
    chunks: int = 24
    """Test chunks, each from another song where there are enough."""
    count_iterations: int = 250
    """Iterations of counting, of 8 pairs of 1024 codes each."""
    seed: int = 0
    """Of everything random."""
    cores: int | None = None
    """CPU cores to use; default: all."""

    def __post_init__(self) -> None:
        """Refuse values that a later stage would refuse after others have run."""
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, expected one of {', '.join(PRESETS)}")
        require_fields(self, "tracks", "chunks", "count_iterations", whole=True, at_least=1)
        require_fields(self, "seconds", at_least=1, at_most=MOST_SECONDS)
        require_fields(self, "seed", whole=True, at_least=0)
        require_fields(self, "cores", optional=True, whole=True, at_least=1)


@dataclass(frozen=True)
class Stage:
    """One command: `python -m scripts.NAME FLAGS`."""

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    share: float = 1.0
    """Part of the cores it gets, and the room it takes beside others."""
    product: Path | None = None
    """What it leaves; it is run again where that is gone."""
    watch: Path | None = field(default=None)
    """A metrics.csv that shows how far it is."""

    def key(self) -> str:
        """Identifies the command and everything it depends on by name."""
        return hashlib.sha256("\0".join(self.command).encode()).hexdigest()


def stages(args: Args) -> list[Stage]:
    """The plan: who runs after whom."""
    out = args.output
    slakh, data, models = out / "slakh", out / "data", out / "models"
    seed = ("--seed", str(args.seed))
    plan = [
        Stage(
            "songs",
            ("make_synthetic", "--output", str(slakh), "--tracks", str(args.tracks))
            + ("--seconds", str(args.seconds), "--parts", *SOURCES, *seed),
            product=slakh,
        ),
        Stage(
            "data",
            ("prepare_slakh", "--slakh", str(slakh), "--output", str(data)),
            after=("songs",),
            product=data / "manifest.json",
        ),
    ]
    common = ("--data", str(data), "--preset", args.preset, *seed)
    # The first stage that fits is started: the codecs, which the rest waits for, then the longest.
    for objective in OBJECTIVES:
        family = models / objective
        plan.append(
            Stage(
                f"codec {objective}",
                ("train_vqvae", "--objective", objective, "--output", str(family / "vqvae"))
                + common,
                after=("data",),
                share=1 / len(OBJECTIVES),
                product=family / "vqvae" / "weights.safetensors",
                watch=family / "vqvae" / "metrics.csv",
            )
        )
    mask = models / "mask_estimator"
    plan.append(
        Stage(
            "mask estimator",
            ("train_mask", "--output", str(mask), *common),
            after=("data",),
            share=1 / (len(OBJECTIVES) * len(SOURCES)),
            product=mask / "weights.safetensors",
            watch=mask / "metrics.csv",
        )
    )
    for objective in OBJECTIVES:
        family, codec = models / objective, f"codec {objective}"
        for source in SOURCES:
            run = family / f"prior_{source}"
            plan.append(
                Stage(
                    f"prior {objective} {source}",
                    ("train_prior", "--vqvae", str(family / "vqvae"), "--source", source)
                    + ("--output", str(run), *common),
                    after=(codec,),
                    share=1 / (len(OBJECTIVES) * len(SOURCES)),
                    product=run / "weights.safetensors",
                    watch=run / "metrics.csv",
                )
            )
        plan.append(
            Stage(
                f"counts {objective}",
                ("count_sums", "--vqvae", str(family / "vqvae"), "--data", str(data))
                + ("--output", str(family / "counts.safetensors"), "--shifts", "1")
                + ("--iterations", str(args.count_iterations), *seed),
                after=(codec,),
                share=1 / (len(OBJECTIVES) * len(SOURCES)),
                product=family / "counts.safetensors",
            )
        )
        plan.append(
            Stage(
                f"calibration {objective}",
                ("calibrate", "--vqvae", str(family / "vqvae"), "--data", str(data))
                + ("--output", str(family / "calibration.safetensors"), *seed),
                after=(codec,),
                share=1 / (len(OBJECTIVES) * len(SOURCES)),
                product=family / "calibration.safetensors",
            )
        )
    linear = models / "linearisation"
    plan.append(
        Stage(
            "code sums",
            ("precompute_sums", "--vqvae", str(linear / "vqvae"))
            + ("--output", str(linear / "sums.safetensors")),
            after=("codec linearisation",),
            share=1 / (len(OBJECTIVES) * len(SOURCES)),
            product=linear / "sums.safetensors",
        )
    )
    results, report = out / "results.json", out / "report.html"
    score: tuple[str, ...] = (
        "evaluate",
        "--models",
        str(models),
        "--data",
        str(data),
        "--output",
        str(results),
    )
    # One method per process; the number of threads is given to all, since it identifies the parts.
    threads = max(1, _cores(args) // len(METHODS))
    score += ("--chunks", str(args.chunks), "--threads", str(threads), *seed)
    for method in METHODS:
        objective = METHODS[method].family
        tables = {
            "lqvae": ("code sums",),
            "lass": (f"counts {objective}",),
            "hybrid": ("code sums", f"counts {objective}"),
        }[method]
        priors = tuple(f"prior {objective} {source}" for source in SOURCES)
        plan.append(
            Stage(
                f"scores {method}",
                (*score, "--methods", method, "--parts-only"),
                after=(*tables, *priors, f"calibration {objective}"),
                share=1 / len(METHODS),
            )
        )
    plan.append(
        Stage(
            "scores",
            score,
            after=("mask estimator", *(f"scores {method}" for method in METHODS)),
            product=results,
        )
    )
    plan.append(
        Stage(
            "report",
            ("report", "--runs", str(out), "--output", str(report)),
            after=("scores",),
            product=report,
        )
    )
    return plan


def _cores(args: Args) -> int:
    return os.cpu_count() or 1 if args.cores is None else args.cores


class Ledger:
    """Which stages are done, kept in a file: a stage is done again when an earlier one was."""

    def __init__(self, path: Path):
        """Read the file if it exists.

        Raises:
            FileExistsError: it is not such a record.
            OSError: it cannot be written.
        """
        check_replaceable(path, _is_ledger, "a record of stages")
        self._path = path
        self.begun = path.is_file()
        self._done: dict[str, str] = (
            json.loads(path.read_text(encoding="utf-8") or "{}") if self.begun else {}
        )

    def is_done(self, stage: Stage) -> bool:
        """Whether the same command ran to its end and its product is still there."""
        there = stage.product is None or stage.product.exists()
        return there and self._done.get(stage.name) == stage.key()

    def begin(self) -> None:
        """Write the file; it marks the logs beside it as ours."""
        write_json(self._path, self._done)

    def add(self, stage: Stage) -> None:
        """Remember a finished stage."""
        self._done[stage.name] = stage.key()
        write_json(self._path, self._done)


def _is_ledger(path: Path) -> bool:
    content = json.loads(path.read_text(encoding="utf-8"))
    return all(re.fullmatch("[0-9a-f]{64}", key) for key in content.values())


class Runner:
    """Starts stages as their turn comes and the cores allow, and shows where they are."""

    def __init__(self, plan: Sequence[Stage], output: Path, cores: int):
        """Plan the stages.

        Args:
            plan: the stages; of those that are ready, the first is started first.
            output: folder of stages.json and of the logs.
            cores: number of cores that the stages share.

        Raises:
            FileExistsError: a log or stages.json would replace a file of another kind.
            OSError: these cannot be written.
        """
        self._plan = list(plan)
        self._output = output
        self._cores = cores
        self._ledger = Ledger(output / "stages.json")
        for stage in self._plan:
            check_replaceable(self._log(stage), lambda _: self._ledger.begun, "a log")
        self._finished: set[str] = set()
        self._fresh: set[str] = set()
        self._running: dict[str, tuple[Stage, subprocess.Popen, float]] = {}
        self._began = time.monotonic()
        self._last_report = 0.0

    def run(self) -> None:
        """Run everything that is not done; raises ValueError where a stage fails."""
        self._began = time.monotonic()
        self._ledger.begin()
        (self._output / "logs").mkdir(exist_ok=True)
        try:
            while len(self._finished) < len(self._plan):
                self._start_ready()
                self._collect()
                self._report()
                if self._running:
                    time.sleep(0.2)
        finally:
            for _, process, _ in self._running.values():
                process.terminate()
            for _, process, _ in self._running.values():
                process.wait()

    def _start_ready(self) -> None:
        for stage in self._plan:
            if stage.name in self._finished or stage.name in self._running:
                continue
            if not set(stage.after) <= self._finished:
                continue
            if self._ledger.is_done(stage) and not set(stage.after) & self._fresh:
                self._finished.add(stage.name)
                self._say(f"{stage.name}: already done")
                continue
            used = sum(s.share for s, _, _ in self._running.values())
            if used + stage.share > 1 + 1e-9:
                continue
            self._start(stage)

    def _start(self, stage: Stage) -> None:
        threads = max(1, round(self._cores * stage.share))
        script, *flags = stage.command
        log = open(self._log(stage), "a", encoding="utf-8")  # noqa: SIM115 - closed by the child
        process = subprocess.Popen(
            [sys.executable, "-m", f"scripts.{script}", *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )
        log.close()
        self._running[stage.name] = (stage, process, time.monotonic())
        self._say(f"{stage.name}: python -m scripts.{script} {' '.join(flags)}")

    def _collect(self) -> None:
        for name, (stage, process, began) in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[name]
            if status != 0:
                lines = self._log(stage).read_text(encoding="utf-8").strip().splitlines()
                reason = lines[-1] if lines else "it said nothing"
                raise ValueError(
                    f"{name} failed with status {status}: {reason} (log: {self._log(stage)})"
                )
            self._ledger.add(stage)
            self._finished.add(name)
            self._fresh.add(name)
            self._say(f"{name}: done in {time.monotonic() - began:.0f} s")

    def _report(self) -> None:
        """A line on what is running: every 5 s on a terminal, every 30 s elsewhere."""
        now = time.monotonic()
        if not self._running or now - self._last_report < (5 if sys.stdout.isatty() else 30):
            return
        self._last_report = now
        self._say(
            "  ".join(name + _progress(stage) for name, (stage, _, _) in self._running.items())
        )

    def _say(self, line: str) -> None:
        elapsed = time.monotonic() - self._began
        minutes, seconds = divmod(int(elapsed), 60)
        count = f"{len(self._finished):2}/{len(self._plan)}"
        print(f"[{minutes:2}:{seconds:02} {count}] {line}", flush=True)

    def _log(self, stage: Stage) -> Path:
        return self._output / "logs" / f"{stage.name.replace(' ', '_')}.log"


def _progress(stage: Stage) -> str:
    """` (step 120)` from the last line of a run's metrics."""
    if stage.watch is None or not stage.watch.is_file():
        return ""
    with open(stage.watch, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 200))
        last = file.read().decode("utf-8", "replace").strip().splitlines()
    step = last[-1].split(",")[0] if last else ""
    return f" (step {step})" if step.isdigit() else ""


@program
def main(args: Args) -> None:
    """Run the plan, then show the table."""
    results, report = args.output / "results.json", args.output / "report.html"
    # Their programs check this too, but only after the models are trained.
    Outputs(results, SOURCES).check(NAMES, (), min(EXAMPLES, args.chunks))
    check_replaceable(report, is_report, "a report")
    Runner(stages(args), args.output, _cores(args)).run()
    print(format_table(load_results(results)))
    print(f"\nresults: {results}\nreport:  {report}")


if __name__ == "__main__":
    sys.exit(main())
