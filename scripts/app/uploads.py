"""The folder of uploads: at most so many songs and bytes, and no parts of songs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path


class Uploads:
    """Removes the oldest songs, and what broken-off uploads leave.

    Gradio writes an upload to a file in `folder`, and moves it to a subfolder when it is complete.
    """

    def __init__(
        self,
        folder: Path,
        used: Callable[[], Collection[Path]],
        *,
        songs: int,
        bytes_: float,
        stale: float,
    ):
        """Watch a folder.

        Args:
            folder: of gradio, see `blocks.gradio_folder`; the songs already in it are kept.
            used: returns the songs to keep.
            songs: number of other songs to keep.
            bytes_: of other songs to keep.
            stale: seconds without a change until a part of a song is removed.
        """
        self._folder, self._used = folder, used
        self._examples = set(folder.glob("*/*"))
        self._songs, self._bytes, self._stale = songs, bytes_, stale

    def make_room(self) -> None:
        """Remove what is too much."""
        parts = [path for path in self._folder.glob("*") if _age(path) > self._stale]
        for path in parts:
            with suppress(OSError):  # a folder with songs
                path.rmdir() if path.is_dir() else path.unlink()
        kept = self._examples | set(self._used())
        songs = sorted((p for p in self._folder.glob("*/*") if p not in kept), key=_age)
        size = 0
        for number, path in enumerate(songs, 1):  # the newest first
            with suppress(OSError):
                size += path.stat().st_size
                if number > self._songs or size > self._bytes:
                    path.unlink()


def _age(path: Path) -> float:
    """Return the seconds since a change; of a file that is gone, zero."""
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0
