"""Prepare Slakh2100 for training: aligned mono sources, mixtures and a manifest.

Reads the original and the redux release, BabySlakh, and anything in their layout (`data.layout`).
Prefer redux: the original's split repeats songs across train and test, so scores on it flatter.

    OUTPUT/manifest.json                                       see `jukebox_core.datasets.manifest`
    OUTPUT/{train,validation,test}/TrackNNNNN/{bass,drums,mixture}.flac         mono, 24 bits

The mixture is the mean of the sources (weights alpha = 1 / S), exactly: sources are rounded to
multiples of S / 2^23, so that their mean is a 24-bit number too, and float32 holds all of them
(and computes the weighted sum of up to six sources without rounding).
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data.layout import (
    SPLITS,
    assign_splits,
    check_fractions,
    check_workers,
    claim,
    fold_name,
    read_metadata,
    require_rate,
)
from data.songs import named_song, shared_audio
from jukebox_core import audio
from jukebox_core.checks import one_line, plain, require_fields
from jukebox_core.datasets.manifest import MANIFEST_NAME, MANIFEST_VERSION, Manifest, load_manifest
from jukebox_core.files import (
    atomic_folder,
    check_owned,
    check_replaceable,
    json_with,
    remove_leftovers,
    remove_owned,
    sha256,
    write_json,
)
from jukebox_core.machine import free_bytes, is_out_of_memory

OTHER = "other"
"""The source that is the sum of all rendered stems of no other source."""
_SETTINGS = "settings.json"  # written first, so that an interrupted run is not mixed with another
_TRACK = "track.json"  # in every finished track's folder
_UNASSIGNED = ".unassigned"  # finished tracks whose split depends on how many there will be
_DEFAULT_SPLIT = (0.7, 0.1, 0.2)
_FULL_SCALE = 2**23
_TRACK_NAME = re.compile(r"Track\d+")
_LONGEST_NAME = 100  # characters of a source's name, which becomes a file name
_BYTES_PER_SAMPLE = 16  # of a stem: its sum, and the samples before and after resampling
_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # errors that no file causes


class Prepared(NamedTuple):
    """The result of a run."""

    manifest: Manifest
    skipped: dict[str, str]  # track, such as train/Track00001: reason


@dataclass(frozen=True)
class _Settings:
    sources: tuple[str, ...]
    sample_rate: int
    silence_dbfs: float
    limit: int | None
    split: tuple[float, float, float] | None
    seed: int
    keep_silent: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_rate(self, at_least=1000)
        require_fields(self, "silence_dbfs", at_most=0)
        require_fields(self, "limit", whole=True, at_least=1, optional=True)
        require_fields(self, "seed", whole=True, at_least=0)

    def record(self) -> dict[str, Any]:
        """What the output's settings.json holds; without what earlier versions did not know."""
        known = asdict(self)
        if not self.keep_silent:
            del known["keep_silent"]
        return known


@dataclass(frozen=True)
class _Candidate:
    """A track of the data set; its split is None if the folders do not define it."""

    folder: Path
    split: str | None
    origin: str  # train/Track00001


class _Described(NamedTuple):
    """The audio files of every source of a track, and the song that its metadata name, if any."""

    stems: dict[str, list[Path]]
    song: str | None


class _Done(NamedTuple):
    """A prepared track: its folder, the content of its track.json, the song that it names."""

    candidate: _Candidate
    folder: Path
    record: dict[str, Any]
    song: str | None


class _UnusableError(ValueError):
    """A track that cannot be used; the message is the reason, in one line."""

    def __init__(self, reason: str):
        super().__init__(plain(reason))


