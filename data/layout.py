"""Names and conventions of Slakh2100's folders, for the writer and the reader.

ROOT/{train,validation,test}/TrackNNNNN/metadata.yaml, mix.flac, all_src.mid
ROOT/{train,validation,test}/TrackNNNNN/stems/SNN.flac
ROOT/{train,validation,test}/TrackNNNNN/MIDI/SNN.mid
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from jukebox_core.checks import require, require_fields
from jukebox_core.files import check_replaceable, json_with
from jukebox_core.locks import sole_writer

SPLITS = ("train", "validation", "test")

HIGHEST_RATE = 655_350
"""The highest sample rate that FLAC stores, in Hz."""

_LARGEST_METADATA = 1 << 20  # bytes; Slakh's files have about 10,000, and YAML is slow to parse
_LONGEST_NUMBER = 100  # characters of a number, a date or binary data in metadata

# One per General MIDI family of eight programs, spelled as in Slakh2100's metadata.
INST_CLASSES = (
    "Piano",
    "Chromatic Percussion",
    "Organ",
    "Guitar",
    "Bass",
    "Strings",
    "Strings (continued)",
    "Brass",
    "Reed",
    "Pipe",
    "Synth Lead",
    "Synth Pad",
    "Sound Effects",
    "Ethnic",
    "Percussive",
    "Sound effects",
)


def inst_class(program: int, is_drum: bool) -> str:
    """Slakh's instrument class of a General MIDI program."""
    return "Drums" if is_drum else INST_CLASSES[program // 8]


def fold_name(name: str) -> str:
    """Lower case with underscores, so that `Synth Lead` and `synth_lead` are one name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


class _Loader(yaml.SafeLoader):
    """Refuses long numbers: YAML's in base 60, `1:1:1`, take time that grows with their square."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        if len(text) > _LONGEST_NUMBER and node.tag != self.DEFAULT_SCALAR_TAG:
            raise ValueError(f"a value of {len(text)} characters is not text")
        return super().construct_object(node, deep)


def read_metadata(folder: Path) -> Any:
    """Return the content of a track's metadata.yaml.

    Raises:
        ValueError: It is no regular file, too large, or not YAML.
        OSError: It cannot be read.
    """
    path = folder / "metadata.yaml"
    if not os.path.lexists(path):
        raise ValueError("it has no metadata.yaml")
    if not path.is_file():
        raise ValueError("its metadata.yaml is not a regular file")
    if (size := path.stat().st_size) > _LARGEST_METADATA:
        raise ValueError(f"its metadata.yaml is too large to describe stems ({size:,} bytes)")
    text = path.read_bytes()
    try:
        return _Loader(text.decode("utf-8")).get_single_data()
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise every kind
        raise ValueError("its metadata.yaml does not describe stems") from error


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Validate the shares of train, validation and test; a sum other than 1 is scaled."""
    values = tuple(fractions)
    if len(values) == len(SPLITS):
        for name, value in zip(SPLITS, values, strict=True):
            require(f"split ({name})", value, at_least=0)
    if len(values) != len(SPLITS) or sum(values) == 0:
        raise ValueError(
            f"split is {values}, expected three shares >= 0 for train, validation and test, "
            "such as 0.7 0.1 0.2"
        )
    train, validation, test = (value / sum(values) for value in values)
    return train, validation, test


def require_rate(settings: Any, at_least: int) -> None:
    """Refuse the `sample_rate` of settings below a rate, or above what FLAC stores."""
    bounds: dict[str, Any] = {"whole": True, "at_least": at_least, "at_most": HIGHEST_RATE}
    require_fields(settings, "sample_rate", hint="FLAC stores no higher rates", **bounds)


def check_workers(workers: int | None) -> None:
    """Refuse a number of threads or processes that a machine cannot use.

    Each one holds a whole song in memory, so far more workers than CPUs would exhaust it.
    """
    cpus = os.cpu_count() or 1
    if workers is not None:
        hint = f"this machine has {cpus} CPUs"
        require("workers", workers, whole=True, at_least=1, at_most=max(32, 4 * cpus), hint=hint)


def assign_splits(count: int, fractions: Sequence[float]) -> list[str]:
    """Assign a split to each of `count` songs, so that every first n songs have the right shares.

    Every split with a share gets one of the first songs; then each song goes where most is missing.
    Adding songs therefore moves none of the earlier ones.
    """
    shares = dict(zip(SPLITS, check_fractions(fractions), strict=True))
    order = [name for name in ("train", "test", "validation") if shares[name] > 0]
    splits, sizes = order[:count], dict.fromkeys(order, 1)
    for number in range(len(order) + 1, count + 1):
        missing = {name: round(shares[name] * number - sizes[name], 9) for name in order}
        splits.append(max(order, key=missing.__getitem__))
        sizes[splits[-1]] += 1
    return splits


@contextmanager
def claim(output: Path, name: str, settings: dict[str, Any]) -> Iterator[bool]:
    """Keep other processes out of `output`, and yield whether `output/name` records this data set.

    If not, the data set may be written there.

    Raises:
        ValueError: The folder was made with other settings, or holds tracks but no record.
        FileExistsError: `output` is not a folder, or `name` in it is a file that no run wrote.
        BlockingIOError: Another process is writing there.
    """
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is not a folder: choose another output")
    with sole_writer(output, inside=True):
        yield _is_recorded(output, name, settings)


def _is_recorded(output: Path, name: str, settings: dict[str, Any]) -> bool:
    path = output / name
    check_replaceable(path, json_with("sample_rate", "split", "seed"), "a record of settings")
    if not path.exists() or path.stat().st_size == 0:
        if any(os.path.lexists(output / split) for split in SPLITS):
            raise ValueError(f"{output} holds a data set of another origin: choose another output")
        return False
    before = json.loads(path.read_text(encoding="utf-8"))
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    keys = {**settings, **before}  # a setting that either lacks counts as None
    if different := [key for key in keys if settings.get(key) != before.get(key)]:
        raise ValueError(
            f"{output} was written with another {', '.join(different)}: choose another output, "
            "or delete it"
        )
    return True
