"""Digests of what programs write, without times and dates."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jukebox_core.training.trainer import TIMINGS

_TIMES = {*TIMINGS, "seconds", "seconds_per_chunk", "elapsed", "date", "machine", "git_commit"}


def digests(folder: Path) -> dict[str, str]:
    """{file or folder: digest of its content without times}; without the logs."""
    return {
        name: hashlib.sha256(timeless(path)).hexdigest() if path.is_file() else "a folder"
        for path in sorted(folder.rglob("*"))
        if not (name := path.relative_to(folder).as_posix()).startswith("logs/")
    }


def timeless(path: Path) -> bytes:
    """A file's content without times and dates."""
    if path.suffix == ".json":
        content = _without_times(json.loads(path.read_text(encoding="utf-8")))
        return json.dumps(content, sort_keys=True).encode()  # stages end in any order
    if path.name == "metrics.csv":
        rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
        return repr([row for row in rows if not set(TIMINGS) & set(row)]).encode()
    if path.suffix == ".pt":
        state = torch.load(path, map_location="cpu", weights_only=True)
        return _bytes_of(_without_times(state))
    if path.suffix == ".html":
        text = re.sub("Commit: <code>.*?</code>", "", path.read_text(encoding="utf-8"))
        return re.sub(r"\d+(\.\d+)?", "0", text).encode()
    return path.read_bytes()


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """`missing: FILE`, `new: FILE` or `different: FILE` for every file of two that differs."""
    lines = []
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            state = "missing" if name not in found else "different" if name in expected else "new"
            lines.append(f"{state}: {name}")
    return lines


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list | tuple) else value


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} ".encode() + raw
    if isinstance(value, dict):
        return b"".join(str(k).encode() + b":" + _bytes_of(v) for k, v in value.items())
    if isinstance(value, list):
        return b"[" + b",".join(map(_bytes_of, value)) + b"]"
    return repr(value).encode()
