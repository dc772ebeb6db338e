"""Kill every stage of the demo many times, each alone, in processes forked from this one.

A stage starts on the folder as the stages before it left it. A start is killed after a random time,
or just before one of its changes to the file system: files opened for writing, renamed or removed,
folders made or removed. Between two changes only the contents of open files differ, which the
random times are for. The next start goes on from what the killed one left, until one gets to the
end; then the folder must be that of the stage never killed, and the stage starts anew.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import random
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch

from jukebox_core.stages import Stage
from tests.timeless import differences, digests

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}
_CHANGES |= {"os.truncate", "os.chmod", "os.utime"}
_PATIENCE = 300.0
"""Seconds: a stage that takes longer hangs."""
_CONTINUED = 0.8
"""Share of the starts after a kill that are killed too; the others get to the end."""
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Start:
    """How a start of a stage ended. status: its exit status, None if it was killed."""

    status: int | None
    seconds: float
    changes: int


@dataclass(frozen=True)
class Outcome:
    """How often a stage was killed, and what differed after its continuations."""

    kills: int
    at_changes: int
    ended: int
    faults: tuple[str, ...]


def kill_each(
    plan: Sequence[Stage],
    folder: Path,
    output: Path,
    kills: int,
    seed: int,
    names: Sequence[str] = (),
) -> int:
    """Kill every stage so many times; return the exit status.

    Args:
        plan: the stages; they write to `output`.
        folder: for a log and a copy of `output`.
        output: a new folder.
        kills: of every stage.
        seed: of the moments.
        names: of the only stages to kill; the others run once. Default: all.
    """
    if unknown := {*names} - {stage.name for stage in plan}:
        raise ValueError(f"stages has {min(unknown)!r}, expected some of {[s.name for s in plan]}")
    torch.set_num_threads(1)  # processes forked beside running threads would hang
    output.mkdir()
    began, outcomes = time.monotonic(), []
    for stage in in_order(plan):
        chosen = not names or stage.name in names
        script, *flags = stage.command
        program = partial(importlib.import_module(f"scripts.{script}").main, flags)
        wanted = kills if chosen else 0
        outcome = kill_stage(stage.name, program, folder, output, wanted, f"{seed} {stage.name}")
        if not chosen:
            continue
        outcomes.append(outcome)
        for fault in outcome.faults:
            print(f"{stage.name}: {fault}", flush=True)
    total, faults = sum(o.kills for o in outcomes), sum(bool(o.faults) for o in outcomes)
    print(
        f"{total} kills in {len(outcomes)} stages, seed {seed}, {sum(o.ended for o in outcomes)} "
        f"continued to the end, {time.monotonic() - began:.0f} s: {len(digests(output))} files "
        f"and folders, {faults} stages with differences"
    )
    return 1 if faults or total < kills * len(outcomes) else 0


def in_order(plan: Sequence[Stage]) -> list[Stage]:
    """The stages, each after those that it needs."""
    ordered: list[Stage] = []
    while waiting := [stage for stage in plan if stage not in ordered]:
        names = {stage.name for stage in ordered}
        ordered.append(next(stage for stage in waiting if names.issuperset(stage.after)))
    return ordered


def kill_stage(
    name: str, program: Callable[[], int], folder: Path, output: Path, kills: int, seed: str
) -> Outcome:
    """Run a stage undisturbed, then kill it so many times; leave its files.

    Args:
        name: of the stage.
        program: writes to `output` and returns the exit status.
        folder: for a log and a copy of `output`.
        output: the folder that is compared.
        kills: number of kills.
        seed: of the moments.
    """
    before, log = folder / "before", folder / "log"

    def run(**moment: Any) -> Start:
        start = started(program, output, log, **moment)
        if start.status:
            said = log.read_text(encoding="utf-8", errors="replace")
            raise ChildProcessError(f"status {start.status}: {said[-2000:]}")
        return start

    def reset() -> None:
        shutil.rmtree(output)
        shutil.copytree(before, output, symlinks=True)

    shutil.rmtree(before, ignore_errors=True)
    shutil.copytree(output, before, symlinks=True)
    whole = run(imported=folder / "imported")
    preload(folder / "imported")
    expected = digests(output)
    draw = random.Random(seed)
    first: list[int] = []
    done = at_changes = ended = 0
    faults: list[str] = []
    began, fresh, changes, seconds = time.monotonic(), True, whole.changes, whole.seconds
    if kills:
        reset()
    while done < kills or not fresh:
        moment: dict[str, Any] = {}
        if fresh:
            changes, seconds = whole.changes, whole.seconds
        if done < kills and (fresh or draw.random() < _CONTINUED):
            if draw.random() < 0.5:
                moment["after"] = draw.random() * seconds
            elif fresh:  # every change has its turn
                first = first or draw.sample(range(1, 1 + whole.changes), whole.changes)
                moment["change"] = first.pop()
            else:
                moment["change"] = draw.randint(1, changes)
        try:
            killed = run(**moment).status is None
        except ChildProcessError as error:
            faults.append(str(error))
            break
        if killed:
            done += 1
            at_changes += "change" in moment
            fresh = False
            # What the next start has left to do, about; a stage may also start from nothing.
            changes = max(3, changes - moment.get("change", 0))
            seconds = max(whole.seconds / 4, seconds - moment.get("after", 0.0))
            continue
        ended += not fresh
        faults += differences(digests(output), expected)
        if faults:
            break
        fresh = True
        if done < kills:
            reset()
    if faults:  # the stages after it start from what it should have left
        reset()
        run()
    if not kills:
        return Outcome(0, 0, 0, ())
    print(
        f"{name}: {done} kills ({at_changes} at the {whole.changes} changes), {ended} "
        f"continued to the end, {whole.seconds:.1f} s undisturbed, "
        f"{time.monotonic() - began:.0f} s in all",
        flush=True,
    )
    return Outcome(done, at_changes, ended, tuple(faults))


def preload(names: Path) -> None:
    """Import modules here, so that the next starts need not."""
    for name in names.read_text(encoding="utf-8").splitlines():
        if name not in sys.modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def started(
    program: Callable[[], int],
    output: Path,
    log: Path,
    *,
    after: float | None = None,
    change: int | None = None,
    imported: Path | None = None,
) -> Start:
    """Run a program in a forked process group, to its end or until it is killed.

    Args:
        program: returns the exit status.
        output: folder whose changes count.
        log: file for what it prints.
        after: seconds until all its processes are killed.
        change: number, from 1, of the change before which they are killed.
        imported: file for the names of the modules that it imported.
    """
    reader, writer = os.pipe()  # closed when the last process that holds it ends
    count = _FORK.Value("Q", 0)
    process = _FORK.Process(target=_child, args=(program, output, log, count, change, imported))
    began = time.monotonic()
    process.start()
    os.setpgid(process.pid or 0, process.pid or 0)
    os.close(writer)
    if not select.select([reader], [], [], _PATIENCE if after is None else after)[0]:
        os.killpg(process.pid or 0, signal.SIGKILL)
        if after is None:
            raise TimeoutError(f"no end after {_PATIENCE:g} s")
    process.join()
    seconds = time.monotonic() - began
    select.select([reader], [], [], _PATIENCE)
    os.close(reader)
    status = process.exitcode if process.exitcode != -signal.SIGKILL else None
    process.close()
    return Start(status, seconds, count.value if status == 0 else 0)


def _child(
    program: Callable[[], int],
    output: Path,
    log: Path,
    count: Synchronized[int],
    change: int | None,
    imported: Path | None,
) -> None:
    os.setpgid(0, 0)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", buffering=1, closefd=False)
    # Processes that the program starts are counted with it, and start as quickly.
    multiprocessing.get_context = lambda method=None: _FORK  # type: ignore[assignment]

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if not _changes(event, arguments, str(output)):
            return
        with count.get_lock():
            count.value += 1
            if count.value == change:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(see)
    status = program()
    if imported is not None:
        imported.write_text("\n".join(sys.modules), encoding="utf-8")
    sys.exit(status)


def _changes(event: str, arguments: tuple[Any, ...], output: str) -> bool:
    """Whether an audited event changes names in a folder, or opens a file there for writing."""
    if event == "open":
        path, _, flags = arguments
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif event in _CHANGES:
        path = arguments[0]
    else:
        return False
    if isinstance(path, int):
        return False
    path = os.fsdecode(path)
    return not os.path.isabs(path) or path.startswith(output)  # rmtree passes bare names
