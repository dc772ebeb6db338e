"""The folder of what is made once and kept for a user, also where it has no place."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

_NAME = "jukebox_core"
_made: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def cache_folder() -> Path:
    """Our folder in the user's cache: in XDG_CACHE_HOME, by default ~/.cache.

    A user without a home, or with one that cannot be written, gets a temporary cache, which this
    process and those that it starts use: numba, and librosa with it, ask XDG_CACHE_HOME too and
    fail without such a folder.
    """
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _NAME
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    # Windows removes no library that is loaded.
    _made.append(tempfile.TemporaryDirectory(prefix=f"{_NAME}-", ignore_cleanup_errors=True))
    os.environ["XDG_CACHE_HOME"] = _made[-1].name
    return Path(_made[-1].name) / _NAME
