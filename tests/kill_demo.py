"""Kill the demo at random moments, start it again each time, and compare with one never killed.

    python -m tests.kill_demo --kills 24 --seed 0 [--folder FOLDER]

The demo runs with the `tiny` preset. Each kill is a SIGKILL of all its processes, in a stage and
after a share of its duration that the seed draws; every stage has its turn before one has a second.
At the end, all files must be those of the demo that was not killed, but for times and dates. Prints
a line for every kill and a summary; the exit status is 1 if a file differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
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

import torch

from jukebox_core.training.trainer import TIMINGS

ROOT = Path(__file__).resolve().parent.parent
TINY = ("--preset", "tiny", "--tracks", "10", "--seconds", "4", "--chunks", "1", "--seed", "0")
TINY += ("--count-iterations", "20", "--cores", "1")
QUIET = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
_LINE = re.compile(r"\[.*?\] (?P<stage>.+?): (?P<what>python -m|already done|done in)(?P<rest>.*)")
_TIMES = {*TIMINGS, "seconds", "seconds_per_chunk", "elapsed", "date", "machine", "git_commit"}


class Demo:
    """One start of the demo."""

    def __init__(self, output: Path):
        command = [sys.executable, "-m", "scripts.demo", "--output", str(output), *TINY]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | QUIET,
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
    """Run both demos and compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill_demo")
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a new folder, which stays")
    args = parser.parse_args(argv)
    if args.folder:
        args.folder.mkdir(parents=True)
        return compare(args.folder, args.kills, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), args.kills, args.seed)


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
    different = sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )
    for name in different:
        state = "missing" if name not in found else "new" if name not in expected else "different"
        print(f"{state}: {name}")
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


def digests(folder: Path) -> dict[str, str]:
    """{file: digest of its content without times}; without the logs."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        name: hashlib.sha256(timeless(path)).hexdigest()
        for path in files
        if not (name := path.relative_to(folder).as_posix()).startswith("logs/")
    }


def timeless(path: Path) -> bytes:
    """A file's content without times and dates."""
    if path.suffix == ".json":
        content = _without_times(json.loads(path.read_text(encoding="utf-8")))
        return json.dumps(content, sort_keys=True).encode()  # stages end in any order
    if path.name == "metrics.csv":
        rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
        return repr([row for row in rows if not set(TIMINGS) & set(row)]).encode()
    if path.suffix == ".pt":
        state = torch.load(path, map_location="cpu", weights_only=True)
        return _bytes_of(_without_times(state))
    if path.suffix == ".html":
        text = re.sub("Commit: <code>.*?</code>", "", path.read_text(encoding="utf-8"))
        return re.sub(r"\d+(\.\d+)?", "0", text).encode()
    return path.read_bytes()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list | tuple) else value


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.tolist()}".encode()
    if isinstance(value, dict):
        return b"".join(str(k).encode() + b":" + _bytes_of(v) for k, v in value.items())
    if isinstance(value, list):
        return b"[" + b",".join(map(_bytes_of, value)) + b"]"
    return repr(value).encode()


if __name__ == "__main__":
    sys.exit(main())
