"""Jobs of separating files: which files, where their stems go, which process, what is finished."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import soundfile

from jukebox_core.checks import one_line
from jukebox_core.files import sha256, write_json

RECORD = "separation.json"
"""The record in the folder of a finished file: its input, models and settings."""

_VERSION = 1
_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".au", ".caf"}
_SUFFIXES |= {".m4a", ".aac", ".wma", ".mp4"}
_BYTES_PER_SECOND = 16_000  # of what only ffmpeg reads: 128 kbit/s


@dataclass(frozen=True)
class Job:
    """An audio file and the folder that its stems go to."""

    path: Path
    folder: Path


class Failure(NamedTuple):
    """A file that could not be separated, and why."""

    path: Path
    message: str


def failure_of(path: Path, error: Exception) -> Failure:
    """Why a file could not be separated, in one line; a bug's traceback is also printed."""
    message = one_line(error)
    if not isinstance(error, ValueError | OSError):
        traceback.print_exception(error)
        message = f"{type(error).__name__}: {error}"
    return Failure(path, message if path.name in message else f"{path}: {message}")


def find_jobs(given: Sequence[Path], output: Path) -> tuple[list[Job], list[Failure]]:
    """The files to separate, and the files that cannot be separated.

    A file's stems go to OUTPUT/STEM. A folder stands for the audio files in it and its subfolders,
    sorted by name, without hidden files and the stems of former runs in OUTPUT. Their stems go to
    OUTPUT/SUBFOLDERS/STEM.

    Raises:
        FileNotFoundError: an argument is not there, or a folder without audio files.
        ValueError: no argument.
    """
    if not given:
        raise ValueError("no MIXTURE given; name at least one audio file or folder")
    jobs: list[Job] = []
    failures: list[Failure] = []
    for path in given:
        try:
            if not os.path.lexists(path):
                path.stat()  # raises the reason: it is missing, its name is too long, ...
            inside = _audio_in(path, output, failures) if path.is_dir() else [path]
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no audio file {path}") from error
        except (OSError, ValueError) as error:
            failures.append(Failure(path, one_line(error)))
            continue
        if not inside and not failures:
            raise FileNotFoundError(f"the folder {path} has no audio files in it")
        base = path if path.is_dir() else path.parent
        jobs += [Job(p, output / p.relative_to(base).with_name(_song_name(p))) for p in inside]
    return _separable(jobs, failures), failures


def _song_name(path: Path) -> str:
    """The file's name without its suffix, unless only dots would be left."""
    return path.stem if path.stem.strip(".") else path.name


def _audio_in(folder: Path, output: Path, failures: list[Failure]) -> list[Path]:
    """The audio files in a folder; adds subfolders that cannot be read to `failures`."""

    def unreadable(error: OSError) -> None:
        failures.append(Failure(Path(error.filename), one_line(error)))

    found: list[Path] = []
    stems_below = output.resolve()
    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(root)
        stems: Collection[str] = ()
        if RECORD in names and stems_below in here.resolve().parents:
            stems = owned_files(here)
        audio = [name for name in names if Path(name).suffix.lower() in _SUFFIXES]
        found += [here / n for n in audio if not n.startswith(".") and n not in stems]
    return sorted(found)


def _separable(jobs: Sequence[Job], failures: list[Failure]) -> list[Job]:
    """The jobs whose stems collide with no other job's stems and replace no input."""
    by_folder: dict[Path, list[Job]] = {}
    for job in jobs:
        by_folder.setdefault(job.folder, []).append(job)
    inputs = {parent: job.path for job in jobs for parent in _resolved(job.path).parents}
    left = []
    for job in jobs:
        others = [other.path for other in by_folder[job.folder] if other is not job]
        outer = next((parent for parent in job.folder.parents if parent in by_folder), None)
        inside = inputs.get(_resolved(job.folder))
        if others:
            why = f"the stems of {others[0]} would go there too: choose one output folder for each"
        elif outer is not None:
            first = by_folder[outer][0].path
            why = f"the stems of {first} go to {outer}: choose one output folder for each"
        elif inside is not None:
            why = f"the input {inside} is there: choose another output folder"
        else:
            left.append(job)
            continue
        failures.append(
            Failure(job.path, f"{job.path}: its stems cannot go to {job.folder}; {why}")
        )
    return left


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


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
    """Estimated length of a file, from its header or size; 0 if it cannot be read."""
    try:
        if not path.is_file():
            return 0.0
        with open(path, "rb") as file:  # soundfile opens no name that is not UTF-8
            return soundfile.info(file).duration
    except (soundfile.LibsndfileError, TypeError):
        return path.stat().st_size / _BYTES_PER_SECOND
    except OSError:
        return 0.0


