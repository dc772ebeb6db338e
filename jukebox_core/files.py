"""Writing files so that a reader never meets half of one and nothing of the user's is lost.

Files and folders appear whole or not at all. Only a regular file is replaced, and only a folder
whose every file a former run is recorded to have written. Programs that write a file first ask
`check_replaceable` whether what lies there is their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = [
    "atomic_folder",
    "atomic_path",
    "check_owned",
    "check_replaceable",
    "json_with",
    "remove_leftovers",
    "remove_owned",
    "sha256",
    "table_of",
    "write_json",
    "write_table",
    "write_text",
]

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\..*\.(\d+)-([0-9a-f]{8})[0-9a-f]{8}\.tmp(\.[^.]*)?", re.DOTALL)
_SCATTERED = {".DS_Store", "Thumbs.db", "desktop.ini"}  # by file managers, in any folder
_cleaned: set[Path] = set()  # folders whose leftovers this process has removed


def _temporary_beside(path: Path) -> Path:
    """A name in the same folder (a rename is atomic only there) with the same suffix.

    It says which process writes it, and is short enough beside a name of any length.
    """
    suffix = path.suffix if len(path.suffix) <= 16 else ""
    owner = f"{os.getpid()}-{_HOST}{secrets.token_hex(4)}"
    return path.with_name(f".{path.stem[:32]}.{owner}.tmp{suffix}")


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files and folders of killed processes of this host from `folder`.

    Looks at each folder once per process, and not into the folders inside it.
    """
    folder = Path(folder)
    if folder in _cleaned or os.name == "nt":  # where no signal asks whether a process lives
        return
    _cleaned.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            match = _TEMPORARY.fullmatch(entry.name)
            if not match or match[2] != _HOST or _lives(int(match[1])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's, or no such number can be
        return True
    return True


def _target(path: str | Path) -> Path:
    """Where `path` leads: a link stays, and what it points to is replaced.

    The folder it lies in is made, and cleared of the temporary files of killed processes.
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
    """
    path = _target(path)
    _check_regular(path)
    temporary = _temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_replaceable(path: str | Path, ours: Callable[[Path], bool], what: str) -> None:
    """Refuse an output path where something lies that a run of ours did not write.

    Args:
        path: of a file to write. A missing and an empty file may be written.
        ours: tells from the content whether a former run wrote a file; its ValueError, KeyError,
            TypeError or AttributeError means no.
        what: the kind of file that may be replaced, such as "a report".

    Raises:
        FileExistsError: The file holds something else, or is no regular file.
    """
    path = Path(path)
    _check_regular(path)
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
    """For `check_replaceable`: whether a file is a JSON object with these keys."""

    def ours(path: Path) -> bool:
        content = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(content, dict) and set(keys) <= content.keys()

    return ours


def table_of(kind: str) -> Callable[[Path], bool]:
    """For `check_replaceable`: whether a file is a safetensors table of this kind."""

    def ours(path: Path) -> bool:
        try:
            with safe_open(path, "pt") as file:
                return (file.metadata() or {}).get("kind") == kind
        except SafetensorError:
            return False

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
        FileExistsError: As `check_owned`, before anything is written, or at the end where
            something was put there meanwhile.
    """
    path = _target(path)
    check_owned(path, owned)
    temporary, before = _temporary_beside(path), _temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        check_owned(path, owned)
        if path.exists():
            os.replace(path, before)  # a folder cannot be renamed over one with files in it
        os.replace(temporary, path)
    finally:
        if before.exists() and not path.exists():
            os.replace(before, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def check_owned(path: str | Path, owned: Mapping[str, str | None] | None = None) -> None:
    """Refuse to replace a folder that holds what no former run is recorded to have written.

    Args:
        path: of the folder. A missing and an empty one may be written.
        owned: {file, relative to the folder: its SHA-256} as recorded; None stands for any content.

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
            raise FileExistsError(
                f"{path} would be replaced, but holds {name}, which no former run wrote: "
                "choose another output, or move the file"
            )
        if owned[name] is not None and owned[name] != sha256(file):
            raise FileExistsError(
                f"{path} would be replaced, but {name} was changed since it was written: "
                "choose another output, or move the file"
            )


def remove_owned(path: str | Path, owned: Mapping[str, str | None]) -> bool:
    """Remove a folder if it holds nothing but what `check_owned` lets pass; whether it is gone."""
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
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write tensors and what they are as safetensors, atomically; equal content gives equal bytes.

    safetensors itself writes several entries of metadata in an order that differs from run to run.
    """
    data = save({name: x.contiguous() for name, x in tensors.items()}, dict(about))
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(about.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(data)[8 + size :])


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
