"""Counts of code triples (first source, second source, mixture): the table behind the likelihood.

A triple is one int64 key, (mixture * K + first) * K + second, so sorted keys are grouped by the
mixture code. Counting collects keys in a buffer of fixed size; a full buffer becomes a sorted run
on disk, and runs are merged by streaming blocks, as are files. Memory is bounded whatever the
number of triples; only `load_counts` and `TripleCounter.result` hold a whole table.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from jukebox_core.checks import require
from jukebox_core.config import MOST_CODES
from jukebox_core.files import atomic_path, check_replaceable, table_of, write_json
from jukebox_core.separation.memory import free_bytes
from lass.external_sort import HELD, Block, Run, SpoolRun, add_up, merged, merged_blocks, write_run

__all__ = [
    "BUFFER",
    "Counts",
    "CountsFile",
    "TripleCounter",
    "check_output",
    "check_spool",
    "count_triples",
    "from_keys",
    "load_counts",
    "merge_counts",
    "save_counts",
    "save_keys",
    "swap",
    "symmetrise",
    "to_keys",
]

BUFFER = 1 << 23
"""Triples held in memory before a run is written (64 MiB of keys), and while runs are merged."""
_FAN = 8  # runs of one level before they become one of the next
_LEAST = 1 << 12  # keys held while runs are merged, however small the buffer is
_PAGES = 1 << 16  # keys of a run whose pages may stay in memory: 1 MiB
_BYTES_PER_TRIPLE = 40  # while the buffer becomes a run: keys, two sorted copies, counts, rows
_STATE = "state.json"
_RUN = re.compile(r"run-\d{6,}")
_SPOOLED = re.compile(r"run-\d{6,}|state\.json|\..*\.\d+-[0-9a-f]+\.tmp(\.[^.]*)?")
_MOST_COUNTS = 1 << 53  # largest count that float64 holds exactly


class Counts(NamedTuple):
    """Sparse counts, sorted by (mixture, first, second), every triple once.

    first, second, mixture: int32 [P]. counts: int64 [P]. offsets: int64 [K + 1], the slice of
    mixture code m is [offsets[m], offsets[m + 1]).
    """

    n_codes: int
    first: np.ndarray
    second: np.ndarray
    mixture: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray


def from_keys(n_codes: int, keys: np.ndarray, counts: np.ndarray) -> Counts:
    """Counts from sorted unique keys and how often each was seen."""
    mixture, first, second = _codes_of(n_codes, keys)
    return Counts(
        n_codes,
        first.astype(np.int32),
        second.astype(np.int32),
        mixture.astype(np.int32),
        counts.astype(np.int64),
        np.searchsorted(mixture, np.arange(n_codes + 1)),
    )


def to_keys(n_codes: int, first: np.ndarray, second: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """int64 keys of triples of codes, any shape, flattened.

    Raises:
        ValueError: a code is not in [0, n_codes), or the shapes differ.
    """
    if not first.shape == second.shape == mixture.shape:
        raise ValueError(
            f"codes have shapes {first.shape}, {second.shape}, {mixture.shape}: expected the same"
        )
    for codes in (first, second, mixture):
        if codes.size and not (0 <= codes.min() and codes.max() < n_codes):
            raise ValueError(
                f"codes span [{codes.min()}, {codes.max()}], expected [0, {n_codes - 1}]"
            )
    first, second, mixture = (c.astype(np.int64).ravel() for c in (first, second, mixture))
    return (mixture * n_codes + first) * n_codes + second


def _codes_of(n_codes: int, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixture, first and second codes of keys."""
    pairs, second = np.divmod(keys, n_codes)
    mixture, first = np.divmod(pairs, n_codes)
    return mixture, first, second


def count_triples(
    n_codes: int, first: np.ndarray, second: np.ndarray, mixture: np.ndarray
) -> Counts:
    """Counts of triples that fit in memory."""
    return from_keys(
        n_codes, *np.unique(to_keys(n_codes, first, second, mixture), return_counts=True)
    )


