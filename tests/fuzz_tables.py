"""Tables for the fuzzer: counts, code sums, calibrations, and upstream's files of the first two."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_cases import Case, Evil, Random, check, edited, mutated, pick
from fuzz_checkpoints import safetensors_mutation, tensor_edit, torch_mutation

from jukebox_core.separation.calibration import Calibration, load_calibration, save_calibration
from jukebox_core.upstream.tables import read_sums, write_sums
from lass.counts import CountsFile, count_triples, load_counts, merge_counts, save_counts
from lass.upstream import read_upstream_counts, write_upstream_counts
from lqvae.sums import code_sums, load_sums, save_sums

K = 12
METADATA = {"codec": "abc", "sources": "bass drums", "alpha": "0.5 0.5", "iterations": "3",
            "counting": "seed 0"}  # fmt: skip
METADATA_VALUES = ("0", "-1", "12.5", "nan", "inf", "9" * 5000, "2097151", "2097152", "10**9",
                   "1e9", "", "a\nb\x1b[31m", "x" * 5000, "drums bass", "٣")  # fmt: skip


class Tables:
    """Tables in the functions that load them."""

    def prepare(self, seeds: Path) -> None:
        seeds.mkdir()
        rng = np.random.default_rng(0)
        counts = count_triples(K, *rng.integers(K, size=(3, 500)))
        save_counts(seeds / "counts", counts, METADATA)
        write_upstream_counts(seeds / "npz", counts, METADATA)
        codebook = torch.randn(K, 4, generator=torch.Generator().manual_seed(0))
        save_sums(seeds / "sums", code_sums(codebook), "abc", (0.5, 0.5))
        write_sums(seeds / "pt", code_sums(codebook))
        gain = {name: torch.rand(9) for name in ("bass", "drums")}
        save_calibration(seeds / "calibration", Calibration(gain, gain), "abc", 22_050)

    def make(self, rng: Random, seeds: Path, home: Path) -> Case:
        kind = pick(rng, ("counts", "counts", "sums", "calibration", "npz", "npz", "pt"))
        path = home / f"table.{kind if kind in ('npz', 'pt') else 'safetensors'}"
        shutil.copyfile(seeds / kind, path)
        match kind:
            case "npz":
                what, data = npz_mutation(rng, path.read_bytes())
            case "pt":
                what, data = sums_mutation(rng, path.read_bytes())
            case _ if rng.random() < 0.25:
                what, data = metadata_edit(rng, path.read_bytes())
            case _:
                what, data = safetensors_mutation(rng, path)
        path.write_bytes(data)
        read = partial(READERS[kind], path, home.parent / "out/merged.safetensors")
        return Case(f"{kind}: {what}", read, (str(path),))


PARSER = Tables()


def _read_counts(path: Path, output: Path) -> None:
    """Read counts whole, in parts, and merged; what the ways give is the same."""
    counts, metadata = load_counts(path, "abc", ("bass", "drums"))
    check_counts(counts)
    check(all(isinstance(value, str) for value in metadata.values()), "metadata")
    file = CountsFile(path)
    check(len(file) == len(counts.counts), f"{len(file)} and {len(counts.counts)}")
    _, values = file.read(0, len(file))
    check(np.array_equal(np.sort(values), np.sort(counts.counts)), "its parts differ")
    total = merge_counts([path], output)
    check(total == sum(map(int, counts.counts)), f"{total} after merging")
    check_counts(load_counts(output)[0])


def check_counts(counts: Any) -> None:
    """Refuse counts that are not what `Counts` says."""
    size = len(counts.counts)
    check(counts.offsets.shape == (counts.n_codes + 1,), "offsets")
    check(counts.offsets[0] == 0 and counts.offsets[-1] == size, "offsets")
    for codes in (counts.first, counts.second, counts.mixture):
        check(codes.shape == (size,) and codes.dtype == np.int32, f"{codes.shape} {codes.dtype}")
        check(not size or 0 <= codes.min() <= codes.max() < counts.n_codes, "codes out of range")
    check(not size or counts.counts.min() > 0, "a count is not positive")
    keys = [
        (int(m), int(i), int(j))
        for m, i, j in zip(counts.mixture, counts.first, counts.second, strict=True)
    ]
    check(keys == sorted(set(keys)), "triples are out of order")


def _read_upstream_counts(path: Path, output: Path) -> None:
    counts, metadata = read_upstream_counts(path)
    check_counts(counts)
    check(isinstance(metadata, dict), f"its metadata are {type(metadata).__name__}")
    check(all(isinstance(v, str) for v in metadata.values()), f"its metadata are {metadata}")


def _read_sums(path: Path, output: Path) -> None:
    check_sums(load_sums(path, "abc"))


def _read_upstream_sums(path: Path, output: Path) -> None:
    check_sums(read_sums(path))


def check_sums(table: torch.Tensor) -> None:
    """Refuse what is not a table of codes."""
    check(table.ndim == 2 and len(table) == table.shape[1] > 0, f"it is {tuple(table.shape)}")
    check(table.dtype == torch.int64, f"it is {table.dtype}")
    check(0 <= int(table.min()) <= int(table.max()) < len(table), "codes out of range")


def _read_calibration(path: Path, output: Path) -> None:
    calibration = load_calibration(path, "abc", ("bass", "drums"))
    powers = calibration("bass", torch.rand(5, 3), 0.5)
    check(powers.shape == (5, 3) and powers.dtype == torch.float32, f"{powers.dtype}")
    check(powers.isfinite().all() and (powers >= 0).all(), "powers are not finite, or negative")


READERS: dict[str, Any] = {
    "counts": _read_counts,
    "npz": _read_upstream_counts,
    "sums": _read_sums,
    "pt": _read_upstream_sums,
    "calibration": _read_calibration,
}


def metadata_edit(rng: Random, content: bytes) -> tuple[str, bytes]:
    """A safetensors file with another entry in its metadata."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = pick(rng, sorted(header["__metadata__"]))
    header["__metadata__"][name] = value = pick(rng, METADATA_VALUES)
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + content[8 + length :]
    return f"{name} is {value[:20]!r}", data


