"""Seeded mutations of small files, and of commands, read by the functions that read the user's.

    python -m tests.fuzz
    python -m tests.fuzz --parsers audio tables --cases 200 --seed 1
    python -m tests.fuzz --parsers audio --case 1234      that one case, and all that it says

A case is accepted, and what it yields is finite and as declared, or refused with a ValueError or an
OSError in one line that names the file. Cases run in a forked process, with limits on memory and
time. The summary names each finding with a command that repeats it; the status is 1 if there are
any:

    crash, hang, memory        the process ended, took too long, or wanted too much memory
    code executed              a pickle, or a tag in YAML, ran
    input changed, files left  something was written, besides the outputs
    exception                  of another type than the documented ones
    wrong result               not finite, of another shape or type, accepted or refused in error
    several lines, control characters, too long, unnamed, words of NumPy
                               a refusal that does not help
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import fuzz_audio  # noqa: E402
import fuzz_checkpoints  # noqa: E402
import fuzz_commands  # noqa: E402
import fuzz_metadata  # noqa: E402
import fuzz_tables  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
from fuzz_cases import Case, Parser, WrongResult, refusal_faults  # noqa: E402
from sweep_flags import addresses, limit  # noqa: E402
from tqdm import tqdm  # noqa: E402

from jukebox_core.checks import one_line  # noqa: E402
from jukebox_core.files import sha256  # noqa: E402
from jukebox_core.machine import is_out_of_memory  # noqa: E402
from scripts._cli import program  # noqa: E402

MEMORY = 3 * 2**29
"""Bytes of addresses that a case may take beside those of its process."""
PATIENCE = 10
"""So many times its seconds may a case take where it waits, or other processes have the cores."""

PARSERS: dict[str, Parser] = {
    "audio": fuzz_audio.PARSER,
    "metadata": fuzz_metadata.PARSER,
    "checkpoints": fuzz_checkpoints.PARSER,
    "tables": fuzz_tables.PARSER,
    "commands": fuzz_commands.PARSER,
}


@dataclass(frozen=True)
class Args:
    """Flags of the fuzzer."""

    parsers: tuple[str, ...] = ()
    """Some of audio, metadata, checkpoints, tables, commands; default: all."""
    cases: int = 1000
    """Cases of each parser."""
    seed: int = 0
    """Of all cases."""
    case: int | None = None
    """Number of the only case to run."""
    json: Path | None = None
    """File to write a line of JSON per case to."""
    seconds: float = 10.0
    """What takes a core for longer hangs, and so does what takes ten times as long in all."""


@program
def main(args: Args) -> int:
    """Run the cases, print the summary; the status says whether there are findings."""
    names = args.parsers or tuple(PARSERS)
    if unknown := [name for name in names if name not in PARSERS]:
        raise ValueError(f"parsers has {unknown[0]!r}, expected some of {', '.join(PARSERS)}")
    numbers = range(args.cases) if args.case is None else range(args.case, args.case + 1)
    rows = []
    log = open(args.json, "w", encoding="utf-8") if args.json else None  # noqa: SIM115
    with log or contextlib.nullcontext(), tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        with tqdm(total=len(names) * len(numbers), disable=None) as bar:
            for name in names:
                for row in fuzz(name, numbers, args.seed, Path(folder) / name, args.seconds):
                    rows.append(row)
                    bar.update()
                    if log is not None:
                        print(json.dumps(row), file=log, flush=True)
    print(summary(rows, args.seed))
    if args.case is not None:
        print("\n".join(f"\n{row['label']}: {row['verdict']}\n{row['said']}" for row in rows))
    return int(any(row["findings"] for row in rows))


def fuzz(
    name: str, numbers: range, seed: int, folder: Path, seconds: float
) -> Iterator[dict[str, Any]]:
    """Run cases of a parser one after another; a row each."""
    folder.mkdir(parents=True)
    worker = None
    try:
        for number in numbers:
            worker = worker or Worker(name, seed, folder)
            outcome = worker.run(number, seconds)
            if not worker.alive():
                worker = None
            yield {"parser": name, "case": number, **outcome}
    finally:
        if worker is not None:
            worker.end()


class Worker:
    """A process that runs cases of a parser, until one of them ends it."""

    def __init__(self, name: str, seed: int, folder: Path):
        context = multiprocessing.get_context("fork")
        self._said = folder / "said"
        self._pipe, theirs = context.Pipe()
        arguments = (PARSERS[name], (seed, crc32(name.encode())), folder, theirs, self._said)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def run(self, number: int, seconds: float) -> dict[str, Any]:
        """The outcome of a case; the process is ended if it hangs."""
        label = "not made"
        try:
            self._pipe.send(number)
            label = self._pipe.recv()  # making a case has no limit: only reading it is examined
            if self._answers(seconds):
                return self._pipe.recv()
            finding = f"hang: no answer after {seconds:g} s"
        except (EOFError, OSError):
            self._process.join()
            last = (self._text().strip().splitlines() or ["nothing"])[-1]
            finding = f"crash: exit status {self._process.exitcode}: it said {last}"
        self.end()
        return {"label": label, "verdict": "lost", "findings": [finding], "said": self._text()}

    def _answers(self, seconds: float) -> bool:
        before, passed = self._busy(), 0.0
        while not self._pipe.poll(0.25):
            passed += 0.25
            if self._busy() - before > seconds or passed > PATIENCE * seconds:
                return False
        return True

    def _busy(self) -> float:
        """Seconds of a core that it and those that it started have taken."""
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(self._process.pid)
            return sum(sum(p.cpu_times()[:4]) for p in (own, *own.children(recursive=True)))
        return 0.0

    def _text(self) -> str:
        with contextlib.suppress(OSError):
            return self._said.read_text(encoding="utf-8", errors="replace")[-4000:]
        return ""

    def alive(self) -> bool:
        """Whether it can run another case."""
        return self._process.is_alive()

    def end(self) -> None:
        """End the process and those that it started."""
        if self._process.pid is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()


def _serve(parser: Parser, seed: tuple[int, ...], folder: Path, pipe: Any, said: Path) -> None:
    """Run the cases whose numbers arrive."""
    import faulthandler
    import resource

    os.setpgid(0, 0)
    home, here = folder / "case", folder / "here"
    seeds = folder / "seeds"
    if not seeds.exists():
        parser.prepare(seeds)
    here.mkdir(exist_ok=True)
    os.chdir(here)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")
    with open(said, "w", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    limit(1 << 40)
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    while True:
        number = pipe.recv()
        for place in (home, *here.iterdir()):
            shutil.rmtree(place, ignore_errors=True)
            place.unlink(missing_ok=True)
        made = folder / "out"
        shutil.rmtree(made, ignore_errors=True)
        for place in (home, made, here / "tmp"):
            place.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(here / "tmp")
        os.ftruncate(1, 0)
        case = parser.make(np.random.default_rng((*seed, number)), seeds, home)
        pipe.send(case.label)
        resource.setrlimit(resource.RLIMIT_AS, (addresses() + MEMORY, most))
        outcome = _outcome(case, home, here)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        pipe.send({"label": case.label, **outcome})


def _outcome(case: Case, home: Path, here: Path) -> dict[str, Any]:
    before, verdict, findings, said = _contents(home), "accepted", [], ""
    try:
        case.read()
    except WrongResult as wrong:
        findings.append(f"wrong result: {wrong}")
    except (ValueError, OSError) as error:
        verdict, said = "refused", one_line(error)
        findings += refusal_faults(error, case.names)
        if case.valid:
            findings.append(f"wrong result: refused in error: {said}")
    except BaseException as error:
        kind = "memory" if is_out_of_memory(error) else "exception"
        where = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in where if str(ROOT) in f.filename]
        findings.append(f"{kind}: {type(error).__name__}: {one_line(error)} ({', '.join(ours)})")
        said = traceback.format_exc()
    else:
        if case.valid is False:
            findings.append("wrong result: accepted in error")
    marks = here / "executed"
    if marks.exists():
        findings.append("code executed")
    if _contents(home) != before:
        findings.append("input changed")
    left = [path.name for path in (*here.iterdir(), *(here / "tmp").iterdir())]
    if left := [name for name in left if name not in ("tmp", "executed")]:
        findings.append(f"files left: {', '.join(left)}")
    return {"verdict": verdict, "findings": findings, "said": said}


def _contents(folder: Path) -> Mapping[str, str]:
    """{path: digest, or what it is} of everything in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        regular = path.is_file() and not path.is_symlink()
        what = sha256(path) if regular else os.readlink(path) if path.is_symlink() else "other"
        found[str(path)] = what
    return found


def summary(rows: list[dict[str, Any]], seed: int) -> str:
    """A table by parser, then every finding with the command that repeats it."""
    lines = [f"{'parser':14}{'cases':>8}{'accepted':>10}{'refused':>9}{'findings':>10}"]
    for name in dict.fromkeys(row["parser"] for row in rows):
        own = [row for row in rows if row["parser"] == name]
        verdicts = [row["verdict"] for row in own]
        wrong = sum(bool(row["findings"]) for row in own)
        lines.append(
            f"{name:14}{len(own):>8}{verdicts.count('accepted'):>10}"
            f"{verdicts.count('refused'):>9}{wrong:>10}"
        )
    for row in rows:
        for finding in row["findings"]:
            lines += ["", f"{row['parser']}, {row['label']}: {finding[:400]}"]
            lines.append(
                f"    python -m tests.fuzz --parsers {row['parser']} --seed {seed} "
                f"--case {row['case']}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