def identify_models(family: Path, unused: Collection[str] = ()) -> dict[str, str]:
    """{part: SHA-256} of the weights, tables and descriptions in a family's folder.

    Args:
        family: the folder.
        unused: run folders in it that the method does not use.
    """
    patterns = ("*.safetensors", "*/weights.safetensors", "*/meta.json")
    every = (part for pattern in patterns for part in family.glob(pattern))
    parts = sorted(part for part in every if part.parent.name not in unused)
    return {part.relative_to(family).as_posix(): sha256(part) for part in parts}


def identify_input(path: Path) -> dict[str, Any]:
    """Path, size, time and checksum of an input file."""
    about = path.stat()
    return {
        "path": os.path.realpath(path),
        "bytes": about.st_size,
        "mtime_ns": about.st_mtime_ns,
        "sha256": sha256(path),
    }


def write_record(
    folder: Path, identity: Mapping[str, Any], stems: Sequence[str], **about: Any
) -> None:
    """Write separation.json beside the stems that are in `folder`.

    Args:
        folder: the stems' folder; the stems are already written.
        identity: the settings and models; a later run with others separates the file again.
        stems: names of the files.
        about: further entries of the record.
    """
    files = {name: sha256(folder / name) for name in stems}
    record = {"version": _VERSION, "identity": identity, "stems": list(stems), "files": files}
    write_json(folder / RECORD, record | about)


def owned_files(folder: Path) -> dict[str, str | None]:
    """{file: SHA-256} of a former run in a song's folder; None if a checksum is not recorded."""
    record = _read_record(folder)
    if record is None:
        return {}
    recorded = record.get("files", dict.fromkeys(record["stems"]))
    return {RECORD: None, **recorded}


def check_same_song(job: Job) -> None:
    """Refuse a folder with the stems of another input, or with stems that cannot be checked.

    Raises:
        FileExistsError: a former run separated another file into the job's folder, or, like
            earlier versions, recorded no checksums.
    """
    record = _read_record(job.folder)
    if record is None:
        return
    before = record["input"]
    if os.path.realpath(before["path"]) != os.path.realpath(job.path) and not _same_content(
        job.path, before
    ):
        raise FileExistsError(
            f"{job.path}: {job.folder} holds the stems of {before['path']}: choose another "
            "output folder, or overwrite them"
        )
    if "files" not in record:
        raise FileExistsError(
            f"{job.path}: the stems in {job.folder} have no recorded checksums, so they may have "
            "been edited: choose another output folder, or overwrite them"
        )


def is_finished(job: Job, identity: Mapping[str, Any]) -> bool:
    """Whether the job's folder holds the stems of the same input, made with these settings."""
    record = _read_record(job.folder)
    try:
        return (
            record is not None
            and record["identity"] == json.loads(json.dumps(identity, default=str))
            and all((job.folder / name).is_file() for name in record["stems"])
            and _same_content(job.path, record["input"])
        )
    except OSError:
        return False


def _same_content(path: Path, before: Mapping[str, Any]) -> bool:
    """Whether a file has the recorded size and checksum; another song may have the same time."""
    return path.stat().st_size == before["bytes"] and sha256(path) == before["sha256"]


def _read_record(folder: Path) -> dict[str, Any] | None:
    """The content of separation.json; None if it is missing or not ours."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        input_ = record["input"]
        complete = (
            record["version"] == _VERSION
            and isinstance(record["identity"], dict)
            and all(isinstance(name, str) for name in record["stems"])
            and isinstance(record.get("files", {}), dict)
            and isinstance(input_["path"], str)
            and {"bytes", "mtime_ns", "sha256"} <= input_.keys()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if complete else None
