"""Counts of code triples (first source, second source, mixture): the table and its file.

A triple is one int64 key, (mixture * K + first) * K + second, so sorted keys are grouped by mixture
code. Files are read, written and merged a block at a time; only `load_counts` holds a whole table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open

from jukebox_core.checks import require
from jukebox_core.config import MOST_CODES
from jukebox_core.files import atomic_path, check_replaceable
from jukebox_core.tables import TensorWriter, open_table, readable, table_of, utf8_name
from jukebox_core.upstream.tables import MOST_COUNTS
from lass.external_sort import HELD, Block, add_up, merged

KIND = "counts"


class Counts(NamedTuple):
    """Sparse counts, sorted by (mixture, first, second), every triple once.

    first, second, mixture: int32 [P]. counts: int64 [P]. offsets: int64 [K + 1]; mixture code m
    has the entries [offsets[m], offsets[m + 1]).
    """

    n_codes: int
    first: np.ndarray
    second: np.ndarray
    mixture: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray


def from_keys(n_codes: int, keys: np.ndarray, counts: np.ndarray) -> Counts:
    """Counts from sorted unique keys [P] and the count of each [P]."""
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
    """Keys [N], int64, of triples of codes, three arrays of one shape with N elements.

    Raises:
        ValueError: A code is not in [0, n_codes), or the shapes differ.
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
    """Count triples in memory."""
    return from_keys(
        n_codes, *np.unique(to_keys(n_codes, first, second, mixture), return_counts=True)
    )


def symmetrise(counts: Counts) -> Counts:
    """Add 1 at (i, j, m) and at (j, i, m) for every counted triple, as LASS does."""
    one, two, mixture = counts.first, counts.second, counts.mixture
    both = [np.concatenate(pair) for pair in ((one, two), (two, one), (mixture, mixture))]
    keys = to_keys(counts.n_codes, *both)
    return from_keys(counts.n_codes, *add_up(keys, np.tile(counts.counts, 2)))


def swap(counts: Counts) -> Counts:
    """The same counts with first and second source exchanged."""
    keys = to_keys(counts.n_codes, counts.second, counts.first, counts.mixture)
    return from_keys(counts.n_codes, *add_up(keys, counts.counts))


def check_output(path: Path) -> None:
    """Refuse to replace a file that is not a table of counts.

    Raises:
        FileExistsError: It is something else, or not a regular file.
    """
    check_replaceable(path, table_of(KIND), "a table of counts")


def save_counts(path: Path, counts: Counts, metadata: Mapping[str, str]) -> None:
    """Write counts atomically. `metadata` names codec, sources and alpha (see `load_counts`)."""
    keys = to_keys(counts.n_codes, counts.first, counts.second, counts.mixture)
    parts = (slice(start, start + HELD) for start in range(0, len(keys), HELD))
    blocks = ((keys[part], counts.counts[part]) for part in parts)
    save_blocks(path, counts.n_codes, len(keys), blocks, metadata)


def save_blocks(
    path: Path, n_codes: int, size: int, blocks: Iterable[Block], metadata: Mapping[str, str]
) -> np.ndarray:
    """Write counts that arrive as blocks of sorted unique keys, atomically.

    Args:
        path: the file.
        n_codes: K.
        size: number of keys in all blocks.
        blocks: only one is held in memory.
        metadata: see `save_counts`.

    Returns:
        The number of keys of each mixture code, [K].
    """
    metadata = {"kind": KIND, "n_codes": str(n_codes), **metadata}
    shapes = {"first": (torch.int32, [size]), "second": (torch.int32, [size])}
    shapes |= {"counts": (torch.int64, [size]), "offsets": (torch.int64, [n_codes + 1])}
    per_code = np.zeros(n_codes, np.int64)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        writer, at = TensorWriter(file, shapes, metadata), 0
        for keys, counts in blocks:
            mixture, first, second = _codes_of(n_codes, keys)
            per_code += np.bincount(mixture, minlength=n_codes)
            writer.write("first", first.astype("<i4").data, at)
            writer.write("second", second.astype("<i4").data, at)
            writer.write("counts", counts.astype("<i8").data, at)
            at += len(keys)
        writer.write("offsets", np.concatenate([[0], np.cumsum(per_code)]).astype("<i8").data)
        if at != size:
            raise RuntimeError(f"{at} keys were written, {size} were announced")
    return per_code