def symmetrise(counts: Counts) -> Counts:
    """Add 1 at (i, j, m) and at (j, i, m) for every counted triple, as LASS does."""
    k = counts.n_codes
    keys = np.concatenate(
        [
            to_keys(k, counts.first, counts.second, counts.mixture),
            to_keys(k, counts.second, counts.first, counts.mixture),
        ]
    )
    return from_keys(k, *add_up(keys, np.concatenate([counts.counts, counts.counts])))


def swap(counts: Counts) -> Counts:
    """The same counts with first and second source exchanged."""
    keys = to_keys(counts.n_codes, counts.second, counts.first, counts.mixture)
    return from_keys(counts.n_codes, *add_up(keys, counts.counts))


class TripleCounter:
    """Counts triples in bounded memory, and goes on where it was after an interruption.

    The spool folder holds sorted runs and `state.json`, written by every flush: what was added
    since is lost with the process, nothing else. A run's level is how often its keys were merged;
    eight of a level become one of the next, so that n triples are rewritten O(log n) times.
    """

    def __init__(
        self,
        n_codes: int,
        spool: Path,
        *,
        buffer: int = BUFFER,
        settings: Mapping[str, Any] | None = None,
    ):
        """Open a spool folder, or go on in it.

        Args:
            n_codes: K.
            spool: folder for the runs.
            buffer: triples held in memory, while they are added and while runs are merged.
            settings: what the counts depend on; a spool of other settings is refused.

        Raises:
            ValueError: the buffer is empty or larger than the free memory, or the folder is damaged
                or belongs to a counting with other settings.
            FileExistsError: as `check_spool`.
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
        """Iterations (calls of `add`) that are safe on disk."""
        self.triples = 0
        """Their triples."""
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
                    f"{self._spool} holds a counting that was begun with {differing}: "
                    "delete it to start afresh"
                )
            for _, name in self._runs:
                if not (self._spool / name).is_file():
                    raise ValueError(f"{self._spool} lacks {name}: delete it to start afresh")
        known = {_STATE, *(name for _, name in self._runs)}
        for stray in list(self._spool.iterdir()):  # written after the last flush
            if stray.name not in known:
                stray.unlink()

    def adopt(self, file: CountsFile) -> None:
        """Go on from finished counts, which a new spool starts with."""
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
        """Make everything added so far last."""
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
        """Write everything added to a file of counts, as `save_counts` does, a part at a time.

        Returns:
            How many distinct triples every mixture code has, [K].
        """
        runs = self._one_run()
        blocks = self._merged(runs, 2) if runs else iter(())  # their codes take as much again
        return _save_blocks(path, self.n_codes, sum(map(len, runs)), blocks, metadata)

    def close(self) -> None:
        """Remove the spool folder; a removal that is interrupted leaves a spool of nothing."""
        (self._spool / _STATE).unlink(missing_ok=True)
        for path in list(self._spool.iterdir()):
            if _SPOOLED.fullmatch(path.name):
                path.unlink()
        with suppress(OSError):  # another program put a file there
            self._spool.rmdir()

    def _one_run(self) -> list[Run]:
        """Everything added as one run, or none where there is nothing."""
        self.flush()
        if len(self._runs) > 1:
            top = max(level for level, _ in self._runs)
            self._merge(top, top + 1)
        return [_Mapped(self._spool / name) for _, name in self._runs]

    def _spill(self) -> None:
        """The buffer to a run of level 0."""
        unique = np.unique(self._buffer[: self._filled], return_counts=True)
        write_run(self._new_run(0), [unique])
        self._filled = 0

    def _merge(self, highest: int, level: int) -> None:
        """Replace the runs up to level `highest` by one of `level`."""
        old = [name for run, name in self._runs if run <= highest]
        runs = [_Mapped(self._spool / name) for name in old]
        self._runs = [run for run in self._runs if run[1] not in old]
        write_run(self._new_run(level), self._merged(runs))
        self._write_state()
        for name in old:
            (self._spool / name).unlink(missing_ok=True)

    def _merged(self, runs: Sequence[Run], share: int = 1) -> Iterator[Block]:
        """The blocks of runs, no more keys at once than this share of what the buffer holds."""
        held = min(HELD, max(_LEAST, len(self._buffer)))
        return merged_blocks(runs, max(1, held // (share * len(runs))))

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
    """The content of state.json, checked; its runs name files of the spool.

    Raises:
        ValueError: it is damaged.
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


