"""Every flag of every program with values that nobody means, and what the programs make of them.

    python -m tests.sweep_flags
    python -m tests.sweep_flags --programs separate --flags sigma weight --values nan inf
    python -m tests.sweep_flags --json sweep.jsonl    run again, what is in it is not done again

A case is a cheap, valid command with one flag replaced. It runs in a process of its own, forked
from one that has everything imported, on a copy of its inputs. The summary names every fault with
its command; the status is 1 if there are any:

    traceback, crash, hang     also `status`: another than 0, 1 and 2
    input changed, half file   files of the user's, or files that a refused command left
    silent                     accepted, and nobody can mean it (tables in sweep_rules.py)
    not finite, replaced       outputs hold NaN; they record another value than the one given
    several lines, no error line, unnamed, unhelpful      refused in words that do not help
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "docs/site")]

import flags as site_flags  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402
from sweep_inputs import make  # noqa: E402
from sweep_programs import BASES  # noqa: E402
from sweep_rules import (  # noqa: E402
    BASE,
    Case,
    Flag,
    Outcome,
    faults,
    flag_of,
    recorded_in,
    values_of,
    words_of,
)
from tqdm import tqdm  # noqa: E402

from jukebox_core.files import sha256  # noqa: E402
from scripts._cli import program  # noqa: E402

MEMORY = 6 * 2**30
"""Bytes of addresses that a process may take beside those of its parent."""
LARGEST_FILE = 2**29
PATIENCE = 10
"""So many times its seconds may a case take where other processes have the cores."""
STARTS = 15.0
"""A program that says when it is ready, and has not ended after so many seconds, has started."""


@dataclass(frozen=True)
class Args:
    """Flags of the sweep."""

    programs: tuple[str, ...] = ()
    """Names of scripts; default: all."""
    flags: tuple[str, ...] = ()
    """Parts of flags' names; default: all."""
    values: tuple[str, ...] = ()
    """Which of 0, -1, nan, inf, -inf, 1e30, 1e-300, billion, huge, empty, none, nonsense."""
    json: Path | None = None
    """File of one line of JSON per case; cases that are in it are not run again."""
    jobs: int = os.cpu_count() or 1
    """Cases side by side."""
    seconds: float = 20.0
    """What runs longer, waiting for a core not counted, hangs."""
    inputs: Path | None = None
    """Folder of inputs to use; what is not in it is made. Default: all, removed at the end."""


@program
def main(args: Args) -> int:
    """Run the cases, print the summary; the status says whether there are faults."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    import_all()
    chosen = [case for case in all_cases(args.programs) if _chosen(case, args)]
    if not chosen:
        raise ValueError("no program, flag and value is so called")
    with tempfile.TemporaryDirectory(prefix="sweep-") as temporary:
        inputs = args.inputs or Path(temporary) / "inputs"
        names = list(dict.fromkeys(case.program for case in chosen))
        in_child(lambda: [make(inputs, n) for name in names for n in BASES[name].inputs()])
        rows = _stored(args.json)
        every = [*base_cases(names), *chosen]
        left = [case for case in every if case.key not in rows]
        log = open(args.json, "a", encoding="utf-8") if args.json else None  # noqa: SIM115
        with log or contextlib.nullcontext():
            bar = tqdm(total=len(left), disable=None)
            for row in sweep(left, inputs, Path(temporary), args.jobs, args.seconds):
                rows[row["case"]] = row
                bar.update()
                if row["value"] == BASE and not accepted(row):
                    raise ValueError(f"the base command fails: {row['command']}: {row['stderr']}")
                if log is not None:
                    print(json.dumps(row), file=log, flush=True)
    found = [rows[case.key] for case in chosen]
    print(summary(found))
    return int(any(row["faults"] for row in found))


def _chosen(case: Case, args: Args) -> bool:
    return (not args.flags or any(f.strip("-") in case.flag.name for f in args.flags)) and (
        not args.values or case.value in args.values
    )


def _stored(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None or not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {row["case"]: row for row in map(json.loads, lines)}


def import_all() -> None:
    """Import every program, so that forked processes need not."""
    for name in site_flags.names():
        importlib.import_module(f"scripts.{name}")
    with contextlib.suppress(ImportError):
        importlib.import_module("scripts.app.blocks")


def all_cases(programs: Sequence[str] = ()) -> Iterator[Case]:
    """Every value of every flag of the programs (none named: of all)."""
    for name in programs or site_flags.names():
        parser = importlib.import_module(f"scripts.{name}").main.parser()
        for flag in filter(None, map(flag_of, site_flags.flags_of(parser))):
            for value in values_of(flag):
                yield Case(name, flag, value)


def base_cases(programs: Sequence[str]) -> list[Case]:
    """The programs' base commands, as they are."""
    return [
        Case(name, Flag(flag, frozenset(), 0, False), BASE)
        for name in programs
        for flag in ("", *BASES[name].instead)
    ]


