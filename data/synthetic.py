"""A data set in Slakh2100's layout, rendered from composed songs or from MIDI files.

    OUTPUT/synthetic.json                              how it was made
    OUTPUT/{train,validation,test}/TrackNNNNN/         see `data.layout`

`mix.flac` is the sum of the stems to the last bit. Splits are by song. An interrupted run goes on
where it stopped: a track's folder appears only when it is whole.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import multiprocessing
import os
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pretty_midi
import soundfile
import yaml
from tqdm import tqdm

from data.composer import PARTS, compose
from data.layout import (
    INST_CLASSES,
    SPLITS,
    assign_splits,
    check_fractions,
    claim_folder,
    fold_name,
    inst_class,
)
from data.midi import cut, read_midi, reorchestrate, stem_groups
from data.render import Renderer, block_powers, loudness
from jukebox_core.files import atomic_folder, sha256

__all__ = ["SyntheticData", "make_synthetic"]

_RECORD = "synthetic.json"
_TARGET_PEAK = -1.0  # dBFS, of the mix or the loudest stem
_LEVELS = {"Bass": -20.0, "Drums": -20.0}  # dBFS of the RMS while it plays
_OTHER_LEVEL = -24.0
_LEVEL_SPREAD = 4.0  # dB either way
_LONGEST = 1200.0  # seconds of a MIDI file: all its stems are held in memory


class SyntheticData(NamedTuple):
    """What a run made."""

    tracks: list[Path]
    skipped: dict[str, str]  # MIDI file: reason


@dataclass(frozen=True)
class _Settings:
    """What the audio depends on, besides the song."""

    seed: int
    seconds: float | None
    sample_rate: int
    split: tuple[float, float, float]
    parts: tuple[str, ...] | None
    reprogram: bool
    soundfont: str | None


@dataclass(frozen=True)
class _Song:
    """One track to write. Without a MIDI file it is composed from (seed, number)."""

    number: int
    folder: Path
    midi: Path | None


def make_synthetic(
    output: str | Path,
    *,
    tracks: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    midi_dir: str | Path | None = None,
    sample_rate: int = 44100,
    split: Sequence[float] = (0.7, 0.1, 0.2),
    parts: Sequence[str] | None = None,
    reprogram: bool = False,
    soundfont: str | Path | None = None,
    workers: int | None = 1,
) -> SyntheticData:
    """Write a data set; see the module's docstring.

    Args:
        output: Folder to write to. One that this function began, with the same settings, is
            finished or extended.
        tracks: Number of songs; None is 20 composed ones, or all MIDI files.
        seconds: Length of a song; None is 30 for composed songs and the whole of a MIDI file. A cut
            begins where the last of bass and drums enters.
        seed: Chooses the songs, levels and order of MIDI files.
        midi_dir: Folder of .mid files (searched with its subfolders) to use instead of composing.
        sample_rate: Slakh2100 has 44,100 Hz.
        split: Shares of train, validation and test.
        parts: What plays; the fewer, the faster. Composed songs have any of `composer.PARTS`; of
            MIDI files these are instrument classes (`data.layout`). None is everything.
        reprogram: Render with other basses, kits and instruments than the notes ask for, for a
            test set of unheard sounds.
        soundfont: An sf2 file instead of the small one inside pretty_midi.
        workers: Processes; None is one per CPU, fewer for few songs. The result is the same.

    Raises:
        ValueError: An argument is out of range; no MIDI file could be used; `output` holds
            something else.
        FileNotFoundError: There is no such folder of MIDI files, or soundfont.
    """
    output = Path(output)
    if tracks is not None and tracks < 1:
        raise ValueError(f"tracks is {tracks}, expected at least 1")
    if seconds is not None and not 1 <= seconds < math.inf:
        raise ValueError(f"seconds is {seconds}, expected at least 1")
    if seed < 0 or sample_rate < 8000 or (workers is not None and workers < 1):
        raise ValueError(
            f"seed is {seed}, sample rate {sample_rate}, workers {workers}; "
            "expected seed >= 0, sample rate >= 8000, workers >= 1"
        )
    files = None if midi_dir is None else _midi_files(Path(midi_dir), seed)
    if files is None:
        seconds, tracks, parts = seconds or 30.0, tracks or 20, PARTS if parts is None else parts
    known = PARTS if files is None else ("drums", *map(fold_name, INST_CLASSES))
    if parts is not None and (not parts or set(parts) - set(known)):
        raise ValueError(f"parts are {list(parts)}, expected some of {', '.join(known)}")
    settings = _Settings(
        seed=seed,
        seconds=seconds,
        sample_rate=sample_rate,
        split=check_fractions(split),
        parts=None if parts is None else tuple(sorted(set(parts))),
        reprogram=reprogram,
        soundfont=None if soundfont is None else str(soundfont),
    )
    Renderer(sample_rate, None if soundfont is None else Path(soundfont))  # fails before writing
    songs = _songs(output, settings, files, tracks)
    _claim(output, settings, files, len(songs))
    waiting = [song for song in songs if not song.folder.exists()]
    if workers is None:
        workers = min(os.cpu_count() or 1, 1 + len(waiting) // 8)
    skipped = _write_all(waiting, settings, workers)
    made = [song.folder for song in songs if song.folder.exists()]
    if not made:
        reason = next(iter(skipped.values()))
        raise ValueError(f"none of the {len(songs)} songs could be written, the first: {reason}")
    return SyntheticData(made, skipped)


def _midi_files(folder: Path, seed: int) -> list[Path]:
    """The MIDI files under a folder in an order that depends on the seed only."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to read MIDI files from")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".mid", ".midi"))
    if not files:
        raise ValueError(f"{folder} has no .mid files")
    return [files[index] for index in np.random.default_rng(seed).permutation(len(files))]


