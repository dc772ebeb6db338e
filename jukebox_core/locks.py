"""Let one process at a time write an output.

The operating system holds the lock and releases it however the process ends. The empty file that it
is held on disappears at the end; one that a killed process left behind is taken over.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = ".lock"
_ATTEMPTS = 1000
_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # EACCES, EDEADLK: Windows


@contextmanager
def sole_writer(output: str | Path, *, inside: bool = False) -> Iterator[None]:
    """Keep other processes that ask for the same output out of the block.

    Where the file system has no locks, it warns on stderr, and the block runs.

    Args:
        output: a file, or a folder; it may be missing.
        inside: put the lock into the folder `output`, which is made where it is missing and removed
            again if the block leaves it empty; otherwise beside `output`.

    Raises:
        BlockingIOError: another process, or thread, is in such a block.
        FileExistsError: a file that is not empty has the name of the lock.
        OSError: the folder cannot be made or written to.
    """
    output = Path(os.path.realpath(output))
    file = output / _NAME if inside else output.with_name(_name_beside(output.name))
    missing = [folder for folder in file.parents if not os.path.lexists(folder)]
    descriptor = None
    try:
        for _ in range(_ATTEMPTS):
            descriptor = _locked(file, output)
            if descriptor is not None:
                break
        else:  # such as in /proc
            raise OSError(errno.ENOENT, "no file can be made in the folder", str(file.parent))
        try:
            yield
        finally:
            _release(descriptor, file)
    finally:
        for folder in missing:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _name_beside(name: str) -> str:
    if len(os.fsencode(name)) > 200:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}{_NAME}"


def _locked(file: Path, output: Path) -> int | None:
    """Open and lock the file; None if its last owner removed it, or its folder, meanwhile."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:
        return None
    except FileExistsError:
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.stat(file.parent).st_mode):
                raise
        return None
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except FileNotFoundError:
        return None
    except OSError as error:
        named = file if os.path.lexists(file) else file.parent
        raise OSError(error.errno, error.strerror, str(named)) from None
    try:
        _lock(descriptor, output)
        if os.fstat(descriptor).st_size:
            raise FileExistsError(f"{file} is in the place of a lock: move it away")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _lock(descriptor: int, output: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise BlockingIOError(
                f"another process is writing {output}: wait until it ends, or choose another output"
            ) from None
        reason = error.strerror or error
        print(
            f"warning: {output} cannot be locked ({reason}): let no other process write it",
            file=sys.stderr,
            flush=True,
        )


def _release(descriptor: int, file: Path) -> None:
    """Remove the file and the lock; Windows removes no open file."""
    if sys.platform == "win32":
        os.close(descriptor)
    with suppress(OSError):  # of the next owner, on Windows
        file.unlink()
    if sys.platform != "win32":
        os.close(descriptor)
