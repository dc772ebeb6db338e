"""The names and conventions of Slakh2100's folders, shared by what writes and what reads them.

ROOT/{train,validation,test}/TrackNNNNN/metadata.yaml, mix.flac, all_src.mid
ROOT/{train,validation,test}/TrackNNNNN/stems/SNN.flac
ROOT/{train,validation,test}/TrackNNNNN/MIDI/SNN.mid
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jukebox_core.files import write_json

__all__ = [
    "INST_CLASSES",
    "SPLITS",
    "assign_splits",
    "check_fractions",
    "claim_folder",
    "fold_name",
    "inst_class",
]

SPLITS = ("train", "validation", "test")

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


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Validate the shares of train, validation and test; a sum other than 1 is scaled."""
    values = tuple(float(fraction) for fraction in fractions)
    if len(values) != 3 or min(values) < 0 or not 0 < sum(values) < float("inf"):
        raise ValueError(
            f"split is {values}, expected three shares >= 0 for train, validation and test, "
            "such as 0.7 0.1 0.2"
        )
    train, validation, test = (value / sum(values) for value in values)
    return train, validation, test


def assign_splits(count: int, fractions: Sequence[float]) -> list[str]:
    """A split for each of `count` songs, such that the first n always hold the right shares.

    Every split with a share gets one of the first songs; then each song goes where most is missing.
    Adding songs therefore moves none of the earlier ones.
    """
    shares = dict(zip(SPLITS, check_fractions(fractions), strict=True))
    order = [name for name in ("train", "test", "validation") if shares[name] > 0]
    chosen: list[str] = []
    for index in range(count):
        if index < len(order):
            chosen.append(order[index])
        else:
            missing = {name: shares[name] * (index + 1) - chosen.count(name) for name in order}
            chosen.append(max(order, key=lambda name: round(missing[name], 9)))
    return chosen


def claim_folder(output: Path, name: str, settings: dict[str, Any]) -> None:
    """Record a data set's settings in `output/name` before any of its tracks is written.

    A folder that was begun with the same settings may be continued; one with others, or with
    tracks of another origin, is refused (ValueError).
    """
    path = output / name
    settings = json.loads(json.dumps(settings))  # tuples as they will be read back
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if different := [key for key in settings if settings[key] != before.get(key)]:
            raise ValueError(
                f"{output} was made with another {', '.join(different)}: choose another --output, "
                "or delete it"
            )
    elif any((output / split).exists() for split in SPLITS):
        raise ValueError(f"{output} holds a data set of another origin: choose another --output")
    else:
        write_json(path, settings)