def check_spool(spool: Path) -> None:
    """Refuse a spool folder that holds anything that no counting writes.

    Raises:
        FileExistsError: it is a file, or holds something that no counting writes.
    """
    spool = Path(spool)
    if spool.exists() and not spool.is_dir():
        raise FileExistsError(
            f"{spool} is not a folder, but the runs of the counting go there: move it, or choose "
            "another output"
        )
    for path in list(spool.iterdir()) if spool.exists() else ():
        # Earlier versions wrote the finished file there before they moved it out.
        finished = spool.suffix == ".spool" and path.name == spool.stem
        known = _SPOOLED.fullmatch(path.name) or (finished and table_of("counts")(path))
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or not known):
            raise FileExistsError(
                f"{spool} holds {path.name}, which is no part of a counting, but the runs of the "
                "counting go there: move it, or choose another output"
            )


def check_output(path: Path) -> None:
    """Refuse to replace a file that is not a table of counts.

    Raises:
        FileExistsError: it is something else, or not a regular file.
    """
    check_replaceable(path, table_of("counts"), "a table of counts")


class _Mapped:
    """A run of the spool that is read from its start to its end, mapped anew every now and then.

    The pages of a mapping stay in memory while it lasts: of one, in the end the whole file would.
    """

    def __init__(self, path: Path):
        self._path = path
        self._run = SpoolRun(path)
        self._until = _PAGES

    def __len__(self) -> int:
        return len(self._run)

    def read(self, start: int, stop: int) -> Block:
        """Keys and counts `start` to `stop`."""
        if stop > self._until:
            self._run = SpoolRun(self._path)
            self._until = stop + _PAGES
        return self._run.read(start, stop)


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`seed 1 (now 2), ...` of the settings that are not the same."""
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return ", ".join(f"{name} {was.get(name)} (now {now.get(name)})" for name in names)


def save_counts(path: Path, counts: Counts, metadata: Mapping[str, str]) -> None:
    """Write counts atomically. `metadata` names codec, sources and alpha (see `load_counts`)."""
    keys = to_keys(counts.n_codes, counts.first, counts.second, counts.mixture)
    save_keys(path, counts.n_codes, keys, counts.counts, metadata)


def save_keys(
    path: Path, n_codes: int, keys: np.ndarray, counts: np.ndarray, metadata: Mapping[str, str]
) -> None:
    """Write counts given as sorted unique keys, such as a counter's result, a part at a time."""
    parts = range(0, len(keys), HELD)
    blocks = ((keys[at : at + HELD], counts[at : at + HELD]) for at in parts)
    _save_blocks(path, n_codes, len(keys), blocks, metadata)


