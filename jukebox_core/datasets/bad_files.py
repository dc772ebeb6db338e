"""Songs of a data set that cannot be read: named once, passed over, and never more than a tenth."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from jukebox_core.checks import one_line

__all__ = ["LIMIT", "Unreadable", "warn_on_stderr"]

LIMIT = 0.1
"""More than so large a share of the songs ends the run."""
NAMED = 10
"""So many files stand in the error's message; the warnings name them all."""


class Unreadable:
    """What could not be read so far.

    Processes that load data for another have one each: `files` of theirs goes into `learn` of its.
    """

    def __init__(self, songs: int):
        """Nothing yet, of so many songs."""
        self._songs = songs
        self._told: set[str] = set()
        self.files: dict[str, tuple[str, str]] = {}
        """{path: (song, what is wrong with it)}."""

    def add(self, song: str, path: Path, error: Exception) -> None:
        """Note a file; only its first error counts."""
        reason = one_line(error)
        reason = reason if str(path) in reason else f"{path}: {reason}"
        self.files.setdefault(str(path), (song, reason))

    def learn(self, files: Mapping[str, tuple[str, str]]) -> None:
        """Note what another process has found."""
        for path, found in files.items():
            self.files.setdefault(path, found)

    def news(self) -> list[str]:
        """A warning for every file that was not told before."""
        fresh = [path for path in self.files if path not in self._told]
        self._told.update(fresh)
        return [f"passed over what cannot be read: {self.files[path][1]}" for path in fresh]

    def check(self) -> None:
        """Give up where it is too much.

        Raises:
            ValueError: more than a tenth of the songs have a file that cannot be read.
        """
        songs = {song for song, _ in self.files.values()}
        if len(songs) > LIMIT * self._songs:
            raise ValueError(
                f"{len(songs)} of {self._songs} songs cannot be read, more than a tenth: "
                f"{self.names()}; restore the files or prepare the data again"
            )

    def names(self) -> str:
        """The files and what is wrong with them, the first few."""
        reasons = [reason for _, reason in self.files.values()]
        more = f" and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
        return "; ".join(reasons[:NAMED]) + more


def warn_on_stderr(message: str) -> None:
    """One line, beside a progress bar if there is one."""
    tqdm.write(f"warning: {message}", file=sys.stderr)
