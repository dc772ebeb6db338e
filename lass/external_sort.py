"""Sorted runs of (key, count), merged in bounded memory a block at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jukebox_core.files import atomic_path

Block = tuple[np.ndarray, np.ndarray]
"""Sorted unique keys and their counts, int64."""
HELD = 1 << 23
"""Keys in memory while runs are merged, over all runs."""

_PAGES = 1 << 16  # keys of a run whose pages may stay in memory: 1 MiB


class Run(Protocol):
    """Sorted unique keys and their counts, read a part at a time."""

    def __len__(self) -> int:
        """Number of keys."""

    def read(self, start: int, stop: int) -> Block:
        """Keys and counts `start` to `stop`; a part beyond the end is empty."""


class SpoolRun:
    """A file of int64 rows (key, count), written by `write_run` and read from start to end.

    The pages of a mapping stay in memory while it lasts, so that the file is mapped anew every
    `_PAGES` keys.

    Raises:
        ValueError: It is damaged.
    """

    def __init__(self, path: Path):
        self._path, self._until = path, _PAGES
        size = path.stat().st_size
        if size == 0 or size % 16:
            raise ValueError(f"{path} is damaged: delete {path.parent} to start afresh")
        self.rows = np.memmap(path, np.int64, "r").reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> Block:
        """Keys and counts `start` to `stop`."""
        if stop > self._until:
            self.rows = np.memmap(self._path, np.int64, "r").reshape(-1, 2)
            self._until = stop + _PAGES
        part = self.rows[start:stop]
        return part[:, 0], part[:, 1]


def merged(runs: Sequence[Run], block: int | None = None) -> Iterator[Block]:
    """Merge runs into blocks of sorted keys, each key once, and their added counts.

    Each round takes, from every run, the keys up to the least of the blocks' last keys. It then has
    all smaller keys of all runs, so a merged block is final. At most `block` keys of each run are
    in memory, by default `HELD` of all runs.
    """
    block = block or max(1, HELD // len(runs))
    positions = [0] * len(runs)
    while True:
        heads = [run.read(p, p + block) for run, p in zip(runs, positions, strict=True)]
        last = [keys[-1] for keys, _ in heads if len(keys)]
        if not last:
            return
        limit = min(last)
        stops = [int(np.searchsorted(keys, limit, side="right")) for keys, _ in heads]
        positions = [p + stop for p, stop in zip(positions, stops, strict=True)]
        yield add_up(
            np.concatenate([k[:stop] for (k, _), stop in zip(heads, stops, strict=True)]),
            np.concatenate([c[:stop] for (_, c), stop in zip(heads, stops, strict=True)]),
        )


def write_run(path: Path, blocks: Iterable[Block]) -> None:
    """Write blocks of keys and counts, atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        for keys, counts in blocks:
            np.stack([keys, counts], axis=1).astype(np.int64).tofile(file)


def add_up(keys: np.ndarray, counts: np.ndarray) -> Block:
    """Sorted unique keys and the sums of their counts."""
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts
