"""Run stages, each a program in a process of its own, side by side as far as the cores allow.

A stage runs again if its command or the state of its inputs changed, its product is missing or a
stage before it ran again.
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
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from jukebox_core.files import check_replaceable, write_json
from jukebox_core.locks import sole_writer
from jukebox_core.training.tracking import METRICS

# `python -m` would look for the programs in the current folder first.
_RUN = """\
import runpy, sys
sys.path[0], name = sys.argv[1:3]
del sys.argv[1:3]
from jukebox_core.parent import end_with_parent
end_with_parent()
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Stage:
    """One command: `python -m PACKAGE.NAME FLAGS`."""

    name: str
    command: tuple[str, ...]
    """NAME and FLAGS."""
    after: tuple[str, ...] = ()
    """Names of the stages that must finish before."""
    share: float = 1.0
    """Share of the cores that the stage uses; it takes one core at least."""
    product: Path | None = None
    """File or folder that the stage writes."""
    state: str = ""
    """Of inputs that no stage before it makes: if it changes, the stage runs again."""

    @property
    def key(self) -> str:
        """Digest of the command and the state."""
        words = [*self.command, *filter(None, [self.state])]
        return hashlib.sha256("\0".join(words).encode()).hexdigest()

    def progress(self) -> str:
        """Return ` (step 120)`, from the metrics beside the product of a training."""
        metrics = None if self.product is None else self.product.with_name(METRICS)
        if metrics is None or not metrics.is_file():
            return ""
        with open(metrics, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 200))
            last = file.read().decode("utf-8", "replace").strip().splitlines()
        step = last[-1].split(",")[0] if last else ""
        return f" (step {step})" if step.isdigit() else ""


class Runner:
    """Runs a plan and prints its progress; a second run of the same plan resumes."""

    def __init__(self, plan: Sequence[Stage], output: Path, cores: int, package: ModuleType):
        """Read the record of finished stages.

        Args:
            plan: the stages; among those that are ready, the first starts first.
            output: folder of the record, stages.json, and of the logs.
            cores: number of CPU cores that the stages share.
            package: of the programs.

        Raises:
            FileExistsError: a log or the record would replace a file of another kind.
            OSError: these cannot be written.
        """
        self._plan, self._output, self._cores = list(plan), output, cores
        self._package = package.__name__
        self._root = str(Path(str(package.__file__)).parents[1])
        self._record = output / "stages.json"
        check_replaceable(self._record, _is_record, "a record of stages")
        resumed = self._record.is_file()
        for stage in self._plan:
            check_replaceable(self._log(stage), lambda _: resumed, "a log")
        record = self._record.read_text(encoding="utf-8") if resumed else ""
        self._keys: dict[str, str] = json.loads(record or "{}")
        self._finished: set[str] = set()
        self._fresh: set[str] = set()  # finished by this runner, not by an earlier one
        self._running: dict[str, tuple[Stage, subprocess.Popen[bytes], float]] = {}
        self._began = time.monotonic()
        self._last_report = 0.0

    def run(self) -> None:
        """Run all stages that are not finished.

        Raises:
            ValueError: a stage fails.
            OSError: another process runs stages into this folder, or it cannot be written to.
        """
        with sole_writer(self._output, inside=True):
            self._run()

    def _run(self) -> None:
        self._began = time.monotonic()
        write_json(self._record, self._keys)  # it marks the logs as ours
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
            started = stage.name in self._finished or stage.name in self._running
            if started or not set(stage.after) <= self._finished:
                continue
            unchanged = self._keys.get(stage.name) == stage.key and not self._fresh & {*stage.after}
            if unchanged and (stage.product is None or stage.product.exists()):
                self._finished.add(stage.name)
                self._print(f"{stage.name}: already done")
            elif self._share(stage, *(s for s, _, _ in self._running.values())) < 1 + 1e-9:
                self._start(stage)

    def _share(self, *stages: Stage) -> float:
        """Share of the cores that the stages take together."""
        return sum(max(stage.share, 1 / self._cores) for stage in stages)

    def _start(self, stage: Stage) -> None:
        threads = str(max(1, int(self._cores * stage.share + 1e-9)))
        path = os.pathsep.join(filter(None, [self._root, os.environ.get("PYTHONPATH")]))
        env = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": path}
        script, *flags = stage.command
        command = [f"{self._package}.{script}", *flags]
        with open(self._log(stage), "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _RUN, self._root, *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | env,
            )
        self._running[stage.name] = (stage, process, time.monotonic())
        self._print(f"{stage.name}: python -m {' '.join(command)}")

    def _collect(self) -> None:
        for name, (stage, process, began) in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[name]
            if status != 0:
                lines = self._log(stage).read_text(encoding="utf-8").strip().splitlines()
                reason = lines[-1] if lines else "it printed nothing"
                raise ValueError(
                    f"{name} failed with status {status}: {reason} (log: {self._log(stage)})"
                )
            self._keys[name] = stage.key
            write_json(self._record, self._keys)
            self._finished.add(name)
            self._fresh.add(name)
            self._print(f"{name}: done in {time.monotonic() - began:.0f} s")

    def _report(self) -> None:
        """Print what is running: every 5 s on a terminal, every 30 s elsewhere."""
        now = time.monotonic()
        if not self._running or now - self._last_report < (5 if sys.stdout.isatty() else 30):
            return
        self._last_report = now
        self._print("  ".join(s.name + s.progress() for s, _, _ in self._running.values()))

    def _print(self, line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        count = f"{len(self._finished):2}/{len(self._plan)}"
        print(f"[{minutes:2}:{seconds:02} {count}] {line}", flush=True)

    def _log(self, stage: Stage) -> Path:
        return self._output / "logs" / f"{stage.name.replace(' ', '_')}.log"


def _is_record(path: Path) -> bool:
    content = json.loads(path.read_text(encoding="utf-8"))
    return all(re.fullmatch("[0-9a-f]{64}", key) for key in content.values())