def accepted(row: dict[str, Any]) -> bool:
    """Whether the program ran to its end, or started what runs until it is stopped."""
    return row["status"] == 0 or row["ready"]


def sweep(
    cases: Sequence[Case], inputs: Path, folder: Path, jobs: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Run cases, `jobs` at a time; a row each, as they end."""
    sums = {path.relative_to(inputs).as_posix(): sha256(path) for path in _files(inputs)}
    waiting, running = list(reversed(cases)), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Process(waiting.pop(), inputs, folder))
            for process in [p for p in running if p.ended(seconds)]:
                running.remove(process)
                outcome = process.outcome(sums)
                yield {
                    "case": process.case.key,
                    "program": process.case.program,
                    "flag": process.case.flag.name,
                    "value": process.case.value,
                    "faults": faults(process.case, outcome, BASES[process.case.program].writes),
                    "command": process.command,
                    **asdict(outcome),
                }
            time.sleep(0.01)
    finally:
        for process in running:
            process.kill()


class Process:
    """A running case, in a folder of its own."""

    def __init__(self, case: Case, inputs: Path, folder: Path):
        self.case = case
        self._base = BASES[case.program]
        self._home = Path(tempfile.mkdtemp(dir=folder, prefix="case-"))
        self._work, self._said = self._home / "work", self._home / "said"
        for made in (self._work, self._said, self._home / "tmp"):
            made.mkdir()
        port = str(20_000 + hash(self._home) % 10_000)
        words = words_of(case, self._base.command(case.flag.name))
        words = [port if word == "PORT" else word for word in words]
        self.command = shlex.join(["python", "-m", f"scripts.{case.program}", *words])
        self._copy(inputs, words)
        self._began = time.monotonic()
        self._status: int | None = None
        self._ready = self._hung = False
        self.pid = fork(lambda: self._run(words), self._said, self._work)

    def _copy(self, inputs: Path, words: Sequence[str]) -> None:
        for name in {word.split("/")[1] for word in words if word.startswith("in/")}:
            source, target = inputs / name, self._work / "in" / name
            target.parent.mkdir(exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)

    def _run(self, words: list[str]) -> int:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.environ["TMPDIR"] = tempfile.tempdir = str(self._home / "tmp")
        module = importlib.import_module(f"scripts.{self.case.program}")
        sys.argv = [str(module.__file__), *words]
        return module.main(words)

    def ended(self, seconds: float) -> bool:
        """Whether it has ended; ends it where it is ready or its time is over."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._status = os.waitstatus_to_exitcode(status)
            self.kill()
            return True
        passed = time.monotonic() - self._began
        if self._base.ready is not None:
            said = (self._said / "stdout").read_text(errors="replace")
            self._ready = self._base.ready in said or passed - _waited(self.pid) > STARTS
        else:
            ran = passed - _waited(self.pid)
            self._hung = ran > seconds or passed > PATIENCE * seconds
        if self._ready or self._hung:
            self.kill()
            os.waitpid(self.pid, 0)
            return True
        return False

    def kill(self) -> None:
        """End the process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def outcome(self, sums: dict[str, str]) -> Outcome:
        """What it did; removes its folder."""
        passed = time.monotonic() - self._began
        stdout, stderr = (
            (self._said / name).read_bytes()[-20_000:].decode(errors="replace")
            for name in ("stdout", "stderr")
        )
        changed, left, damaged, recorded = [], [], [], []
        there = {path.relative_to(self._work).as_posix(): path for path in _files(self._work)}
        for name in self._inputs(sums):
            path = there.pop(f"in/{name}", None)
            if path is None or sha256(path) != sums[name]:
                changed.append(f"in/{name}")
        for name, path in there.items():
            (changed if name.startswith("in/") else left).append(name)
            try:
                recorded += examine(path, self.case)
            except Exception as error:
                damaged.append(f"{name}: {error}")
        shutil.rmtree(self._home, ignore_errors=True)
        return Outcome(
            self._status, self._ready, self._hung, round(passed, 2), stdout, stderr, changed, left,
            damaged, recorded[:20],
        )  # fmt: skip

    def _inputs(self, sums: dict[str, str]) -> list[str]:
        """Names of the inputs that the case was given."""
        words = shlex.split(self.command)
        given = {word.split("/")[1] for word in words if word.startswith("in/")}
        return [name for name in sums if name.split("/")[0] in given]


def examine(path: Path, case: Case) -> list[Any]:
    """What an output records of the flag.

    Raises:
        ValueError: it holds what is not finite, or cannot be read.
    """
    from safetensors.numpy import load_file

    if path.suffix == ".json":
        return recorded_in(path.read_text(encoding="utf-8"), case.flag)
    arrays = []
    if path.name == "weights.safetensors":
        arrays = list(load_file(path).values())
    elif path.suffix in (".wav", ".flac"):
        arrays = [soundfile.read(path)[0]]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("holds values that are not finite")
    return []


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _waited(pid: int) -> float:
    """Seconds that a process was ready to run and had no core."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def fork(run: Any, said: Path, work: Path) -> int:
    """Start `run() -> exit status` in a process, and a group, of its own: its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    for name in ("stdout", "stderr"):
        (said / name).touch()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # the child does it too; whoever comes first
            os.setpgid(pid, pid)
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(said / name, os.O_WRONLY | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(work)
        limit(MEMORY)
        status = run()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            multiprocessing.util._exit_function()  # ends what the program started
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def addresses() -> int:
    """Bytes of addresses that this process has taken."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmSize:")[2].split()[0]) * 1024


