"""Counts of code triples (first source, second source, mixture): the table behind the likelihood.

A triple is one int64 key, (mixture * K + first) * K + second, so sorted keys are grouped by the
mixture code. Counting collects keys in a buffer of fixed size; a full buffer becomes a sorted run
on disk, and runs are merged by streaming blocks. Memory is bounded whatever the number of triples.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jukebox_core.files import atomic_path, write_json

BUFFER = 1 << 23
"""Triples held in memory before a run is written (64 MiB of keys)."""
_BLOCK = 1 << 20  # keys read from each run at a time while merging
_RUNS = 8  # runs on disk before they are merged into one


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
    pairs = n_codes * n_codes
    mixture = keys // pairs
    return Counts(
        n_codes,
        (keys // n_codes % n_codes).astype(np.int32),
        (keys % n_codes).astype(np.int32),
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
    return from_keys(k, *_add_up(keys, np.concatenate([counts.counts, counts.counts])))


def swap(counts: Counts) -> Counts:
    """The same counts with first and second source exchanged."""
    keys = to_keys(counts.n_codes, counts.second, counts.first, counts.mixture)
    return from_keys(counts.n_codes, *_add_up(keys, counts.counts))


def merge_counts(parts: Sequence[Counts]) -> Counts:
    """The sum of partial counts, for example of several processes."""
    sizes = {part.n_codes for part in parts}
    if len(sizes) != 1:
        raise ValueError(f"cannot merge counts over {sorted(sizes)} codes: expected one size")
    n_codes = sizes.pop()
    keys = np.concatenate([to_keys(n_codes, p.first, p.second, p.mixture) for p in parts])
    return from_keys(n_codes, *_add_up(keys, np.concatenate([p.counts for p in parts])))


def _add_up(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted unique keys and the sums of their counts."""
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts


