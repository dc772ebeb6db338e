"""The manifest of a prepared data set."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jukebox_core.checks import require

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Track:
    """One song: mono files of equal length, `mixture = sum(alpha[name] * source[name])` exactly."""

    name: str
    split: str
    samples: int
    sample_rate: int
    mixture: Path
    sources: dict[str, Path]
    checksums: dict[str, str]
    """SHA-256 of every source file, and of the mixture under `mixture`."""
    song: str = ""
    """Tracks of one song, such as its excerpts, have the same; default: the name of the track."""

    def __post_init__(self) -> None:
        if self.song == "":
            object.__setattr__(self, "song", self.name)
        for name in ("name", "split", "song"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} of a track is {getattr(self, name)!r}, expected a string")
        for name, checksum in self.checksums.items():
            if not isinstance(checksum, str):
                raise ValueError(f"sha256 of {name} is {checksum!r}, expected a string")
        require(f"samples of {self.name}", self.samples, whole=True, at_least=1)


@dataclass(frozen=True)
class Manifest:
    """A prepared data set; paths are absolute or relative to the working directory."""

    root: Path
    sample_rate: int
    sources: tuple[str, ...]
    alpha: dict[str, float]
    tracks: tuple[Track, ...]

    def __post_init__(self) -> None:
        require("sample_rate", self.sample_rate, whole=True, at_least=1)
        if not self.sources or len(set(self.sources)) != len(self.sources):
            raise ValueError(f"sources are {list(self.sources)}, expected different names")
        for name, weight in self.alpha.items():
            require(f"alpha of {name}", weight, above=0)

    def split(self, name: str) -> list[Track]:
        """The tracks of a split (`train`, `validation` or `test`), maybe none."""
        return [track for track in self.tracks if track.split == name]


def load_manifest(folder: str | Path, sample_rate: int | None = None) -> Manifest:
    """Read `folder/manifest.json` and check that the files it names exist.

    Args:
        folder: folder of a prepared data set.
        sample_rate: sample rate of the model that will use the data; None accepts any.

    Raises:
        FileNotFoundError: the manifest or a file of a track is missing.
        ValueError: the file is not a manifest, or has another version or sample rate.
    """
    root = Path(folder)
    path = root / MANIFEST_NAME
    if not path.is_file():
        raise FileNotFoundError(f"there is no {MANIFEST_NAME} in {root}: prepare the data first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["version"]
        if version != MANIFEST_VERSION:
            raise ValueError(f"its version is {version!r}, expected {MANIFEST_VERSION}")
        manifest = _parse(root, content)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is not a manifest of prepared data ({what}): prepare the data again"
        ) from error
    if sample_rate not in (None, manifest.sample_rate):
        raise ValueError(
            f"{folder} is at {manifest.sample_rate} Hz, the model at {sample_rate}: prepare the "
            f"data at {sample_rate} Hz, or train a model at {manifest.sample_rate} Hz"
        )
    for track in manifest.tracks:
        for file in (track.mixture, *track.sources.values()):
            if not file.is_file():
                raise FileNotFoundError(
                    f"{file} is in {path} but does not exist: prepare the data again"
                )
    return manifest


def _parse(root: Path, content: dict[str, Any]) -> Manifest:
    sources = tuple(str(name) for name in content["sources"])
    sample_rate = _whole(content["sample_rate"])
    tracks = []
    for entry in content["tracks"]:
        files = entry["files"]
        tracks.append(
            Track(
                name=entry["name"],
                split=entry["split"],
                samples=_whole(entry["samples"]),
                sample_rate=sample_rate,
                mixture=_inside(root, files["mixture"]["path"]),
                sources={name: _inside(root, files[name]["path"]) for name in sources},
                checksums={name: files[name]["sha256"] for name in ("mixture", *sources)},
                song=entry.get("song", entry["name"]),
            )
        )
    alpha = {name: _number(content["alpha"][name]) for name in sources}
    return Manifest(root, sample_rate, sources, alpha, tuple(tracks))


def _inside(root: Path, name: Any) -> Path:
    """The path of a file in the folder `root`."""
    path = root / name
    inside = root in path.parents and ".." not in path.relative_to(root).parts
    if not inside or b"\0" in os.fsencode(path):
        raise ValueError(f"a path is {name!r}, expected one inside the folder")
    return path


def _number(value: Any) -> Any:
    """Turn a gain written as 1 into 1.0; leave anything else unchanged."""
    return float(value) if type(value) is int and abs(value) < 2**53 else value


def _whole(value: Any) -> Any:
    """Turn a number written as 22050.0 into an integer; leave anything else unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
