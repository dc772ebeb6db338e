"""Keep finished work on disk and reuse it if nothing that it depends on has changed.

A result is a JSON object in a file. Its key is a digest of everything that it depends on: the
settings and inputs that the caller names, the version of PyTorch, and the source code of the
packages that it uses. Comments, docstrings and layout of the code do not count.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from jukebox_core.files import check_replaceable, json_with, write_json

is_kept = json_with("key", "result")
"""For `files.check_replaceable`: whether `kept` wrote a file."""


def key_of(identity: Mapping[str, Any], *users: type) -> str:
    """A digest of an identity (values as JSON), of the code and of the version of PyTorch.

    Args:
        identity: everything else that the result depends on.
        users: classes whose packages the result also depends on.
    """
    packages = sorted({"jukebox_core", *(user.__module__.partition(".")[0] for user in users)})
    code = [code_digest(package) for package in packages]
    everything = {"identity": identity, "code": code, "torch": torch.__version__}
    text = json.dumps(everything, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_kept(path: Path, key: str) -> Any | None:
    """The result in a file; None if there is none, or it has another key."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["result"] if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def kept(path: Path, key: str, make: Callable[[], Any]) -> Any:
    """The result in a file if it has this key; otherwise make it and write it there.

    Args:
        path: of the file.
        key: from `key_of`.
        make: returns the result, anything that JSON can hold.

    Raises:
        FileExistsError: the file holds something else than a result.
        OSError: the file cannot be written.
    """
    result = read_kept(path, key)
    if result is None:
        check_replaceable(path, is_kept, "a kept result")
        result = json.loads(json.dumps(make()))
        write_json(path, {"key": key, "result": result})
    return result


@functools.cache
def code_digest(package: str, root: Path | None = None) -> str:
    """A digest of all source code of a package or module, which is imported, or lies in `root`."""
    if root:
        place = root / package
    else:
        module = sys.modules[package]
        place = Path([*getattr(module, "__path__", ()), str(module.__file__)][0])
    digest = hashlib.sha256()
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if file.suffix in (".py", ".c"):
            text = file.read_text(encoding="utf-8")
            digest.update(f"{file.relative_to(place).as_posix()}\n".encode())
            digest.update((_bare(text) if file.suffix == ".py" else text).encode())
    return digest.hexdigest()


def _bare(text: str) -> str:
    """Python source without comments, layout and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body: Any = getattr(node, "body", None)
        for line in list(body) if isinstance(body, list) else ():
            if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
                body.remove(line)
    return ast.dump(tree)