class TripleCounter:
    """Counts triples in bounded memory, and goes on where it was after an interruption.

    The spool folder holds sorted runs (`run-N.npy`, [2, P] keys and counts) and `state.json`,
    written by every flush: what was added since is lost with the process, nothing else.
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
            buffer: triples held in memory.
            settings: what the counts depend on; a spool of other settings is refused.

        Raises:
            ValueError: the folder holds a counting with other settings.
        """
        self.n_codes = n_codes
        self.iterations = 0
        self.triples = 0
        self._spool = Path(spool)
        self._buffer = np.empty(buffer, dtype=np.int64)
        self._filled = 0
        self._pending_iterations = 0
        self._runs: list[str] = []
        self._next = 0
        self._settings = json.loads(json.dumps({"n_codes": n_codes, **(settings or {})}))
        self._spool.mkdir(parents=True, exist_ok=True)
        state = self._spool / "state.json"
        if state.is_file():
            self._resume(json.loads(state.read_text(encoding="utf-8")))

    def _resume(self, state: dict[str, Any]) -> None:
        if state["settings"] != self._settings:
            raise ValueError(
                f"{self._spool} holds a counting with other settings ({state['settings']}, now "
                f"{self._settings}): delete it to start afresh"
            )
        self.iterations, self.triples = state["iterations"], state["triples"]
        self._runs, self._next = state["runs"], state["next"]
        for stray in set(self._spool.glob("run-*.npy")) - {self._spool / r for r in self._runs}:
            stray.unlink()

    def add(self, first: np.ndarray, second: np.ndarray, mixture: np.ndarray) -> None:
        """Count one iteration's triples (arrays of one shape)."""
        keys = to_keys(self.n_codes, first, second, mixture)
        self._pending_iterations += 1
        while len(keys):
            take = keys[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(take)] = take
            self._filled += len(take)
            keys = keys[len(take) :]
            if self._filled == len(self._buffer) and len(keys):
                self._write_run()
        if self._filled == len(self._buffer):
            self.flush()

    def flush(self) -> None:
        """Make everything added so far last."""
        if self._filled:
            self._write_run()
        self.iterations += self._pending_iterations
        self._pending_iterations = 0
        if len(self._runs) > _RUNS:
            self._merge_runs()
        self._write_state()

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted unique keys and their counts, memory-mapped from the last run."""
        self.flush()
        if not self._runs:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        if len(self._runs) > 1:
            self._merge_runs()
            self._write_state()
        keys, counts = np.load(self._spool / self._runs[0], mmap_mode="r")
        return keys, counts

    def close(self) -> None:
        """Remove the spool folder."""
        shutil.rmtree(self._spool, ignore_errors=True)

    def _write_run(self) -> None:
        keys, counts = np.unique(self._buffer[: self._filled], return_counts=True)
        self.triples += self._filled
        self._filled = 0
        name = self._new_name()
        with atomic_path(self._spool / name) as temporary:
            np.save(temporary, np.stack([keys, counts.astype(np.int64)]))
        self._runs.append(name)

    def _merge_runs(self) -> None:
        """Replace all runs by one, reading and writing a block at a time."""
        name = self._new_name()
        runs = [np.load(self._spool / run, mmap_mode="r") for run in self._runs]
        size = sum(len(keys) for keys, _ in merged_blocks(runs, _BLOCK))
        with atomic_path(self._spool / name) as temporary:
            out = np.lib.format.open_memmap(temporary, "w+", dtype=np.int64, shape=(2, size))
            at = 0
            for keys, counts in merged_blocks(runs, _BLOCK):
                out[0, at : at + len(keys)] = keys
                out[1, at : at + len(keys)] = counts
                at += len(keys)
            out.flush()
            del out
        old, self._runs = self._runs, [name]
        self._write_state()
        for run in old:
            (self._spool / run).unlink(missing_ok=True)

    def _write_state(self) -> None:
        write_json(
            self._spool / "state.json",
            {
                "settings": self._settings,
                "iterations": self.iterations,
                "triples": self.triples,
                "runs": self._runs,
                "next": self._next,
            },
        )

    def _new_name(self) -> str:
        self._next += 1
        return f"run-{self._next:06}.npy"


def merged_blocks(
    runs: Sequence[np.ndarray], block: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Merge sorted runs [2, P_i] of keys and counts, a block at a time.

    Each round takes, from every run, the keys up to the least of the blocks' last keys: all smaller
    keys of all runs are then in hand, so a merged block is final. At most `block` keys of each run
    are held.
    """
    positions = [0] * len(runs)
    while True:
        heads = [run[0, p : p + block] for run, p in zip(runs, positions, strict=True)]
        live = [i for i, head in enumerate(heads) if len(head)]
        if not live:
            return
        limit = min(heads[i][-1] for i in live)
        keys, counts = [], []
        for i in live:
            stop = int(np.searchsorted(heads[i], limit, side="right"))
            keys.append(np.array(heads[i][:stop]))
            counts.append(np.array(runs[i][1, positions[i] : positions[i] + stop]))
            positions[i] += stop
        yield _add_up(np.concatenate(keys), np.concatenate(counts))


def save_counts(path: Path, counts: Counts, metadata: Mapping[str, str]) -> None:
    """Write counts atomically. `metadata` names codec, sources and alpha (see `load_counts`)."""
    tensors = {
        "first": counts.first,
        "second": counts.second,
        "counts": counts.counts,
        "offsets": counts.offsets.astype(np.int64),
    }
    described = {"kind": "counts", "n_codes": str(counts.n_codes), **metadata}
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), described)


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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make it with scripts.count_sums")
    try:
        with safe_open(str(path), "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != "counts":
                raise ValueError(f"{path} holds {metadata.get('kind', 'no')} data, not counts")
            first, second, seen, offsets = (
                file.get_tensor(name) for name in ("first", "second", "counts", "offsets")
            )
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable file of counts ({error})") from error
    n_codes = int(metadata["n_codes"])
    mixture = np.repeat(np.arange(n_codes, dtype=np.int32), np.diff(offsets))
    counts = Counts(n_codes, first, second, mixture, seen, offsets)
    if codec_fingerprint is not None and metadata.get("codec") != codec_fingerprint:
        raise ValueError(f"{path} was counted with another codec; run scripts.count_sums again")
    stored = tuple(metadata.get("sources", "").split())
    if sources is not None and stored and stored != tuple(sources):
        if stored != tuple(reversed(sources)):
            raise ValueError(f"{path} counts {' and '.join(stored)}, not {' and '.join(sources)}")
        counts = swap(counts)
        metadata["sources"] = " ".join(sources)
    return counts, metadata
