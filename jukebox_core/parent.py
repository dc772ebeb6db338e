"""End this process when the one that started it is gone, so that nothing goes on unseen."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress

import psutil

_SECONDS = 1.0  # between two looks


def end_with_parent() -> None:
    """From now on, the end of the parent process is a SIGTERM to this one, after a message."""
    parent = psutil.Process().parent()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: psutil.Process) -> None:
    while psutil.Process().parent() == parent:
        time.sleep(_SECONDS)
    with suppress(OSError):  # nobody reads
        print(
            f"error: the process that started this one ({parent.pid}) was killed: stopping",
            file=sys.stderr,
            flush=True,
        )
    psutil.Process().terminate()
