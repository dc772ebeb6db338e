"""Read NumPy's .npz files of arrays, without the Python objects that they may hold."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from jukebox_core.checks import one_line


def read_arrays(
    path: str | Path, kind: str, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays of a file, of these names as far as it has them.

    Args:
        path: of the file.
        kind: of file that it should be, such as "counts", for errors.
        names: of the arrays; None: all.

    Raises:
        ValueError: it is damaged, no .npz, or holds Python objects.
        OSError: it cannot be opened.
    """
    with open(path, "rb") as opened:
        if opened.read(2) != b"PK":
            raise ValueError(
                f"{path} is damaged or not a file of {kind}: expected a .npz file, which is a zip "
                "archive; copy or write it again"
            )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if names is None or name in names}
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        if "pickle" in str(error):
            raise ValueError(
                f"{path} holds pickled Python objects, expected only arrays of numbers or text, as "
                f"in a file of {kind}: objects are not read, since they can run code; write the "
                "file again without them"
            ) from None
        raise ValueError(
            f"{path} is damaged or not a file of {kind} ({one_line(error)}): copy or write it again"
        ) from error
