"""Unreadable files of a data set: each is reported once, and too many are an error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from jukebox_core.checks import one_line

LIMIT = 0.1
"""Largest share of songs with unreadable files."""
NAMED = 10
"""Number of files that the error names; the warnings name all."""


class BadFiles:
    """The unreadable files of a data set so far.

    Each DataLoader worker keeps its own record; the main process merges it with
    `learn(worker.files)`.
    """

    def __init__(self, songs: int):
        """Start without bad files.

        Args:
            songs: number of songs in the data set.
        """
        self._songs = songs
        self._reported: set[str] = set()
        self.files: dict[str, tuple[str, str]] = {}
        """{path: (song, reason)}."""

    def add(self, song: str, path: Path, error: Exception) -> None:
        """Record a file; only its first error counts."""
        reason = one_line(error)
        reason = reason if str(path) in reason else f"{path}: {reason}"
        self.files.setdefault(str(path), (song, reason))

    def learn(self, files: Mapping[str, tuple[str, str]]) -> None:
        """Merge the record of another process."""
        for path, song_and_reason in files.items():
            self.files.setdefault(path, song_and_reason)

    def news(self) -> list[str]:
        """A warning for every file that has not been reported yet."""
        fresh = [path for path in self.files if path not in self._reported]
        self._reported.update(fresh)
        return [f"skipped an unreadable file: {self.files[path][1]}" for path in fresh]

    def check(self) -> None:
        """Refuse a data set with too many bad files.

        Raises:
            ValueError: more than a tenth of the songs have an unreadable file.
        """
        songs = {song for song, _ in self.files.values()}
        if len(songs) > LIMIT * self._songs:
            raise ValueError(
                f"{len(songs)} of {self._songs} songs cannot be read, more than a tenth: "
                f"{self.names()}; restore the files or prepare the data again"
            )

    def names(self) -> str:
        """The first few files with their errors."""
        reasons = [reason for _, reason in self.files.values()]
        more = f" and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
        return "; ".join(reasons[:NAMED]) + more


def warn_on_stderr(message: str) -> None:
    """Print one line, beside a progress bar if there is one."""
    tqdm.write(f"warning: {message}", file=sys.stderr)