def prepare(
    slakh: str | Path,
    output: str | Path,
    *,
    sources: Sequence[str] = ("bass", "drums"),
    sample_rate: int = 22050,
    limit: int | None = None,
    split: Sequence[float] | None = None,
    seed: int = 0,
    silence_dbfs: float = -60.0,
    keep_silent: bool = False,
    find_songs: bool = False,
    workers: int | None = None,
) -> Prepared:
    """Prepare a data set; see the module's docstring.

    A track that lacks a source, has a silent one, or cannot be read is skipped and listed in the
    manifest. A second run into the same folder reuses the finished tracks, and replaces only what
    a former run wrote.

    Args:
        slakh: Folder with `train`, `validation` and `test` (`omitted` is ignored), or with
            TrackNNNNN folders directly, which are then split at random by song.
        output: Folder to write to.
        sources: `drums` or instrument classes, such as `bass`, `piano` or `synth_lead`; `other` is
            all the rest. The stems of a source are added up.
        sample_rate: Of the files written.
        limit: Use so many tracks, the first usable ones by name; shared out over the split folders
            in proportion to their sizes.
        split: Shares of train, validation and test. The tracks of `train` alone (all of a folder
            without splits) are then used, in the order of their names: the first share is train.
        seed: Of the random split.
        silence_dbfs: A source with a lower RMS counts as silent.
        keep_silent: Use tracks that lack sources or have silent ones, if two sources sound (or the
            only one).
        find_songs: Tracks whose metadata name no song are compared: those that share a passage,
            such as excerpts of one song, get the same song in the manifest.
        workers: Threads; None is one per CPU.

    Raises:
        FileNotFoundError: There is no such folder.
        FileExistsError: Something that no run wrote is in the place of an output.
        OSError: A file cannot be written.
        ValueError: It has no tracks, or none that can be used; an argument is out of range;
            `output` was prepared with other settings, or overlaps the data set.
    """
    slakh, output = Path(slakh), Path(output)
    check_workers(workers)
    settings = _Settings(
        sources=_check_sources(sources),
        sample_rate=sample_rate,
        silence_dbfs=silence_dbfs,
        limit=limit,
        split=None if split is None else check_fractions(split),
        seed=seed,
        keep_silent=keep_silent,
    )
    candidates = _find(slakh, use_train_only=split is not None)
    _check_apart(slakh, candidates, output)
    with claim(output, _SETTINGS, settings.record()) as claimed:
        _check_replaceable(candidates, output)
        if not claimed:
            write_json(output / _SETTINGS, settings.record())
        usable, skipped = _prepare_all(candidates, output, settings, workers or os.cpu_count() or 1)
        if not usable:
            if not claimed:
                (output / _SETTINGS).unlink()  # so that other settings can be tried
            origin, reason = next(iter(skipped.items()))
            raise ValueError(
                f"none of the {len(skipped)} tracks in {slakh} could be used, the first: "
                f"{origin}: {reason}"
            )
        tracks = _assign(usable, output, settings)
        _write_manifest(output, settings, tracks, skipped, find_songs)
    return Prepared(load_manifest(output), skipped)