def _songs(
    output: Path, settings: _Settings, files: list[Path] | None, tracks: int | None
) -> list[_Song]:
    if files is not None:
        files = files[:tracks]
    count = tracks if files is None else len(files)
    assert count is not None
    splits = assign_splits(count, settings.split)
    return [
        _Song(
            number=index,
            folder=output / splits[index] / f"Track{index + 1:05d}",
            midi=None if files is None else files[index],
        )
        for index in range(count)
    ]


def _claim(output: Path, settings: _Settings, files: list[Path] | None, count: int) -> None:
    """Refuse a folder made with other settings, from other files, or with more songs."""
    record = asdict(settings)
    record["soundfont"] = None if settings.soundfont is None else sha256(settings.soundfont)
    record["midi"] = None if files is None else [[file.name, sha256(file)] for file in files]
    claim_folder(output, _RECORD, {"version": 1, **record})
    present = sum(1 for name in SPLITS for _ in (output / name).glob("Track*"))
    if present > count:
        raise ValueError(f"{output} holds {present} tracks already, {count} were asked for")


def _write_all(songs: list[_Song], settings: _Settings, workers: int) -> dict[str, str]:
    """Write the songs, in this process or several; returns what was skipped and why."""
    skipped = {}
    with _mapping(settings, min(workers, len(songs))) as mapping:
        results = mapping(_write_track, songs, itertools.repeat(settings))
        progress = tqdm(results, total=len(songs), desc="rendering", unit="song", disable=None)
        for song, reason in zip(songs, progress, strict=True):
            if reason is not None:
                skipped[str(song.midi)] = reason
    return skipped


@contextlib.contextmanager
def _mapping(settings: _Settings, workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """The built-in `map`, or that of a process pool."""
    if workers <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)


_RENDERERS: dict[tuple[int, str | None], Renderer] = {}  # one per process: loading takes time


def _renderer(settings: _Settings) -> Renderer:
    key = (settings.sample_rate, settings.soundfont)
    if key not in _RENDERERS:
        soundfont = None if settings.soundfont is None else Path(settings.soundfont)
        _RENDERERS[key] = Renderer(settings.sample_rate, soundfont)
    return _RENDERERS[key]


def _write_track(song: _Song, settings: _Settings) -> str | None:
    """Write one track's folder; returns a reason if the song cannot be used."""
    rng = np.random.default_rng([settings.seed, song.number, zlib.crc32(b"track")])
    if song.midi is None:
        assert settings.seconds is not None and settings.parts is not None
        midi = compose([settings.seed, song.number], settings.seconds, parts=settings.parts)
        length = settings.seconds
    else:
        try:
            midi = read_midi(song.midi, settings.parts)
        except ValueError as error:
            return str(error)
        length = midi.get_end_time() + 1.0  # for the last notes to die away
        if settings.seconds is None and length > _LONGEST:
            return f"it lasts {length / 60:.0f} minutes: choose the seconds to render"
        if settings.seconds is not None:
            midi, length = cut(midi, settings.seconds), min(length, settings.seconds)
    if settings.reprogram:
        midi = reorchestrate(midi, rng)
    groups = stem_groups(midi)
    samples = round(length * settings.sample_rate)
    stems, mix, gain = _levelled(groups, samples, settings, rng)
    if not mix.any():
        return "it has no notes that sound"
    with atomic_folder(song.folder) as folder:
        _write_audio(folder, stems, mix, settings.sample_rate)
        _write_midi(folder, midi, groups)
        description = _describe(song, settings, groups, stems, gain)
        text = yaml.safe_dump(description, sort_keys=True)
        (folder / "metadata.yaml").write_text(text, encoding="utf-8")
    return None


