"""A disk that is full, as this process sees it."""

from contextlib import contextmanager

import pytest


@contextmanager
def files_up_to(size):
    """No file of this process may grow beyond so many bytes; skips where there is no such limit."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