def npz_mutation(rng: Random, content: bytes) -> tuple[str, bytes]:
    """An npz of counts, damaged, or with other arrays."""
    if rng.random() < 0.4:
        return "bytes", mutated(rng, content)
    with np.load(io.BytesIO(content)) as file:
        arrays: dict[str, Any] = dict(file)
    name = pick(rng, sorted(arrays))
    array = arrays[name]
    match int(rng.integers(7)):
        case 0:
            what = "is missing"
            del arrays[name]
        case 1:
            kind = pick(rng, ("f8", "f4", "c16", "U7", "u8", "i1", "?", "M8[s]"))
            what = f"as {kind}"
            with np.errstate(all="ignore"):
                try:
                    arrays[name] = array.astype(kind)
                except ValueError:
                    arrays[name] = np.zeros(array.shape, kind)
        case 2:
            what, arrays[name] = "is an object", np.array([Evil()], object)
        case 3:
            what, arrays[name] = "is cut", array.reshape(-1)[: int(rng.integers(3))]
        case 4 if name == "native_metadata":
            text, what = edited(rng, METADATA)
            arrays[name] = np.array(json.dumps(text))
        case 4:
            what, arrays[name] = "has another axis", array[None]
        case 5 if name == "native_metadata":
            what, arrays[name] = "is no JSON", np.array(pick(rng, ("{", "[" * 50_000, "9" * 5000)))
        case _ if array.dtype.kind in "iu" and array.size:
            value = pick(rng, (-1, 0, K, 2**31, 2**53, 2**62, -(2**63), 2**64 - 1))
            flat = array.astype(np.uint64 if value > 2**63 else np.int64).reshape(-1)
            flat[slice(None) if rng.random() < 0.3 else int(rng.integers(flat.size))] = value
            what, arrays[name] = f"has {value}", flat.reshape(array.shape)
        case _:
            what = "is whole"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return f"{name} {what}", buffer.getvalue()


def sums_mutation(rng: Random, content: bytes) -> tuple[str, bytes]:
    """Upstream's file of code sums, damaged, or another tensor."""
    if rng.random() < 0.5:
        return torch_mutation(rng, content)
    what, tensor = tensor_edit(rng, torch.load(io.BytesIO(content), weights_only=True))
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return what, buffer.getvalue()