def limit(memory: int) -> None:
    """Keep the machine from being filled; workers are forked, since a fresh Python takes long."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (addresses() + memory,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    get_context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: get_context("fork")  # type: ignore[assignment]


def in_child(run: Any) -> None:
    """Do something in a process of its own: this one stays without threads, so that it can fork.

    Raises:
        ValueError: it failed; the message is the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder)
        pid = fork(lambda: (run(), 0)[1], said, ROOT)
        _, status = os.waitpid(pid, 0)
        if status:
            raise ValueError((said / "stderr").read_text()[-2000:])


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A table by program, then every fault with its command and what was said."""
    lines = [f"{'program':20}{'cases':>7}{'refused':>9}{'accepted':>10}{'faults':>8}"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["program"], []).append(row)
    for name, own in [*groups.items(), ("all", list(rows))]:
        refused = sum(row["status"] in (1, 2) for row in own)
        ran = sum(map(accepted, own))
        wrong = sum(bool(row["faults"]) for row in own)
        lines.append(f"{name:20}{len(own):>7}{refused:>9}{ran:>10}{wrong:>8}")
    kinds = Counter(fault for row in rows for fault in row["faults"])
    lines += ["", ", ".join(f"{n} {fault}" for fault, n in kinds.most_common()) or "no fault"]
    for name, own in groups.items():
        flag = None
        for row in own:
            if not row["faults"]:
                continue
            if row["flag"] != flag:
                flag = row["flag"]
                lines += ["", f"{name} {flag}"]
            last = (row["stderr"].strip().splitlines() or [""])[-1]
            files = row["changed"] if "input changed" in row["faults"] else row["left"]
            lines.append(f"  {', '.join(row['faults'])}: {row['command']}")
            lines.append(f"      status {row['status']}, {row['seconds']} s; {last[:300]}")
            if {"input changed", "half file"} & set(row["faults"]):
                lines.append(f"      files: {', '.join(files[:6])}")
            if row["damaged"] and row["status"] == 0:
                lines.append(f"      {row['damaged'][0][:200]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