def _save_blocks(
    path: Path,
    n_codes: int,
    size: int,
    blocks: Iterable[Block],
    metadata: Mapping[str, str],
) -> np.ndarray:
    """A safetensors file written in parts: its own writer wants everything in memory, twice.

    Returns how many keys every mixture code has.
    """
    shapes = {"counts": ("I64", size), "offsets": ("I64", n_codes + 1)}
    shapes |= {"first": ("I32", size), "second": ("I32", size)}
    header: dict[str, Any] = {
        "__metadata__": {"kind": "counts", "n_codes": str(n_codes), **metadata}
    }
    end = 0
    for name, (dtype, length) in shapes.items():
        begin, end = end, end + length * (8 if dtype == "I64" else 4)
        header[name] = {"dtype": dtype, "shape": [length], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    per_code = np.zeros(n_codes, np.int64)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + end)

        def write(name: str, at: int, values: np.ndarray) -> None:
            dtype = "<i8" if header[name]["dtype"] == "I64" else "<i4"
            file.seek(start + header[name]["data_offsets"][0] + at * int(dtype[-1]))
            file.write(values.astype(dtype).tobytes())

        at = 0
        for keys, counts in blocks:
            mixture, first, second = _codes_of(n_codes, keys)
            per_code += np.bincount(mixture, minlength=n_codes)
            write("first", at, first)
            write("second", at, second)
            write("counts", at, counts)
            at += len(keys)
        write("offsets", 0, np.concatenate([[0], np.cumsum(per_code)]))
        if at != size:
            raise RuntimeError(f"{at} keys were written, {size} were announced")
    return per_code


def load_counts(
    path: Path, codec_fingerprint: str | None = None, sources: Sequence[str] | None = None
) -> tuple[Counts, dict[str, str]]:
    """Counts of a file and its metadata.

    Args:
        path: written by `save_counts`.
        codec_fingerprint: of the codec it is to be used with; None does not check.
        sources: names in the order wanted; counts of the other order are exchanged.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds something else, or belongs to another codec or sources.
    """
    file = CountsFile(path)
    metadata = file.metadata
    if codec_fingerprint is not None and metadata.get("codec") != codec_fingerprint:
        raise ValueError(f"{path} was counted with another codec; run scripts.count_sums again")
    counts = file.load()
    stored = tuple(metadata.get("sources", "").split())
    if sources is not None and stored and stored != tuple(sources):
        if stored != tuple(reversed(sources)):
            raise ValueError(f"{path} counts {' and '.join(stored)}, not {' and '.join(sources)}")
        counts = swap(counts)
        metadata["sources"] = " ".join(sources)
    return counts, metadata


