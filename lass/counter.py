"""Count code triples in bounded memory and resume after an interruption.

A buffer of fixed size collects the triples' keys (`lass.counts`); a full buffer becomes a sorted
run in the spool folder, and runs are merged by streaming blocks. Memory is bounded for any number
of triples; only `TripleCounter.result` holds a whole table.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jukebox_core.checks import require
from jukebox_core.files import is_temporary, write_json
from jukebox_core.machine import free_bytes
from jukebox_core.tables import table_of
from lass.counts import KIND, CountsFile, save_blocks, to_keys
from lass.external_sort import HELD, Block, Run, SpoolRun, merged, write_run

BUFFER = 1 << 23
"""Triples held in memory (64 MiB of keys) before a run is written, and while runs are merged."""
_FAN = 8  # runs of one level before they become one of the next
_LEAST = 1 << 12  # keys held while runs are merged, however small the buffer is
_BYTES_PER_TRIPLE = 40  # while the buffer becomes a run: keys, two sorted copies, counts, rows
_STATE = "state.json"
_RUN = re.compile(r"run-\d{6,}")


class TripleCounter:
    """Count triples in bounded memory; a new counter on the same spool resumes.

    The spool folder holds sorted runs and `state.json`. Every flush writes them; a killed process
    loses only what was added since. A run's level is the number of times that its keys were merged.
    Eight runs of a level become one of the next, so that n triples are rewritten O(log n) times.
    """

    def __init__(
        self,
        n_codes: int,
        spool: Path,
        *,
        buffer: int = BUFFER,
        settings: Mapping[str, Any] | None = None,
    ):
        """Open a new spool folder, or resume in an existing one.

        Args:
            n_codes: K.
            spool: folder for the runs.
            buffer: triples held in memory, while they are added and while runs are merged.
            settings: determine the counts; a spool with other settings is refused.

        Raises:
            ValueError: The buffer is empty or larger than the free memory, or the folder is damaged
                or has other settings.
            FileExistsError: As `check_spool`.
        """
        free = free_bytes(torch.device("cpu"))
        require(
            "buffer",
            buffer,
            whole=True,
            at_least=1,
            at_most=max(BUFFER, free // _BYTES_PER_TRIPLE),
            hint=f"triples; {free / 1e9:,.1f} GB of memory are free",
        )
        check_spool(spool)
        self.n_codes = n_codes
        self.iterations = 0
        """Iterations (calls of `add`) on the disk."""
        self.triples = 0
        """Triples of these iterations."""
        self._spool = Path(spool)
        self._buffer = np.empty(buffer, dtype=np.int64)
        self._filled = 0
        self._pending = (0, 0)  # iterations and triples since the last flush
        self._runs: list[tuple[int, str]] = []  # level and file name
        self._next = 0
        self._settings = json.loads(json.dumps({"n_codes": n_codes, **(settings or {})}))
        self._spool.mkdir(parents=True, exist_ok=True)
        self._resume()

    def _resume(self) -> None:
        state = self._spool / _STATE
        if state.is_file():
            stored = _read_state(state)
            self.iterations, self.triples = stored["iterations"], stored["triples"]
            self._runs = [(level, name) for level, name in stored["runs"]]
            self._next = stored["next"]
            differing = _differing(stored["settings"], self._settings)
            if differing:
                raise ValueError(
                    f"{self._spool} was begun with {differing}: delete it to start afresh"
                )
            for _, name in self._runs:
                if not (self._spool / name).is_file():
                    raise ValueError(f"{self._spool} lacks {name}: delete it to start afresh")
        recorded = {_STATE, *(name for _, name in self._runs)}
        for stray in list(self._spool.iterdir()):  # written after the last flush
            if stray.name not in recorded:
                stray.unlink()

    def adopt(self, file: CountsFile) -> None:
        """Start a new spool from finished counts."""
        if len(file):
            write_run(self._new_run(1), merged([file]))
        self.iterations += file.iterations
        self.triples += sum(int(counts.sum()) for _, counts in merged([file]))
        self._write_state()

    def add(self, first: np.ndarray, second: np.ndarray, mixture: np.ndarray) -> None:
        """Count one iteration's triples (arrays of one shape)."""
        keys = to_keys(self.n_codes, first, second, mixture)
        size = len(self._buffer)
        if self._filled + len(keys) > size:
            self.flush()  # a flush between iterations: counting resumes at whole ones
        for start in range(0, len(keys), size):
            if start:  # more triples in one iteration than the buffer holds
                self._spill()
            part = keys[start : start + size]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
        self._pending = (self._pending[0] + 1, self._pending[1] + len(keys))

    def flush(self) -> None:
        """Write everything added so far to the disk."""
        if self._filled:
            self._spill()
        self.iterations += self._pending[0]
        self.triples += self._pending[1]
        self._pending = (0, 0)
        self._write_state()
        level = 0
        while level <= max((run for run, _ in self._runs), default=-1):
            if sum(run == level for run, _ in self._runs) >= _FAN:
                self._merge(level, level + 1)
            level += 1

    def result(self) -> Block:
        """All sorted unique keys and their counts, memory-mapped from one last run."""
        runs = self._one_run()
        if not runs:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return runs[0].read(0, len(runs[0]))

    def save(self, path: Path, metadata: Mapping[str, str]) -> np.ndarray:
        """Write everything added so far to a file of counts, as `save_counts`, in parts.

        Returns:
            The number of distinct triples of each mixture code, [K].
        """
        runs = self._one_run()
        blocks = self._merged(runs, 2) if runs else iter(())  # codes need as much memory as keys
        return save_blocks(path, self.n_codes, sum(map(len, runs)), blocks, metadata)

    def close(self) -> None:
        """Remove the spool folder; an interrupted removal leaves an empty spool."""
        (self._spool / _STATE).unlink(missing_ok=True)
        for path in list(self._spool.iterdir()):
            if _spooled(path.name):
                path.unlink()
        with suppress(OSError):  # another program put a file there
            self._spool.rmdir()

    def _one_run(self) -> list[Run]:
        """Merge everything added into one run; [] if there is nothing."""
        self.flush()
        if len(self._runs) > 1:
            top = max(level for level, _ in self._runs)
            self._merge(top, top + 1)
        return [SpoolRun(self._spool / name) for _, name in self._runs]

    def _spill(self) -> None:
        """Write the buffer as a run of level 0."""
        unique = np.unique(self._buffer[: self._filled], return_counts=True)
        write_run(self._new_run(0), [unique])
        self._filled = 0

    def _merge(self, highest: int, level: int) -> None:
        """Replace the runs up to level `highest` by one run of `level`."""
        old = [name for run, name in self._runs if run <= highest]
        runs = [SpoolRun(self._spool / name) for name in old]
        self._runs = [run for run in self._runs if run[1] not in old]
        write_run(self._new_run(level), self._merged(runs))
        self._write_state()
        for name in old:
            (self._spool / name).unlink(missing_ok=True)

    def _merged(self, runs: Sequence[Run], share: int = 1) -> Iterator[Block]:
        """The merged blocks of runs; all together hold at most 1 / `share` of the buffer's keys."""
        held = min(HELD, max(_LEAST, len(self._buffer)))
        return merged(runs, max(1, held // (share * len(runs))))

    def _new_run(self, level: int) -> Path:
        self._next += 1
        self._runs.append((level, f"run-{self._next:06}"))
        return self._spool / self._runs[-1][1]

    def _write_state(self) -> None:
        write_json(
            self._spool / _STATE,
            {
                "settings": self._settings,
                "iterations": self.iterations,
                "triples": self.triples,
                "runs": self._runs,
                "next": self._next,
            },
        )


def _read_state(path: Path) -> dict[str, Any]:
    """Read and check state.json.

    Raises:
        ValueError: It is damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        for name in ("iterations", "triples", "next"):
            require(name, stored[name], whole=True, at_least=0)
        for level, name in stored["runs"]:
            require("level", level, whole=True, at_least=0, at_most=64)
            if not _RUN.fullmatch(name):
                raise ValueError(f"a run has the name {name}, expected run-NNNNNN")
        _differing(stored["settings"], {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: delete {path.parent}") from error
    return stored


def _spooled(name: str) -> bool:
    """Whether a counter writes files of this name."""
    return name == _STATE or bool(_RUN.fullmatch(name)) or is_temporary(name)


def check_spool(spool: Path) -> None:
    """Refuse to use a folder that holds anything but the files of a counter.

    Raises:
        FileExistsError: It is a file, or holds another file.
    """
    spool = Path(spool)
    if spool.exists() and not spool.is_dir():
        raise FileExistsError(
            f"{spool} is not a folder, but the runs of the counting need one there: move it, or "
            "choose another output"
        )
    for path in list(spool.iterdir()) if spool.exists() else ():
        # Earlier versions wrote the finished file there before they moved it out.
        finished = spool.suffix == ".spool" and path.name == spool.stem
        ours = _spooled(path.name) or (finished and table_of(KIND)(path))
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or not ours):
            raise FileExistsError(
                f"{spool} holds {path.name}, but is the folder for the runs of the counting: move "
                "the file, or choose another output"
            )


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """List the settings that differ: `seed 1 (now 2), ...`."""
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return ", ".join(f"{name} {was.get(name)} (now {now.get(name)})" for name in names)
