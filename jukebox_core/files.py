"""Write files so that a reader never sees an incomplete one and no file of the user is lost.

Files and folders appear whole or not at all. Only regular files are replaced, and only folders
whose every file a former run recorded. Before a program writes a file, `check_replaceable` makes
sure that an existing file there is its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from jukebox_core.checks import one_line


def _host() -> str:
    """Hash of the scope of process ids: the machine and, in a container, its namespace of ids."""
    namespace = ""
    with suppress(OSError):  # only Linux has it
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


_HOST = _host()
# Groups: process id, host; the first versions left the host out.
_TEMPORARY = re.compile(r"\..*\.(\d+)-([0-9a-f]{8})?[0-9a-f]{8}\.tmp(\.[^.]*)?", re.DOTALL)
_SCATTERED = {".DS_Store", "Thumbs.db", "desktop.ini"}  # file managers put these in any folder
_HEAD = 4096  # `marked` looks for its mark in so many bytes at the beginning of a file
_cleaned: set[Path] = set()  # folders whose leftovers this process has removed


def _temporary_beside(path: Path) -> Path:
    """A temporary name in the same folder (a rename is atomic only there), with the same suffix.

    It contains the id of the writing process, and is short even if `path` has a long name.
    """
    suffix = path.suffix if len(path.suffix) <= 16 else ""
    owner = f"{os.getpid()}-{_HOST}{secrets.token_hex(4)}"
    return path.with_name(f".{path.stem[:32]}.{owner}.tmp{suffix}")


def is_temporary(name: str) -> bool:
    """Whether a file name is one that `atomic_path` writes to."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files and folders of killed processes of this host from `folder`.

    Each process cleans a folder only once, without its subfolders.
    """
    folder = Path(folder)
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            match = _TEMPORARY.fullmatch(entry.name)
            if not match or match[2] != _HOST or _is_running(int(match[1])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether a process can still write: not one that ended but was never waited for."""
    try:
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return True


def _target(path: str | Path) -> Path:
    """The real path of `path`: a link stays, and the file it points to is replaced.

    Makes the folder and removes the temporary files of killed processes from it.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    return path


def _check_regular(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a folder" if path.is_dir() else "a device, pipe or socket"
            raise FileExistsError(f"cannot write {path}: it is {what}, expected a regular file")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` when the block ends without error.

    The folder is made where it is missing. After an error (or Ctrl-C) `path` is as it was.

    Raises:
        FileExistsError: `path` is a folder, device, pipe or socket.
        OSError: It cannot be written; the error names `path`.
    """
    path = _target(path)
    _check_regular(path)
    temporary = _temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        # A write error (such as a full disk) has no file name, or the name of the temporary file.
        if error.errno is None or str(error.filename) not in ("None", str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def durable_path(path: str | Path) -> Iterator[Path]:
    """`atomic_path`, and the bytes reach the disk before the name points to them.

    Raises:
        OSError: The file could not be written; torch reports a full disk as a RuntimeError.
    """
    with atomic_path(path) as temporary:
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            reason = one_line(error)[:200]
            raise OSError(f"{path} could not be written ({reason}): is the disk full?") from error


def check_writable(path: str | Path) -> None:
    """Refuse an output path in a folder that cannot be made or written to.

    Raises:
        OSError: A part of the path is a file, or the folder cannot be written to.
    """
    _check_regular(Path(path))
    folder = Path(os.path.realpath(path)).parent
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):  # also fails on a read-only file system
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def check_replaceable(path: str | Path, ours: Callable[[Path], bool], what: str) -> None:
    """Refuse an output path that cannot be written, or that holds a file that is not ours.

    Args:
        path: of a file to write. It may be missing or empty.
        ours: returns whether a former run wrote a file, judged by its content. A ValueError,
            KeyError, TypeError, AttributeError or RecursionError counts as False.
        what: the kind of file that this program writes, such as "a report".

    Raises:
        FileExistsError: The file holds something else, or is not a regular file.
        OSError: As `check_writable`.
    """
    path = Path(path)
    check_writable(path)
    if not path.exists() or path.stat().st_size == 0:
        return
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if ours(path):
            return
    raise FileExistsError(
        f"{path} exists and is not {what} that this program wrote: choose another output, or "
        "delete the file"
    )


def json_with(*keys: str) -> Callable[[Path], bool]:
    """For `check_replaceable`: whether a file is a JSON object with these keys.

    A dot separates nested keys: `rows.0.name` is the key `name` of the first element of `rows`.
    """

    def ours(path: Path) -> bool:
        with open(path, "rb") as file:
            if not file.read(64).lstrip().startswith(b"{"):
                return False  # do not read gigabytes of another format
        content = json.loads(path.read_text(encoding="utf-8"))
        try:
            for key in keys:
                value = content
                for name in key.split("."):
                    value = value[int(name) if isinstance(value, list) else name]
        except (LookupError, TypeError, ValueError):
            return False
        return True

    return ours


def marked(start: str | bytes, *marks: str | bytes) -> Callable[[Path], bool]:
    """For `check_replaceable`: whether a file begins with `start` and has a mark near it."""
    first, *others = (x.encode() if isinstance(x, str) else x for x in (start, *marks))

    def ours(path: Path) -> bool:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        return head.startswith(first) and any(mark in head for mark in others)

    return ours


@contextmanager
def atomic_folder(
    path: str | Path, owned: Mapping[str, str | None] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder to fill; it becomes `path` when the block ends without error.

    Args:
        path: of the folder. A link to a folder stays, and the folder it points to is replaced.
        owned: see `check_owned`.

    Raises:
        FileExistsError: As `check_owned`: at the start, or at the end if another program put
            something there meanwhile.
    """
    path = _target(path)
    check_owned(path, owned)
    temporary, before = _temporary_beside(path), _temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        check_owned(path, owned)
        if path.exists():
            os.replace(path, before)  # a folder cannot be renamed onto one that is not empty
        os.replace(temporary, path)
    finally:
        if before.exists() and not path.exists():
            os.replace(before, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def check_owned(path: str | Path, owned: Mapping[str, str | None] | None = None) -> None:
    """Refuse to replace a folder that holds anything else than the files of a former run.

    Args:
        path: of the folder. It may be missing or empty.
        owned: {file relative to the folder: recorded SHA-256}; None allows any content.

    Raises:
        FileExistsError: `path` is not a folder, or holds something that is not in `owned`.
    """
    path, owned = Path(path), owned or {}
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file, expected a folder or nothing there")
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.name in _SCATTERED or (file.is_dir() and not file.is_symlink()):
            continue
        if name not in owned or file.is_symlink() or not file.is_file():
            reason = f"holds {name}, which no former run recorded"
        elif owned[name] is not None and owned[name] != sha256(file):
            reason = f"{name} was changed since it was written"
        else:
            continue
        raise FileExistsError(
            f"{path} would be replaced, but {reason}: choose another output, or move the file"
        )


def remove_owned(path: str | Path, owned: Mapping[str, str | None]) -> bool:
    """Remove a folder if `check_owned` accepts it; return whether it is gone."""
    try:
        check_owned(path, owned)
    except FileExistsError:
        return False
    shutil.rmtree(path, ignore_errors=True)
    return not os.path.lexists(path)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinities are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, default=_jsonable) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; names of files that UTF-8 lacks get escapes."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _jsonable(value: Any) -> Any:
    """Paths as strings; NumPy and torch scalars and small arrays as lists of numbers."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def data_uri(content: bytes, kind: str) -> str:
    """Return bytes of a media type as a URI that a page can hold."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
