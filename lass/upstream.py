"""Convert LASS's counts to the upstream file format, and back.

Upstream counts every triple in both orders of the sources, and so are our counts, of one order,
exported. Further arrays `native_*`, which upstream programs ignore, make the round trip exact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from jukebox_core.arrays import read_arrays
from jukebox_core.checks import one_line
from jukebox_core.upstream.tables import MOST_COUNTS, CountTable, read_counts, write_counts
from lass.counts import Counts, from_keys, swap, symmetrise, to_keys

_PARTS = ("first", "second", "mixture", "counts")
_NATIVE = [f"native_{name}" for name in (*_PARTS, "metadata")]


def read_upstream_counts(path: str | Path) -> tuple[Counts, dict[str, str]]:
    """Read `sum_dist_N.npz`: counts, and their metadata if `write_upstream_counts` wrote them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a table of counts.
    """
    table = read_counts(path)
    arrays = read_arrays(path, "counts", _NATIVE)
    try:
        if (native := _native_part(arrays, table.n_codes)) is not None:
            return native
    except Exception as error:  # NumPy and json each have their own
        raise ValueError(f"{path} has damaged arrays native_* ({one_line(error)})") from error
    keys = to_keys(table.n_codes, *table.coords.numpy())
    order = keys.argsort(kind="stable")
    if np.any(np.diff(keys[order]) == 0):
        raise ValueError(f"{path} counts a triple twice; expected every triple once")
    return from_keys(table.n_codes, keys[order], table.counts.numpy()[order]), {}


def _native_part(
    native: Mapping[str, np.ndarray], n_codes: int
) -> tuple[Counts, dict[str, str]] | None:
    """The counts and metadata in `native_*`; None if there are none."""
    if "native_metadata" not in native:
        return None
    if missing := [name for name in _NATIVE if name not in native]:
        raise ValueError(f"{missing[0]} is missing")
    arrays = [native[f"native_{name}"] for name in _PARTS]
    metadata = json.loads(str(native["native_metadata"]))
    if any(array.dtype.kind not in "iu" or array.ndim != 1 for array in arrays):
        raise ValueError("expected vectors of integers")
    *codes, counts = arrays
    keys = to_keys(n_codes, *codes)
    if counts.shape != keys.shape or not _positive(counts) or (np.diff(keys) <= 0).any():
        raise ValueError("expected a positive count of every triple, once and in order")
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("expected metadata of texts")
    return from_keys(n_codes, keys, counts), metadata


def _positive(counts: np.ndarray) -> bool:
    return not counts.size or 1 <= counts.min() <= counts.max() <= MOST_COUNTS


def write_upstream_counts(
    path: str | Path, counts: Counts, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `sum_dist_N.npz`, every triple in both orders of the sources."""
    swapped = swap(counts)
    symmetric = all(np.array_equal(x, y) for x, y in zip(counts[1:], swapped[1:], strict=True))
    both = counts if symmetric else symmetrise(counts)
    coords = np.stack([both.first, both.second, both.mixture]).astype(np.int64)
    table = CountTable(torch.from_numpy(coords), torch.from_numpy(both.counts), counts.n_codes)
    extra = {}
    if not symmetric or metadata:
        extra = {f"native_{name}": getattr(counts, name) for name in _PARTS}
        extra["native_metadata"] = np.array(json.dumps(dict(metadata or {})))
    write_counts(path, table, extra)