def quantise_sources(sources: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return sources and their mean as integers; 2^23 is full scale.

    Args:
        sources: `[S, T]` float.

    Returns:
        The sources `[S, T]`, multiples of S; their mean `[T]`, exact; and the gain that all sources
        were scaled by, less than 1 where one would have clipped.
    """
    n = len(sources)
    highest = 1 - n / _FULL_SCALE  # so that rounding up stays below full scale
    peak = float(np.abs(sources).max(initial=0.0))
    gain = 1.0 if peak <= highest else highest / peak
    shares = np.rint(sources.astype(np.float64) * (gain * _FULL_SCALE / n)).astype(np.int64)
    return shares * n, shares.sum(0), gain


def _check_sources(sources: Sequence[str]) -> tuple[str, ...]:
    names = tuple(map(fold_name, sources))
    if odd := [name for name in sources if re.search(r"[^\w\s()-]", name)]:
        raise ValueError(f"sources has {odd[0]!r}, expected names of instrument classes")
    if not names or len(set(names)) < len(names) or "mixture" in names or "" in names:
        raise ValueError(
            f"sources are {list(sources)}, expected different instrument classes, such as bass "
            "drums piano"
        )
    if longest := [name for name in names if len(name) > _LONGEST_NAME]:
        raise ValueError(
            f"sources has a name of {len(longest[0])} characters, expected at most {_LONGEST_NAME}"
        )
    return names


def _check_apart(slakh: Path, candidates: list[_Candidate], output: Path) -> None:
    """Refuse an output that a later run would read, and input tracks inside the output."""
    root, there = (Path(os.path.realpath(path)) for path in (slakh, output))
    first = [*there.relative_to(root).parts, ""][0] if there.is_relative_to(root) else "elsewhere"
    mixed = first in ("", *SPLITS) or _TRACK_NAME.fullmatch(first) is not None
    places = [there / place for place in (_UNASSIGNED, *SPLITS)]
    for candidate in candidates:
        folder = Path(os.path.realpath(candidate.folder))
        mixed |= there.is_relative_to(folder) or any(map(folder.is_relative_to, places))
    if mixed:
        raise ValueError(
            f"output {output} and the data set {slakh} would be mixed: choose another output"
        )


def _check_replaceable(candidates: list[_Candidate], output: Path) -> None:
    """Refuse an output if this run would replace something that no run wrote."""
    ours = json_with("version", "sources", "tracks")
    check_replaceable(output / MANIFEST_NAME, ours, "a manifest")
    for candidate in candidates:
        for place in _places(candidate):
            folder = output / place / candidate.folder.name
            check_owned(folder, _owned(folder))


def _find(slakh: Path, *, use_train_only: bool) -> list[_Candidate]:
    """Return the data set's tracks, by split and name."""
    if not slakh.is_dir():
        raise FileNotFoundError(f"there is no folder {slakh}")
    tracks = [
        _Candidate(folder, None if use_train_only else name, f"{name}/{folder.name}")
        for name in (("train",) if use_train_only else SPLITS)
        for folder in track_folders(slakh / name)
    ]
    if not tracks:
        tracks = [_Candidate(folder, None, folder.name) for folder in track_folders(slakh)]
    if not tracks:
        inside = sorted(path.parents[2].name for path in slakh.glob("*/*/Track*/metadata.yaml"))
        hint = f"; did you mean {slakh / inside[0]}?" if inside else ""
        raise ValueError(
            f"{slakh} has no TrackNNNNN folders, neither in {', '.join(SPLITS)} nor itself{hint}"
        )
    return tracks


def track_folders(folder: Path) -> list[Path]:
    """Return the TrackNNNNN folders in a folder by name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if _TRACK_NAME.fullmatch(path.name) and (path.is_dir() or path.is_symlink())
    )


def _prepare_all(
    candidates: list[_Candidate], output: Path, settings: _Settings, workers: int
) -> tuple[list[_Done], dict[str, str]]:
    """Prepare tracks until there are enough; return them and why others were skipped."""
    done: list[_Done] = []
    skipped: dict[str, str] = {}
    quotas = _quotas(candidates, settings.limit)

    def work(candidate: _Candidate) -> _Done | str:
        try:
            return _prepare_track(candidate, output, settings)
        except _UnusableError as error:
            return str(error)

    pool = ThreadPoolExecutor(workers)  # threads: decoding and resampling release the lock
    progress = tqdm(total=sum(quotas.values()), desc="preparing", unit="track", disable=None)
    try:
        for split, quota in quotas.items():
            waiting = [candidate for candidate in candidates if candidate.split == split]
            while quota > 0 and waiting:
                batch, waiting = waiting[:quota], waiting[quota:]
                for candidate, result in zip(batch, pool.map(work, batch), strict=True):
                    if isinstance(result, str):
                        skipped[candidate.origin] = result
                    else:
                        done.append(result)
                        quota -= 1
                        progress.update()
    finally:
        pool.shutdown(cancel_futures=True)
        progress.close()
    return done, skipped


def _quotas(candidates: list[_Candidate], limit: int | None) -> dict[str | None, int]:
    """Return the number of tracks per split: at least one, then in proportion to the sizes."""
    splits = [candidate.split for candidate in candidates]
    sizes = {split: splits.count(split) for split in dict.fromkeys(splits)}
    if limit is None or limit >= len(candidates):
        return sizes
    quotas = dict.fromkeys(sizes, 0)
    for taken in range(1, limit + 1):
        missing = {
            split: (quotas[split] == 0, taken * size / len(candidates) - quotas[split])
            for split, size in sizes.items()
        }
        quotas[max(missing, key=lambda split: missing[split])] += 1
    return quotas


def _places(candidate: _Candidate) -> tuple[str, ...]:
    """Return folders that may hold the prepared track; a new one is written to the first."""
    return (candidate.split,) if candidate.split else (_UNASSIGNED, *SPLITS)


@contextmanager
def _reading() -> Iterator[None]:
    """Turn read errors inside the block into _UnusableError; the block must not write."""
    try:
        yield
    except _UnusableError:
        raise
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise
        name = Path(os.fsdecode(error.filename)).name if error.filename is not None else ""
        text = f"{name} cannot be read: {error.strerror}" if name else str(error)
        raise _UnusableError(text) from error
    except ValueError as error:
        raise _UnusableError(one_line(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise _UnusableError("it is too long to fit in memory") from error


def _prepare_track(candidate: _Candidate, output: Path, settings: _Settings) -> _Done:
    """Write one track's folder unless it is finished; raise _UnusableError if it cannot be used."""
    with _reading():
        stems, song = _select_stems(candidate.folder, settings)
        inputs = {"metadata.yaml": sha256(candidate.folder / "metadata.yaml")} | {
            file.name: file.stat().st_size for files in stems.values() for file in files
        }
    places = _places(candidate)
    for place in places:
        folder = output / place / candidate.folder.name
        if (record := _finished(folder, inputs)) is not None:
            return _Done(candidate, folder, record, song)
    with _reading():
        sources = _read_sources(stems, settings)
    whole, mixture, gain = quantise_sources(sources)
    folder = output / places[0] / candidate.folder.name
    with atomic_folder(folder, _owned(folder)) as temporary:
        checksums = {}
        for name, samples in zip(("mixture", *stems), (mixture, *whole), strict=True):
            file = temporary / f"{name}.flac"
            exact = torch.from_numpy((samples / _FULL_SCALE).astype(np.float32))
            audio.save(file, exact, settings.sample_rate)
            checksums[name] = sha256(file)
        record = {"inputs": inputs, "samples": len(mixture), "gain": gain, "sha256": checksums}
        write_json(temporary / _TRACK, record)
    return _Done(candidate, folder, record, song)


def _record(folder: Path) -> dict[str, Any]:
    """Return the content of a track's track.json; empty if no run wrote one."""
    path = folder / _TRACK
    with suppress(OSError, ValueError, RecursionError):
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if isinstance(record, dict) and {"inputs", "samples", "gain", "sha256"} <= record.keys():
            return record if isinstance(record["sha256"], dict) else {}
    return {}


def _owned(folder: Path) -> dict[str, None]:
    """Return the files in a track's folder that its record names."""
    record = _record(folder)
    return dict.fromkeys([*(f"{name}.flac" for name in record["sha256"]), _TRACK] if record else ())


def _finished(folder: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of a finished track if its files and their origin are unchanged."""
    record = _record(folder)
    if not record or record["inputs"] != inputs:
        return None
    files = {folder / f"{name}.flac": checksum for name, checksum in record["sha256"].items()}
    try:
        unchanged = all(f.is_file() and sha256(f) == checksum for f, checksum in files.items())
    except OSError:
        return None
    return record if unchanged else None


def _select_stems(folder: Path, settings: _Settings) -> _Described:
    """Return the audio files of each source and the song, from metadata.yaml."""
    metadata = read_metadata(folder)
    try:
        entries = metadata["stems"]
        described = {str(name): _source_name(entry) for name, entry in entries.items()}
        song = named_song(metadata)
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise every kind
        raise _UnusableError("its metadata.yaml does not describe stems") from error
    selected = {}
    for source in settings.sources:
        others = set(described.values()) - {*settings.sources, ""}
        wanted = others if source == OTHER else {source}
        names = [name for name, what in described.items() if what in wanted]
        if not names and not settings.keep_silent:
            present = ", ".join(sorted(set(described.values()) - {""}))
            raise _UnusableError(f"it has no rendered stem of {source} (of {present})")
        selected[source] = [_stem_file(folder, name) for name in sorted(names)]
    return _Described(selected, song)


def _source_name(entry: dict[str, Any]) -> str:
    """Return the source of a rendered stem; empty for others."""
    name = "drums" if entry.get("is_drum") else entry["inst_class"]
    rendered = entry.get("audio_rendered", True)
    return fold_name(str(name)) if rendered and isinstance(name, str | int | float) else ""


def _stem_file(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise _UnusableError(f"its metadata.yaml names a stem {name!r}, which is not a file name")
    for suffix in (".flac", ".wav"):  # BabySlakh's are wav
        path = folder / "stems" / f"{name}{suffix}"
        if path.is_file():
            return path
        if os.path.lexists(path):
            raise _UnusableError(f"stems/{path.name} is not a regular file")
    raise _UnusableError(f"stems/{name}.flac is missing")


def _read_sources(stems: dict[str, list[Path]], settings: _Settings) -> np.ndarray:
    """Load mono sources at one rate, padded with zeros to one length, `[S, T]` float64."""
    summed, silent = [], []
    for source, files in stems.items():
        total = _padded_sum(_read_mono(file, settings.sample_rate) for file in files)
        if not files or audio.is_silent(torch.from_numpy(total), settings.silence_dbfs):
            silent.append(source)
        summed.append(total)
    most = max(0, len(stems) - 2) if settings.keep_silent else 0
    if len(silent) > most:
        raise _UnusableError(
            f"its {' and '.join(silent)} {'are' if len(silent) > 1 else 'is'} silent (RMS under "
            f"silence_dbfs, {settings.silence_dbfs})"
        )
    length = max(len(source) for source in summed)
    return np.stack([np.pad(source, (0, length - len(source))) for source in summed])


def _read_mono(file: Path, sample_rate: int) -> np.ndarray:
    samples, rate = audio.load(file)
    needed = _BYTES_PER_SAMPLE * samples.shape[-1] * sample_rate / rate
    if needed > free_bytes(torch.device("cpu")):
        hours = samples.shape[-1] / rate / 3600
        raise _UnusableError(f"{file.name} lasts {hours:,.0f} hours, too long to fit in memory")
    return audio.resample(audio.to_mono(samples), rate, sample_rate).numpy()


def _padded_sum(parts: Iterable[np.ndarray]) -> np.ndarray:
    total = np.zeros(0)
    for part in parts:
        total = np.pad(total, (0, max(0, len(part) - len(total))))
        total[: len(part)] += part
    return total


def _assign(done: list[_Done], output: Path, settings: _Settings) -> list[tuple[str, _Done]]:
    """Assign the splits; unassigned tracks move to the folder of their split."""
    if settings.split is not None:
        ends = np.rint(np.cumsum(settings.split) * len(done)).astype(int)
        splits = [SPLITS[int(np.searchsorted(ends, i, side="right"))] for i in range(len(done))]
    else:
        drawn = assign_splits(len(done), _DEFAULT_SPLIT)
        order = np.random.default_rng(settings.seed).permutation(len(done))
        splits = [drawn[index] for index in order]
    assigned = []
    for track, chosen in zip(done, splits, strict=True):
        split = track.candidate.split or chosen
        target = output / split / track.folder.name
        if track.folder != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            check_owned(target, _owned(target))
            if os.path.lexists(target) and not remove_owned(target, _owned(target)):
                raise FileExistsError(f"{target} is out of date and cannot be removed: delete it")
            os.replace(track.folder, target)
        assigned.append((split, track))
    _remove_unassigned(output / _UNASSIGNED)
    return assigned


def _remove_unassigned(folder: Path) -> None:
    """Remove unassigned tracks of former runs that this run does not use."""
    if not folder.is_dir():
        return
    remove_leftovers(folder)
    for track in folder.iterdir():
        if owned := _owned(track):
            remove_owned(track, owned)
    with suppress(OSError):  # it holds something else
        folder.rmdir()


def _write_manifest(
    output: Path,
    settings: _Settings,
    tracks: list[tuple[str, _Done]],
    skipped: dict[str, str],
    find_songs: bool,
) -> None:
    generated = _is_generated(tracks[0][1].candidate.folder)
    songs = {t.candidate.origin: t.song for _, t in tracks if t.song is not None}
    if find_songs and not generated:
        songs |= _found_songs(output, [track for track in tracks if track[1].song is None])
    entries = [
        {
            "name": track.folder.name,
            "split": split,
            "samples": track.record["samples"],
            "gain": track.record["gain"],
            "origin": track.candidate.origin,
            "files": {
                file: {"path": f"{split}/{track.folder.name}/{file}.flac", "sha256": checksum}
                for file, checksum in track.record["sha256"].items()
            },
        }
        | ({"song": songs[origin]} if (origin := track.candidate.origin) in songs else {})
        for split, track in tracks
    ]
    manifest = {
        "version": MANIFEST_VERSION,
        "sample_rate": settings.sample_rate,
        "sources": list(settings.sources),
        "alpha": {name: 1 / len(settings.sources) for name in settings.sources},
        "tracks": entries,
        "skipped": [{"name": name, "reason": reason} for name, reason in skipped.items()],
        "settings": settings.record() | {"generated": generated},
    }
    write_json(output / MANIFEST_NAME, manifest)


def _found_songs(output: Path, tracks: Sequence[tuple[str, _Done]]) -> dict[str, str]:
    """{origin of a track: name of the first one that shares its audio}, for tracks that share."""
    places = [output / split / track.folder.name for split, track in tracks]
    first = shared_audio([audio.load(place / "mixture.flac")[0][0].numpy() for place in places])
    return {
        track.candidate.origin: places[number].name
        for (_, track), number in zip(tracks, first, strict=True)
        if first.count(number) > 1
    }


def _is_generated(folder: Path) -> bool:
    """Return whether this project rendered the track: its metadata name the generator."""
    return "generator" in read_metadata(folder)