class CountsFile:
    """An open file of counts, a `Run` that is read a part at a time."""

    def __init__(self, path: Path):
        """Open and check a file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged or holds something else.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} is missing; make it with scripts.count_sums")
        try:
            self._file = safe_open(str(path), "numpy")
            self.metadata: dict[str, str] = self._file.metadata() or {}
        except SafetensorError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is not a readable file of counts ({reason})") from error
        kind = self.metadata.get("kind", "no")
        if kind != "counts":
            raise ValueError(f"{path} holds {kind} data, not counts")
        try:
            self.n_codes = int(self.metadata["n_codes"])
            self.iterations = int(self.metadata.get("iterations", 0))
            require("n_codes", self.n_codes, whole=True, at_least=1, at_most=MOST_CODES)
            require("iterations", self.iterations, whole=True, at_least=0)
            self._offsets = self._file.get_tensor("offsets")
            shapes = {self._file.get_slice(n).get_shape()[0] for n in ("first", "second", "counts")}
            types = {self._file.get_slice(n).get_dtype() for n in ("first", "second", "counts")}
        except (SafetensorError, KeyError, IndexError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is not a readable file of counts ({reason})") from error
        whole = self._offsets.dtype.kind == "i" and types <= {"I32", "I64"}
        if not whole or self._offsets.shape != (self.n_codes + 1,):
            raise ValueError(f"{path} is not a readable file of counts (no integers, or too few)")
        if self._offsets[0] != 0 or (np.diff(self._offsets) < 0).any():
            raise ValueError(f"{path} is not a readable file of counts (its offsets fall)")
        if shapes != {int(self._offsets[-1])}:
            raise ValueError(f"{path} is not a readable file of counts (its sizes disagree)")

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def load(self) -> Counts:
        """Read the whole table.

        Raises:
            ValueError: a code or a count is out of range, or triples are out of order.
        """
        first, second, counts = (
            self._file.get_tensor(name) for name in ("first", "second", "counts")
        )
        last = -1
        for start in range(0, len(self), HELD):
            part = slice(start, start + HELD)
            keys = self._keys(start, first[part], second[part], counts[part])
            if keys[0] <= last or (np.diff(keys) <= 0).any():
                raise ValueError(f"{self.path} is damaged: its triples are not in their order")
            last = keys[-1]
        codes = np.arange(self.n_codes, dtype=np.int32)
        mixture = np.repeat(codes, np.diff(self._offsets))
        return Counts(self.n_codes, first, second, mixture, counts, self._offsets)

    def read(self, start: int, stop: int) -> Block:
        """Keys and counts `start` to `stop`.

        Raises:
            ValueError: a code or a count is out of range.
        """
        stop = min(stop, len(self))
        if start >= stop:  # which safetensors refuses to slice
            return np.empty(0, np.int64), np.empty(0, np.int64)
        file = safe_open(str(self.path), "numpy")  # of one left open, what was read stays in memory
        first, second, counts = (
            file.get_slice(name)[start:stop] for name in ("first", "second", "counts")
        )
        return self._keys(start, first, second, counts), counts

    def _keys(
        self, start: int, first: np.ndarray, second: np.ndarray, counts: np.ndarray
    ) -> np.ndarray:
        """Check the entries from `start` on and return their keys."""
        places = np.arange(start, start + len(first))
        mixture = np.searchsorted(self._offsets, places, side="right") - 1
        if not 1 <= counts.min() <= counts.max() <= _MOST_COUNTS:
            raise ValueError(
                f"{self.path} is damaged: counts span [{counts.min()}, {counts.max()}], expected "
                "[1, 2^53]"
            )
        try:
            return to_keys(self.n_codes, first, second, mixture)
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged: {error}") from error


def merge_counts(files: Sequence[Path], output: Path) -> int:
    """Add up files of counts into one, in bounded memory.

    Args:
        files: partial counts, with other seeds or of other songs.
        output: file to write. An existing file is replaced if its counts are among those merged.

    Returns:
        The number of triples counted in all of them.

    Raises:
        FileNotFoundError: a file is missing.
        FileExistsError: the output exists and is not a table of counts.
        ValueError: a file is damaged, they do not belong together, two hold the same draws, or the
            output is one of them or holds other draws.
    """
    check_output(output)
    runs = [CountsFile(path) for path in files]
    for name in ("n_codes", "codec", "sources", "alpha"):
        values = {str(run.metadata.get(name)) for run in runs}
        if len(values) != 1:
            raise ValueError(f"the files to merge differ in {name}: {', '.join(sorted(values))}")
    draws = [part for run in runs for part in run.metadata.get("counting", "").split(" + ")]
    repeated = next((draw for draw in draws if draw and draws.count(draw) > 1), None)
    if repeated:
        raise ValueError(
            f"two of the files to merge hold the same draws ({repeated}): count the parts with "
            "a --seed each"
        )
    if any(Path(output).exists() and Path(output).samefile(path) for path in files):
        raise ValueError(f"{output} is one of the files to merge: choose another output")
    if Path(output).exists() and Path(output).stat().st_size:
        before = CountsFile(output).metadata.get("counting", "").split(" + ")
        if lost := [draw for draw in before if draw and draw not in draws]:
            raise ValueError(
                f"{output} holds draws that the files to merge do not have ({lost[0]}): delete it, "
                "or choose another output"
            )
    size = sum(len(keys) for keys, _ in merged(runs))
    triples = 0

    def blocks() -> Iterator[Block]:
        nonlocal triples
        for keys, counts in merged(runs):
            triples += int(counts.sum())
            yield keys, counts

    metadata = runs[0].metadata | {
        "iterations": str(sum(run.iterations for run in runs)),
        "counting": " + ".join(draw for draw in draws if draw),
    }
    _save_blocks(output, runs[0].n_codes, size, blocks(), metadata)
    return triples
