"""Read `torch.save` files without running their pickles; read and write upstream's tables.

Counts are `sum_dist_N.npz` as `sparse` 0.13 writes a `[K, K, K]` array; code sums are
`codebook_sum_precalc.pt`, an int64 tensor `[1, K * K]`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jukebox_core.arrays import read_arrays
from jukebox_core.config import MOST_CODES
from jukebox_core.files import atomic_path, check_writable, durable_path
from jukebox_core.tables import utf8_name

_SCALAR = np.float64(0).__reduce__()[0]  # NumPy's scalar constructor; its module's name varies
_ALLOWED: list[Any] = [
    np.dtype,
    *{type(np.dtype(t)) for t in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u8", "?", "U1")},
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]


MOST_COUNTS = 1 << 53
"""Largest count of a triple, which float64 holds exactly."""


class CountTable(NamedTuple):
    """coords: int64 [3, P], rows (first source, second source, mixture). counts: int64 [P]."""

    coords: Tensor
    counts: Tensor
    n_codes: int


def read_torch(path: Path) -> Any:
    """Read the data of a `torch.save` file; tensors stay on the disk if the format allows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its pickle asks for more than plain data.
    """
    path = _existing(path)
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        with torch.serialization.safe_globals(_ALLOWED), utf8_name(path) as name:
            return torch.load(name, map_location="cpu", weights_only=True, mmap=zipped)
    except UnpicklingError as error:
        request = re.search(r"GLOBAL (\S+)", str(error))
        if request:
            raise ValueError(
                f"{path} was refused: its pickle asks for {request[1]}; only tensors, containers "
                "and numbers are read"
            ) from None
        raise ValueError(f"{path} is damaged, or holds more than plain data") from None
    except Exception as error:  # many types, depending on where the damage is
        raise ValueError(f"{path} is damaged, truncated or not a torch file") from error


def read_counts(path: str | Path) -> CountTable:
    """Read `sum_dist_N.npz` (the layout of `sparse` 0.13).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds pickled objects, or is not a table of counts.
    """
    path = _existing(path)
    names = ("data", "coords", "shape", "fill_value")
    parts = read_arrays(path, "counts", names)
    if missing := [name for name in names if name not in parts]:
        raise ValueError(
            f"{path} is not a counts file: it lacks {', '.join(missing)}, expected the arrays "
            f"{', '.join(names)}"
        )
    coords, counts, shape = parts["coords"], parts["data"], parts["shape"].tolist()
    if len(shape) != 3 or len(set(shape)) != 1 or coords.shape != (3, counts.size):
        raise ValueError(
            f"{path} has shape {shape} and coords {coords.shape} for {counts.shape} counts, "
            "expected [K, K, K], (3, P) and (P,)"
        )
    if not isinstance(shape[0], int) or not 1 <= shape[0] <= MOST_CODES:
        raise ValueError(f"{path} has {shape[0]} codes, expected 1 to {MOST_CODES:,}")
    if coords.dtype.kind not in "iu" or counts.dtype.kind not in "iu" or parts["fill_value"] != 0:
        raise ValueError(f"{path} holds {counts.dtype} counts, expected integers that default to 0")
    if counts.size and (coords.min() < 0 or coords.max() >= shape[0] or counts.min() < 1):
        raise ValueError(f"{path} has codes outside 0..{shape[0] - 1} or counts under 1")
    if counts.size and counts.max() > MOST_COUNTS:
        raise ValueError(f"{path} has a count of {counts.max()}, expected at most 2^53")
    return CountTable(
        torch.from_numpy(coords.astype(np.int64)),
        torch.from_numpy(counts.astype(np.int64)),
        int(shape[0]),
    )


def write_counts(
    path: str | Path, table: CountTable, extra: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write `sum_dist_N.npz`, entries in ascending order of (first, second, mixture).

    Args:
        path: of the file; an existing file is replaced.
        table: the counts.
        extra: further arrays, which upstream programs ignore.

    Raises:
        OSError: it cannot be written.
    """
    coords, counts = table.coords.cpu().numpy(), table.counts.cpu().numpy()
    order = np.lexsort(coords[::-1])
    arrays: dict[str, Any] = {
        "data": counts[order],
        "shape": np.full(3, table.n_codes, dtype=np.int64),
        "fill_value": np.array(0, dtype=np.int64),
        "coords": coords[:, order],
        **(extra or {}),
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_sums(path: str | Path) -> Tensor:
    """Read `codebook_sum_precalc.pt`: the code of every pair's mean, int64 [K, K], row-major.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, asks for more than data, or is not [1, K * K].
    """
    path = Path(path)
    table = read_torch(path)
    if not isinstance(table, Tensor) or table.dtype != torch.int64:
        kind = table.dtype if isinstance(table, Tensor) else type(table).__name__
        raise ValueError(f"{path} holds {kind}, expected an int64 tensor of code sums")
    n_codes = round(table.numel() ** 0.5)
    if table.shape != (1, n_codes**2) or n_codes == 0:
        raise ValueError(f"{path} is {tuple(table.shape)}, expected (1, K * K)")
    if not 0 <= int(table.min()) <= int(table.max()) < n_codes:
        raise ValueError(f"{path} has codes outside 0..{n_codes - 1}")
    return table.reshape(n_codes, n_codes).clone()


def write_sums(path: str | Path, table: Tensor) -> None:
    """Write `codebook_sum_precalc.pt` from a table [K, K]; an existing file is replaced.

    Raises:
        OSError: it cannot be written.
    """
    with durable_path(path) as temporary:
        torch.save(table.to(torch.int64).reshape(1, -1).contiguous(), temporary)


def check_new(path: str | Path) -> None:
    """Refuse to overwrite anything with a converted model or table.

    Raises:
        ValueError: `path` exists.
        OSError: `path` cannot be written.
    """
    if os.path.exists(path):
        raise ValueError(f"{path} exists; choose another name or remove it first")
    check_writable(path)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path
