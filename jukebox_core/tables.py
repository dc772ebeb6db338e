"""Tables: safetensors files whose metadata names their kind and the codec they belong to.

Files are written one tensor, or one part of a tensor, at a time. The library's own writer needs all
tensors in memory and contiguous at once, which doubles the memory of a model's conversion; it also
writes metadata entries in an order that differs from run to run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jukebox_core.checks import one_line, plain
from jukebox_core.files import atomic_path

TYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types of the tensors in all files, by their names in safetensors."""


class TensorWriter:
    """Write a safetensors file whose tensors arrive in parts; equal content gives equal bytes."""

    def __init__(
        self,
        file: BinaryIO,
        tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]],
        metadata: Mapping[str, str] | None = None,
    ):
        """Write the header and reserve the space.

        Args:
            file: opened for writing.
            tensors: {name: (type, shape)}.
            metadata: of the file.
        """
        header: dict[str, Any] = (
            {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
        )
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}  # position in the data, bytes of an element
        end = 0
        # Wide types first, so that every tensor begins at a multiple of its item size.
        for name in sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name)):
            dtype, shape = tensors[name]
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            self._places[name] = begin, dtype.itemsize
            offsets = [begin, end]
            header[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        self._start = file.tell()
        file.truncate(self._start + end)

    def write(self, name: str, data: memoryview, at: int = 0) -> None:
        """Write the bytes of the elements from index `at` on (of the flattened tensor)."""
        begin, width = self._places[name]
        self._file.seek(self._start + begin + at * width)
        self._file.write(data)


def check_types(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of a type that no file of ours has, such as complex or 8-bit floating point.

    Raises:
        ValueError: The message names the first one.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPES:
            known = ", ".join(TYPES.values())
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"tensor {plain(name)} is {kind}, expected one of {known}")


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, on any device and in any memory layout, copying one at a time."""
    with open(path, "wb") as file:
        writer = TensorWriter(
            file, {name: (x.dtype, x.shape) for name, x in tensors.items()}, metadata
        )
        for name, tensor in tensors.items():
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            writer.write(name, data.numpy().data)


def write_table(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """`save_tensors`, atomically; the metadata hold `kind` and `codec` (see `read_table`)."""
    with atomic_path(path) as temporary:
        save_tensors(temporary, tensors, metadata)


@contextmanager
def utf8_name(path: str | Path) -> Iterator[str]:
    """A name in UTF-8 for a file inside the block: safetensors and torch's mmap open no others."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield name


def table_of(kind: str) -> Callable[[Path], bool]:
    """For `check_replaceable`: whether a file is a table of this kind."""

    def ours(path: Path) -> bool:
        try:
            with utf8_name(path) as name, safe_open(name, "pt") as file:
                return (file.metadata() or {}).get("kind") == kind
        except SafetensorError:
            return False

    return ours


def read_table(
    path: str | Path, kind: str, codec_fingerprint: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a table.

    Args:
        path: the file.
        kind: the entry `kind` that its metadata must have, such as `code_sums`.
        codec_fingerprint: the entry `codec` that its metadata must have; None accepts any.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another kind, or belongs to another codec.
    """
    file, metadata = open_table(path, kind, codec_fingerprint)
    with file, readable(path, kind):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_types(tensors)
    return tensors, metadata


def open_table(
    path: str | Path,
    kind: str,
    codec_fingerprint: str | None = None,
    framework: Literal["pt", "numpy"] = "pt",
) -> tuple[Any, dict[str, str]]:
    """Open a table to read parts of it; arguments and errors as in `read_table`.

    Returns:
        The open `safe_open`, and the metadata.
    """
    words = kind.replace("_", " ")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: compute the {words} first")
    with readable(path, kind), utf8_name(path) as name:
        file = safe_open(name, framework)
    metadata = file.metadata() or {}
    if metadata.get("kind") != kind:
        found = plain(metadata.get("kind", "unknown"))
        raise ValueError(f"{path} holds {found} data, expected {words}")
    if codec_fingerprint is not None and metadata.get("codec") != codec_fingerprint:
        raise ValueError(f"{path} belongs to another codec: compute the {words} again")
    return file, metadata


@contextmanager
def readable(path: str | Path, kind: str) -> Iterator[None]:
    """Turn errors of reading a table into a ValueError that names the file.

    Raises:
        ValueError: The block raised SafetensorError, KeyError, IndexError or ValueError.
    """
    try:
        yield
    except (SafetensorError, KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable table of {kind.replace('_', ' ')} ({one_line(error)})"
        ) from error
