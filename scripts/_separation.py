"""What scripts.separate plans before it separates: which files, where to, by whom, what is done."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from jukebox_core.files import sha256, write_json

__all__ = [
    "RECORD",
    "Job",
    "assign",
    "find_jobs",
    "identify_input",
    "identify_models",
    "is_finished",
    "write_record",
]

RECORD = "separation.json"
"""In the folder of a finished file: what it was made from, and how."""

_VERSION = 1
_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".au", ".caf"}
_SUFFIXES |= {".m4a", ".aac", ".wma", ".mp4"}
_BYTES_PER_SECOND = 16_000  # of what only ffmpeg reads: 128 kbit/s


@dataclass(frozen=True)
class Job:
    """An audio file and the folder that its stems go to."""

    path: Path
    folder: Path


def find_jobs(given: Sequence[Path], output: Path) -> list[Job]:
    """The files that the arguments stand for.

    A file's stems go to OUTPUT/STEM. A folder stands for the audio files in it and in its folders,
    hidden ones and OUTPUT itself left out, in the order of their names; their stems go to
    OUTPUT/FOLDERS/STEM, FOLDERS as in the folder given.

    Raises:
        FileNotFoundError: an argument is not there, or a folder without audio files.
        ValueError: no argument, or two files whose stems would go to one folder or into each other.
    """
    if not given:
        raise ValueError("no MIXTURE given; name at least one audio file or folder")
    jobs = []
    for path in given:
        if not path.exists():
            raise FileNotFoundError(f"there is no audio file {path}")
        inside = _audio_in(path, output) if path.is_dir() else [path]
        if not inside:
            raise FileNotFoundError(f"the folder {path} has no audio files in it")
        base = path if path.is_dir() else path.parent
        jobs += [Job(p, output / p.relative_to(base).with_suffix("")) for p in inside]
    _check_folders([job.folder for job in jobs], output)
    return jobs


def _audio_in(folder: Path, output: Path) -> list[Path]:
    hidden = output.resolve()
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and hidden not in path.resolve().parents
    ]


def _check_folders(folders: Sequence[Path], output: Path) -> None:
    names = [str(folder.relative_to(output)) for folder in folders]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"several mixtures are called {', '.join(twice)}; separate them apart")
    known = set(folders)
    for folder in folders:
        outer = next((parent for parent in folder.parents if parent in known), None)
        if outer is not None:
            raise ValueError(
                f"the stems of one mixture would go to {outer}, those of another into it, to "
                f"{folder}; separate them apart"
            )


def assign(jobs: Sequence[Job], ranks: int) -> list[list[Job]]:
    """Every rank's jobs: the longest first, each to the rank with the least to do."""
    if ranks == 1:
        return [list(jobs)]
    shares: list[list[Job]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    lengths = {job: _seconds(job.path) for job in jobs}
    for job in sorted(jobs, key=lambda job: -lengths[job]):
        rank = load.index(min(load))
        shares[rank].append(job)
        load[rank] += lengths[job]
    return shares


def _seconds(path: Path) -> float:
    """About how long a file lasts, by its header or its size."""
    try:
        return soundfile.info(path).duration
    except (soundfile.LibsndfileError, TypeError):
        return path.stat().st_size / _BYTES_PER_SECOND


def identify_models(family: Path) -> dict[str, str]:
    """{part: SHA-256} of the weights, tables and descriptions in a family's folder."""
    patterns = ("*.safetensors", "*/weights.safetensors", "*/meta.json")
    parts = sorted(part for pattern in patterns for part in family.glob(pattern))
    return {part.relative_to(family).as_posix(): sha256(part) for part in parts}


def identify_input(path: Path) -> dict[str, Any]:
    """What tells whether a file is the one that was separated."""
    about = path.stat()
    return {
        "path": str(path),
        "bytes": about.st_size,
        "mtime_ns": about.st_mtime_ns,
        "sha256": sha256(path),
    }


def write_record(folder: Path, identity: Mapping[str, Any], **about: Any) -> None:
    """Write separation.json. identity: the settings and models that another run must share."""
    write_json(folder / RECORD, {"version": _VERSION, "identity": identity, **about})


def is_finished(job: Job, identity: Mapping[str, Any]) -> bool:
    """Whether the job's folder holds the stems of this very input, made with these settings.

    The input is the same where its size and either its time of change or its checksum are.
    """
    try:
        record = json.loads((job.folder / RECORD).read_text(encoding="utf-8"))
        found, input_ = record["identity"], record["input"]
        if record["version"] != _VERSION or found != json.loads(json.dumps(identity, default=str)):
            return False
        if not all((job.folder / name).is_file() for name in record["stems"]):
            return False
        about = job.path.stat()
        if about.st_size != input_["bytes"]:
            return False
        same_time = about.st_mtime_ns == input_["mtime_ns"]
        return same_time or sha256(job.path) == input_["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # none there, or none of ours