def load_counts(
    path: Path, codec_fingerprint: str | None = None, sources: Sequence[str] | None = None
) -> tuple[Counts, dict[str, str]]:
    """Read a table of counts and its metadata.

    Args:
        path: written by `save_counts`.
        codec_fingerprint: of the codec to use the counts with; None accepts any.
        sources: names of the first and the second source; a file with the other order is swapped.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another kind, or belongs to another codec or other sources.
    """
    file = CountsFile(path, codec_fingerprint)
    counts, metadata = file.load(), file.metadata
    stored = tuple(metadata.get("sources", "").split())
    if sources is not None and stored and stored != tuple(sources):
        if stored != tuple(reversed(sources)):
            raise ValueError(
                f"{path} counts {' and '.join(stored)}, expected {' and '.join(sources)}"
            )
        counts = swap(counts)
        metadata["sources"] = " ".join(sources)
    return counts, metadata


def sources_of(path: Path) -> tuple[str, ...]:
    """The sources that a table's pairs are made of, such as bass, drums and other.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or of another kind.
    """
    return tuple(CountsFile(path).metadata.get("sources", "").replace("+", " ").split())


class CountsFile:
    """An open file of counts: a `Run` that is read in parts."""

    def __init__(self, path: Path, codec_fingerprint: str | None = None):
        """Open and check a file; arguments and errors as in `load_counts`."""
        self.path = Path(path)
        self._file, self.metadata = open_table(path, KIND, codec_fingerprint, "numpy")
        with readable(path, KIND):
            self.n_codes = int(self.metadata["n_codes"])
            self.iterations = int(self.metadata.get("iterations", 0))
            require("n_codes", self.n_codes, whole=True, at_least=1, at_most=MOST_CODES)
            require("iterations", self.iterations, whole=True, at_least=0)
            parts = [
                self._file.get_slice(name) for name in ("first", "second", "counts", "offsets")
            ]
            sizes = {part.get_shape()[0] for part in parts[:3]}
            if not {part.get_dtype() for part in parts} <= {"I8", "I16", "U16", "I32", "I64"}:
                raise ValueError("it does not hold integers")
            self._offsets = self._file.get_tensor("offsets").astype(np.int64)
            if self._offsets.shape != (self.n_codes + 1,):
                raise ValueError(f"offsets are {self._offsets.shape}, expected [K + 1]")
            if self._offsets[0] != 0 or (np.diff(self._offsets) < 0).any():
                raise ValueError("its offsets decrease")
            if sizes != {int(self._offsets[-1])}:
                raise ValueError("its sizes disagree")

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
                raise ValueError(f"{self.path} is damaged: its triples are not in order")
            last = keys[-1]
        codes = np.arange(self.n_codes, dtype=np.int32)
        mixture = np.repeat(codes, np.diff(self._offsets))
        first, second = first.astype(np.int32), second.astype(np.int32)
        counts = counts.astype(np.int64)
        return Counts(self.n_codes, first, second, mixture, counts, self._offsets)

    def read(self, start: int, stop: int) -> Block:
        """Keys and counts `start` to `stop`.

        Raises:
            ValueError: a code or a count is out of range.
        """
        stop = min(stop, len(self))
        if start >= stop:  # which safetensors refuses to slice
            return np.empty(0, np.int64), np.empty(0, np.int64)
        with utf8_name(self.path) as name:
            file = safe_open(name, "numpy")  # an open file keeps the parts that were read
        first, second, counts = (
            file.get_slice(name)[start:stop] for name in ("first", "second", "counts")
        )
        return self._keys(start, first, second, counts), counts.astype(np.int64)

    def _keys(
        self, start: int, first: np.ndarray, second: np.ndarray, counts: np.ndarray
    ) -> np.ndarray:
        """Check the entries from `start` on and return their keys."""
        places = np.arange(start, start + len(first))
        mixture = np.searchsorted(self._offsets, places, side="right") - 1
        if not 1 <= counts.min() <= counts.max() <= MOST_COUNTS:
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
        files: partial counts, with different random seeds or of different songs.
        output: file to write; an existing file is replaced if `files` include its draws.

    Returns:
        The total number of triples.

    Raises:
        FileNotFoundError: A file is missing.
        FileExistsError: The output exists and is not a table of counts.
        ValueError: A file is damaged, the files do not belong together, two hold the same draws, or
            the output is one of them or holds other draws.
    """
    runs, draws = mergeable(files, output)
    size = triples = 0
    for keys, counts in merged(runs):
        size, triples = size + len(keys), triples + int(counts.sum())
    metadata = runs[0].metadata | {
        "iterations": str(sum(run.iterations for run in runs)),
        "counting": " + ".join(draw for draw in draws if draw),
    }
    save_blocks(output, runs[0].n_codes, size, merged(runs), metadata)
    return triples


def mergeable(files: Sequence[Path], output: Path) -> tuple[list[CountsFile], list[str]]:
    """Check files before they are merged; raises as `merge_counts`.

    Returns:
        The open files, and the draws that they hold.
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
            f"two of the files to merge hold the same draws ({repeated}): count each part with "
            "its own random seed"
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
    return runs, draws
