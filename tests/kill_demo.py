"""Kill the demo again and again, continue it each time, and compare with one never killed.

    python -m tests.kill_demo --kills 24 --seed 0 [--folder FOLDER]
    python -m tests.kill_demo --each 100 --seed 0 [--folder FOLDER]

The demo runs with the `tiny` preset. Every kill is a SIGKILL of all its processes; afterwards, all
files must be those of the demo that was not killed, but for times and dates.

With --kills the demo as a whole is killed and started again, in a stage and after a share of its
duration that the seed draws; every stage has its turn before one has a second. With --each every
stage has so many kills of its own (see `kill_stages`), about one a second. Prints a line for every
kill or stage and a summary; the exit status is 1 if a file differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.demo import Args, stages
from tests.kill_stages import kill_each
from tests.timeless import differences, digests

ROOT = Path(__file__).resolve().parent.parent
TINY: dict[str, Any] = {"preset": "tiny", "tracks": 10, "seconds": 4.0, "chunks": 1, "seed": 0}
TINY |= {"count_iterations": 20, "cores": 1}
QUIET = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
_LINE = re.compile(r"\[.*?\] (?P<stage>.+?): (?P<what>python -m|already done|done in)(?P<rest>.*)")


class Demo:
    """One start of the demo."""

    def __init__(self, output: Path):
        command = [sys.executable, "-m", "scripts.demo", "--output", str(output)]
        for name, value in TINY.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def until(self, stage: str | None) -> dict[str, float]:
        """Read until a stage has started or was found finished; None: to the end.

        Returns the durations of the stages that finished.

        Raises:
            ChildProcessError: the demo ended with an error, or before the stage.
        """
        assert self.process.stdout is not None
        finished: dict[str, float] = {}
        said = []
        for line in self.process.stdout:
            said.append(line)
            if (match := _LINE.match(line)) is None:
                continue
            if match["what"] == "done in":
                finished[match["stage"]] = float(match["rest"].split()[0])
            if match["stage"] == stage:
                return finished
        if stage is not None or self.process.wait():
            raise ChildProcessError("".join(said[-20:]))
        return finished

    def kill(self) -> None:
        """Kill all processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def main(argv: list[str] | None = None) -> int:
    """Run the demo undisturbed and with kills, and compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill_demo")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--kills", type=int, default=24, help="of the demo as a whole")
    how.add_argument("--each", type=int, help="of every stage by itself")
    parser.add_argument("--stages", nargs="+", default=(), help="with --each: only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a new folder, which stays")
    args = parser.parse_args(argv)
    os.environ.update(QUIET)
    with contextlib.ExitStack() as stack:
        if args.folder:
            args.folder.mkdir(parents=True)
        folder = args.folder or stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(os.path.realpath(folder))
        if args.each is None:
            return compare(folder, args.kills, args.seed)
        plan = stages(Args(output=folder / "demo", **TINY))
        return kill_each(plan, folder, folder / "demo", args.each, args.seed, args.stages)


def compare(folder: Path, kills: int, seed: int) -> int:
    """Run the demo undisturbed, then with kills; return the exit status."""
    # Both in one place, which the files name; then the first moves away.
    output = folder / "demo"
    durations = Demo(output).until(None)
    expected = digests(output)
    output.rename(folder / "whole")
    print(f"undisturbed: {len(durations)} stages, {len(expected)} files", flush=True)
    return killed(output, durations, expected, kills, seed)


def killed(
    output: Path, durations: dict[str, float], expected: dict[str, str], kills: int, seed: int
) -> int:
    """Run the demo with kills, in stages of these durations; return the exit status."""
    for number, (stage, share) in enumerate(moments(list(durations), kills, seed), start=1):
        demo = Demo(output)
        demo.until(stage)
        wait = share * durations[stage]
        time.sleep(wait)
        demo.kill()
        print(f"kill {number}: {stage}, after {wait:.1f} s", flush=True)
    Demo(output).until(None)
    found = digests(output)
    different = differences(found, expected)
    for line in different:
        print(line)
    print(
        f"{kills} kills in {len(durations)} stages, seed {seed}: "
        f"{len(expected)} files, {len(different)} differ"
    )
    return 1 if different else 0


def moments(stages: list[str], kills: int, seed: int) -> list[tuple[str, float]]:
    """(stage, share of its duration) of every kill, in the order of the stages."""
    draw = random.Random(seed)
    turns: list[str] = []
    while len(turns) < kills:
        turns += draw.sample(stages, len(stages))
    turns = turns[:kills]
    return sorted(((stage, draw.random()) for stage in turns), key=lambda x: stages.index(x[0]))


if __name__ == "__main__":
    sys.exit(main())