def _levelled(
    groups: list[list[pretty_midi.Instrument]],
    samples: int,
    settings: _Settings,
    rng: np.random.Generator,
) -> tuple[list[np.ndarray], np.ndarray, float]:
    """Stems `[T]` and their sum as int16, and the gain that kept the sum from clipping."""
    stems = []
    for group in groups:
        audio = _renderer(settings)(group, samples)
        name = inst_class(group[0].program, group[0].is_drum)
        level = _LEVELS.get(name, _OTHER_LEVEL) + rng.uniform(-_LEVEL_SPREAD, _LEVEL_SPREAD)
        powers = block_powers(audio, settings.sample_rate)
        playing = powers[powers > powers.max() * 1e-4]
        if len(playing) > 0:
            audio *= np.float32(10 ** (level / 20) / math.sqrt(playing.mean()))
        stems.append(audio)
    if not stems:
        return [], np.zeros(samples, dtype=np.int16), 1.0
    peak = max(float(np.abs(audio).max()) for audio in (*stems, np.stack(stems).sum(0)))
    gain = min(1.0, 10 ** (_TARGET_PEAK / 20) / peak) if peak > 0 else 1.0
    whole = [np.rint(audio * np.float32(gain * 32768)).astype(np.int16) for audio in stems]
    return whole, np.stack(whole).sum(0, dtype=np.int16), gain


def _write_audio(folder: Path, stems: list[np.ndarray], mix: np.ndarray, rate: int) -> None:
    (folder / "stems").mkdir()
    soundfile.write(folder / "mix.flac", mix, rate, subtype="PCM_16")
    for index, stem in enumerate(stems):
        if stem.any():
            soundfile.write(folder / "stems" / f"S{index:02d}.flac", stem, rate, subtype="PCM_16")


def _write_midi(
    folder: Path, midi: pretty_midi.PrettyMIDI, groups: list[list[pretty_midi.Instrument]]
) -> None:
    (folder / "MIDI").mkdir()
    midi.write(str(folder / "all_src.mid"))
    for index, group in enumerate(groups):
        single = copy.copy(midi)  # the tempo map stays
        single.instruments = group
        single.write(str(folder / "MIDI" / f"S{index:02d}.mid"))


def _describe(
    song: _Song,
    settings: _Settings,
    groups: list[list[pretty_midi.Instrument]],
    stems: list[np.ndarray],
    gain: float,
) -> dict[str, Any]:
    """The content of metadata.yaml, with Slakh2100's keys and one more, `generator`."""
    name = song.folder.name
    origin = "composed" if song.midi is None else song.midi.name
    soundfont = _renderer(settings).soundfont.name
    described = {}
    for index, (group, stem) in enumerate(zip(groups, stems, strict=True)):
        program, is_drum = int(group[0].program), bool(group[0].is_drum)
        entry: dict[str, Any] = {
            "audio_rendered": bool(stem.any()),
            "inst_class": inst_class(program, is_drum),
            "is_drum": is_drum,
            "midi_program_name": "Drums"
            if is_drum
            else pretty_midi.program_to_instrument_name(program),
            "midi_saved": True,
            "plugin_name": soundfont if stem.any() else "None",
            "program_num": 128 if is_drum else program,
        }
        level = loudness(stem / np.float32(32768 * gain), settings.sample_rate)
        if math.isfinite(level):
            entry["integrated_loudness"] = level
        described[f"S{index:02d}"] = entry
    return {
        "UUID": uuid.uuid5(uuid.NAMESPACE_URL, f"{origin}/{settings.seed}/{song.number}").hex,
        "audio_dir": f"{name}/stems",
        "generator": {"seed": settings.seed, "song": song.number, "origin": origin},
        "lmd_midi_dir": origin,
        "midi_dir": f"{name}/MIDI",
        "normalization_factor": _LEVELS["Bass"],
        "normalized": True,
        "overall_gain": gain,
        "stems": described,
        "target_peak": _TARGET_PEAK,
    }
