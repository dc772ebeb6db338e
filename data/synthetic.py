"""Render composed songs or MIDI files as a data set in Slakh2100's layout.

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
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pretty_midi
import torch
import yaml
from tqdm import tqdm

from data.composer import PARTS, STYLES, Style, compose
from data.groove import Take, digest, read_takes
from data.layout import (
    INST_CLASSES,
    SPLITS,
    assign_splits,
    check_fractions,
    check_workers,
    claim,
    fold_name,
    inst_class,
    read_metadata,
    require_rate,
)
from data.midi import cut, read_midi, reorchestrate, stem_groups
from data.render import block_powers, loudness
from data.sounds import SongSounds, Sources, find_drumkits, find_soundfonts
from jukebox_core import audio
from jukebox_core.audio.production import EFFECTS, Production
from jukebox_core.checks import one_line, require, require_choice, require_fields
from jukebox_core.files import atomic_folder, check_owned, sha256, write_json
from jukebox_core.machine import free_bytes
from jukebox_core.parent import end_with_parent

RECORD = "synthetic.json"
_LATER = (
    "style",
    "groove",
    "groove_share",
    "midi_share",
    "production",
    "production_share",
    "level",
    "drumkit",
    "programs",
)
"""Settings that earlier versions did not record: recorded only where they are used."""
_TARGET_PEAK = -1.0  # dBFS, of the mix or the loudest stem
_LEVELS = {"Bass": -20.0, "Drums": -20.0}  # dBFS of the RMS while it plays
_OTHER_LEVEL = -24.0
_LEVEL_SPREAD = 4.0  # dB either way
_LOUDNESS = -13.0  # LUFS of every stem in Slakh2100, before the gain that prevents clipping
_LONGEST = 1200.0  # seconds of a MIDI file: all its stems are held in memory
MOST_SECONDS = 86_400  # longest song: a day of audio takes hours to render
MOST_TRACKS = 99_999  # TrackNNNNN
_PROCESS_BYTES = 250 << 20  # memory of one worker process: libraries and the soundfont


class SyntheticData(NamedTuple):
    """The result of a run."""

    tracks: list[Path]
    skipped: dict[str, str]  # {MIDI file or track: reason}


@dataclass(frozen=True)
class _Settings:
    """Settings of the audio besides the song."""

    seed: int
    seconds: float | None
    sample_rate: int
    split: tuple[float, float, float]
    parts: tuple[str, ...] | None
    reprogram: bool
    style: Style
    groove_share: float | None
    midi_share: float | None
    production: tuple[str, ...]
    production_share: float | None
    level: str
    soundfont: tuple[str, ...]
    drumkit: tuple[str, ...]
    programs: str

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_choice("style", self.style, STYLES)
        shares = ("groove_share", "midi_share", "production_share")
        require_fields(self, *shares, above=0, at_most=1, optional=True)
        require_fields(self, "seed", whole=True, at_least=0)
        require_choice("level", self.level, ("rms", "loudness"))
        require_fields(self, "seconds", at_least=1, at_most=MOST_SECONDS, optional=True)
        require_rate(self, at_least=8000)
        require_choice("programs", self.programs, ("song", "all"))
        if self.reprogram and self.programs == "all":
            raise ValueError("programs is 'all', expected 'song': reprogram chooses them itself")

    @property
    def sources(self) -> Sources:
        """The soundfonts and drum kits that songs draw from."""
        return Sources(self.sample_rate, self.soundfont, self.drumkit, self.programs == "all")

    def bytes_of(self, seconds: float, stems: int) -> float:
        """Return the bytes of memory to render a song."""
        return (32 + 8 * stems + 60 * bool(self.production)) * seconds * self.sample_rate


@dataclass(frozen=True)
class _Song:
    """One track to write. Without a MIDI file it is composed from (seed, number)."""

    number: int
    folder: Path
    midi: Path | None
    take: Take | None = None


def make_synthetic(
    output: str | Path,
    *,
    tracks: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    midi_dir: str | Path | None = None,
    midi_share: float | None = None,
    sample_rate: int = 44100,
    split: Sequence[float] = (0.7, 0.1, 0.2),
    parts: Sequence[str] | None = None,
    reprogram: bool = False,
    style: Style = "plain",
    groove: str | Path | None = None,
    groove_share: float | None = None,
    production: Sequence[str] = (),
    production_share: float | None = None,
    level: Literal["rms", "loudness"] = "rms",
    soundfont: str | Path | Sequence[str | Path] | None = None,
    drumkit: str | Path | Sequence[str | Path] | None = None,
    programs: Literal["song", "all"] = "song",
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
        midi_dir: Folder of .mid files to use instead of composing. It is searched with its
            subfolders, except the tracks in `output`.
        midi_share: Share of the songs that are MIDI files, each at most once; the others are
            composed. None is all, where there is a folder of MIDI files.
        sample_rate: Slakh2100 has 44,100 Hz.
        split: Shares of train, validation and test.
        parts: What plays; the fewer, the faster. Composed songs have any of `composer.PARTS`; of
            MIDI files these are instrument classes (`data.layout`). None is everything.
        reprogram: Render with other basses, kits and instruments than the notes ask for, for a
            test set of unheard sounds.
        style: Of composed songs, see `data.composer.compose`.
        groove: Folder of drum takes by people (`data.groove`). Composed songs take their drum part
            from the takes of their own split.
        groove_share: Share of the songs that do; None is a half.
        production: Effects that stems may get (`jukebox_core.audio.production`), or `all`. Each
            stem draws its own; notes, instruments and levels stay.
        production_share: Share of the songs whose stems may get effects; None is all.
        level: Stems have a drawn RMS while they play (`rms`), or all the same integrated loudness
            as in Slakh2100 (`loudness`).
        soundfont: One or several soundfonts instead of the small one inside pretty_midi, as for
            `sounds.find_soundfonts`. A song draws one for its bass, one for its drums and one for
            all others.
        drumkit: Kits of samples in Hydrogen's format, as for `sounds.find_drumkits`. Half of the
            songs have drums of one of these.
        programs: `song` plays the programs and kits that the songs ask for. `all` draws the bass
            and the drum kit from all that the drawn soundfont has, except those that `reprogram`
            chooses from in the embedded soundfont.
        workers: Processes; None is one per CPU, fewer for few songs. The result is the same.

    Raises:
        ValueError: An argument is out of range, or needs more memory than is free; no MIDI file
            could be used; `output` was made with other settings.
        FileNotFoundError: There is no such folder of MIDI files or of takes, soundfont or drum kit.
        FileExistsError: Something that no run wrote is in the place of an output.
        OSError: A file cannot be written.
    """
    output = Path(output)
    if tracks is not None:
        require("tracks", tracks, whole=True, at_least=1, at_most=MOST_TRACKS)
    check_workers(workers)
    if midi_dir is None and midi_share is not None:
        raise ValueError(f"midi_share is {midi_share}, but there is no folder of MIDI files")
    composes = midi_dir is None or midi_share is not None
    if composes:
        tracks = 20 if tracks is None else tracks
        seconds = 30.0 if seconds is None else seconds
        parts = PARTS if parts is None else parts
    elif style != "plain" or groove is not None:
        name = "style" if groove is None else "groove"
        raise ValueError(f"{name} is for composed songs, but MIDI files are rendered: leave it out")
    if groove is not None:
        groove_share = 0.5 if groove_share is None else groove_share
    elif groove_share is not None:
        raise ValueError(
            f"groove_share is {groove_share}, but there is no folder of takes (groove)"
        )
    choices = PARTS if composes else ("drums", *map(fold_name, INST_CLASSES))
    if parts is not None and (not parts or set(parts) - set(choices)):
        raise ValueError(f"parts are {list(parts)}, expected some of {', '.join(choices)}")
    if production_share is not None and not production:
        raise ValueError(
            f"production_share is {production_share}, but there are no effects (production)"
        )
    if set(production) - {*EFFECTS, "all"}:
        names = ", ".join(EFFECTS)
        raise ValueError(f"production is {list(production)}, expected some of {names}, or all")
    settings = _Settings(
        seed=seed,
        seconds=seconds,
        sample_rate=sample_rate,
        split=check_fractions(split),
        parts=None if parts is None else tuple(sorted(set(parts))),
        reprogram=reprogram,
        style=style,
        groove_share=groove_share,
        midi_share=midi_share,
        production=tuple(name for name in EFFECTS if {name, "all"} & set(production)),
        production_share=production_share,
        level=level,
        soundfont=() if soundfont is None else find_soundfonts(_listed(soundfont)),
        drumkit=() if drumkit is None else find_drumkits(_listed(drumkit)),
        programs=programs,
    )
    takes = [] if groove is None else read_takes(groove)
    files = None if midi_dir is None else _midi_files(Path(midi_dir), output, seed)
    settings.sources.check()
    songs = _with_takes(_songs(output, settings, files, tracks), settings, takes)
    record = _record_of(settings, files, takes)
    with claim(output, RECORD, record) as claimed:
        waiting = _waiting(output, settings, songs)
        workers = _processes(workers, len(waiting), settings)
        if not claimed:
            kept = {k: v for k, v in record.items() if v is not None or k not in _LATER}
            write_json(output / RECORD, kept)
        unusable = _write_all(waiting, settings, workers)
        if len(unusable) == len(songs):
            if not claimed:
                (output / RECORD).unlink()  # so that other settings can be tried
            reason = next(iter(unusable.values()))
            raise ValueError(
                f"none of the {len(songs)} songs could be written, the first: {reason}"
            )
    return SyntheticData(
        [song.folder for song in songs if song not in unusable],
        {str(song.midi or song.folder.name): reason for song, reason in unusable.items()},
    )


def _listed(paths: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [paths] if isinstance(paths, str | Path) else paths


def _midi_files(folder: Path, output: Path, seed: int) -> list[Path]:
    """Return the MIDI files under a folder, in an order that depends only on the seed.

    MIDI files of tracks in `output` are left out.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to read MIDI files from")
    written = [Path(os.path.realpath(output / split)) for split in SPLITS]

    def is_input(path: Path) -> bool:
        if path.suffix.lower() not in (".mid", ".midi") or path.is_dir():
            return False
        there = Path(os.path.realpath(path.parent))
        return not any(there.is_relative_to(place) for place in written)

    files = sorted(path for path in folder.rglob("*") if is_input(path))
    if not files:
        raise ValueError(f"{folder} has no .mid files")
    return [files[index] for index in np.random.default_rng(seed).permutation(len(files))]


def _songs(
    output: Path, settings: _Settings, files: list[Path] | None, tracks: int | None
) -> list[_Song]:
    midis: Sequence[Path | None]
    if files is None:
        midis = [None] * (tracks or 0)
    elif settings.midi_share is None:
        midis = files[:tracks]
    else:
        midis = _mixed(files, settings.midi_share, settings.seed, tracks or 0)
    splits = assign_splits(len(midis), settings.split)
    return [
        _Song(number, output / split / f"Track{number + 1:05d}", midi)
        for number, (split, midi) in enumerate(zip(splits, midis, strict=True))
    ]


def _mixed(files: list[Path], share: float, seed: int, tracks: int) -> list[Path | None]:
    """Return a MIDI file for a share of the songs, whatever the number of songs."""
    streams = (np.random.default_rng([seed, n, zlib.crc32(b"midi")]) for n in range(tracks))
    chosen = [stream.random() < share for stream in streams]
    if sum(chosen) > len(files):
        raise ValueError(
            f"midi_share gives {sum(chosen)} of {tracks} songs a MIDI file, but there are "
            f"{len(files)}: lower the share or the number of songs"
        )
    remaining = iter(files)
    return [next(remaining) if is_midi else None for is_midi in chosen]


def _with_takes(songs: list[_Song], settings: _Settings, takes: list[Take]) -> list[_Song]:
    """Give some songs a take of their split, whatever the number of songs."""
    if settings.groove_share is None:
        return songs
    result = []
    for song in songs:
        split = song.folder.parent.name
        usable = [take for take in takes if take.split == split]
        if not usable:
            raise ValueError(
                f"groove has no usable takes of the split {split}: choose another split"
            )
        rng = np.random.default_rng([settings.seed, song.number, zlib.crc32(b"groove")])
        chosen = rng.random() < settings.groove_share and song.midi is None
        take = usable[int(rng.integers(len(usable)))]
        result.append(replace(song, take=take) if chosen else song)
    return result


def _record_of(settings: _Settings, files: list[Path] | None, takes: list[Take]) -> dict[str, Any]:
    """Return how a data set is made."""
    record = {"version": 1, **asdict(settings), **settings.sources.record}
    record["midi"] = None if files is None else [[file.name, _digest(file)] for file in files]
    return record | {
        "style": None if settings.style == "plain" else settings.style,
        "groove": digest(takes) if takes else None,
        "production": settings.production or None,
        "level": None if settings.level == "rms" else settings.level,
    }


def _waiting(output: Path, settings: _Settings, songs: list[_Song]) -> list[_Song]:
    """Return the songs that are not written yet.

    Refuses a folder with more songs, and one with tracks that no run wrote.
    """
    present = sum(1 for name in SPLITS for _ in (output / name).glob("Track*"))
    if present > len(songs):
        raise ValueError(
            f"{output} already holds {present} tracks, not {len(songs)}: choose another "
            "output, or ask for more"
        )
    waiting = [song for song in songs if not _is_written(song, settings)]
    for song in waiting:
        check_owned(song.folder)
    return waiting


def _digest(file: Path) -> str | None:
    """Return the SHA-256 of a MIDI file; None if it cannot be read, so that it is skipped later."""
    try:
        return sha256(file) if file.is_file() else None
    except OSError:
        return None


def _is_written(song: _Song, settings: _Settings) -> bool:
    """Return whether metadata.yaml records that a run wrote the song."""
    try:
        record = read_metadata(song.folder)["generator"]
        return (record["seed"], record["song"]) == (settings.seed, song.number)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _processes(workers: int | None, songs: int, settings: _Settings) -> int:
    """Return the number of processes; refuse songs or workers that do not fit in memory."""
    free = free_bytes(torch.device("cpu"))
    each = 0.0
    if settings.seconds is not None and settings.parts is not None:
        each = settings.bytes_of(settings.seconds, len(settings.parts))
    if each > free:
        raise ValueError(
            f"seconds is {settings.seconds} and sample_rate {settings.sample_rate}: rendering such "
            f"a song takes {each / 1e9:,.1f} GB of memory, but only {free / 1e9:,.1f} GB are free"
        )
    fitting = max(1, int(free / (each + _PROCESS_BYTES + settings.sources.memory)))
    if workers is None:
        return min(os.cpu_count() or 1, 1 + songs // 8, fitting)
    if min(workers, songs) > fitting:
        raise ValueError(
            f"workers is {workers}, the memory is enough for {fitting} processes that render songs "
            "of this length"
        )
    return workers


def _write_all(songs: list[_Song], settings: _Settings, workers: int) -> dict[_Song, str]:
    """Write the songs, in one or several processes; return {unusable song: reason}."""
    with _mapping(min(workers, len(songs))) as mapping:
        results = mapping(_write_track, songs, itertools.repeat(settings))
        progress = tqdm(results, total=len(songs), desc="rendering", unit="song", disable=None)
        reasons = zip(songs, progress, strict=True)
        return {song: reason for song, reason in reasons if reason is not None}


@contextlib.contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield the built-in `map` or the `map` of a process pool."""
    if workers <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
        try:
            yield pool.map
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a rendering process was killed, perhaps because memory ran out: choose fewer "
                "workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _write_track(song: _Song, settings: _Settings) -> str | None:
    """Write one track's folder; return the reason if the song cannot be used."""
    rng = np.random.default_rng([settings.seed, song.number, zlib.crc32(b"track")])
    if song.midi is None:
        assert settings.seconds is not None and settings.parts is not None
        try:
            midi = compose(
                [settings.seed, song.number],
                settings.seconds,
                parts=settings.parts,
                style=settings.style,
                take=song.take,
            )
        except ValueError as error:
            if song.take is None:
                raise
            return one_line(error)
        length = settings.seconds
    else:
        try:
            midi = read_midi(song.midi, settings.parts)
        except ValueError as error:
            return one_line(error)
        length = midi.get_end_time() + 1.0  # for the last notes to die away
        if settings.seconds is None and length > _LONGEST:
            return f"it lasts {length / 60:.0f} minutes: choose the seconds to render"
        if settings.seconds is not None:
            midi, length = cut(midi, settings.seconds), min(length, settings.seconds)
    if settings.reprogram:
        midi = reorchestrate(midi, rng)
    groups = stem_groups(midi)
    if song.midi and settings.bytes_of(length, len(groups)) > free_bytes(torch.device("cpu")):
        return f"its {len(groups)} stems of {length / 60:.0f} minutes do not fit in memory"
    renderer = settings.sources.draw(groups, [settings.seed, song.number])
    samples = round(length * settings.sample_rate)
    productions = _draw_productions(song, settings, len(groups))
    stems, mix, gain = _levelled(groups, productions, settings.level, samples, renderer, rng)
    if not mix.any():
        return "it has no notes that sound"
    with atomic_folder(song.folder) as folder:
        _write_audio(folder, stems, mix, settings.sample_rate)
        _write_midi(folder, midi, groups)
        description = _describe(song, settings, renderer, groups, productions, stems, gain)
        text = yaml.safe_dump(description)
        (folder / "metadata.yaml").write_text(text, encoding="utf-8")
    return None


def _draw_productions(song: _Song, settings: _Settings, stems: int) -> list[Production]:
    """Draw the effects of every stem, each from its own random stream; none for a dry song."""
    rng = np.random.default_rng([settings.seed, song.number, zlib.crc32(b"production share")])
    effects = settings.production
    if settings.production_share is not None and rng.random() >= settings.production_share:
        effects = ()
    seed = (settings.seed, song.number, zlib.crc32(b"production"))
    streams = [np.random.default_rng([*seed, stem]) for stem in range(stems)]
    return [Production.draw(stream, effects) for stream in streams]


def _levelled(
    groups: list[list[pretty_midi.Instrument]],
    productions: list[Production],
    kind: str,
    samples: int,
    renderer: SongSounds,
    rng: np.random.Generator,
) -> tuple[list[np.ndarray], np.ndarray, float]:
    """Return stems `[T]` and their sum as int16, and the gain that prevents clipping."""
    stems = []
    for group, production in zip(groups, productions, strict=True):
        wave = production(renderer(group, samples), renderer.sample_rate)
        name = inst_class(group[0].program, group[0].is_drum)
        level = _LEVELS.get(name, _OTHER_LEVEL) + rng.uniform(-_LEVEL_SPREAD, _LEVEL_SPREAD)
        powers = block_powers(wave, renderer.sample_rate)
        playing = powers[powers > powers.max() * 1e-4]
        if len(playing) > 0:
            wave *= np.float32(10 ** (level / 20) / math.sqrt(playing.mean()))
        if kind == "loudness" and math.isfinite(now := loudness(wave, renderer.sample_rate)):
            wave *= np.float32(10 ** ((_LOUDNESS - now) / 20))
        stems.append(wave)
    if not stems:
        return [], np.zeros(samples, dtype=np.int16), 1.0
    peak = max(float(np.abs(wave).max()) for wave in (*stems, np.stack(stems).sum(0)))
    gain = min(1.0, 10 ** (_TARGET_PEAK / 20) / peak) if peak > 0 else 1.0
    whole = [np.rint(wave * np.float32(gain * 32768)).astype(np.int16) for wave in stems]
    return whole, np.stack(whole).sum(0, dtype=np.int16), gain


def _write_audio(folder: Path, stems: list[np.ndarray], mix: np.ndarray, rate: int) -> None:
    (folder / "stems").mkdir()
    audible = {f"stems/S{index:02d}": stem for index, stem in enumerate(stems) if stem.any()}
    for name, samples in {"mix": mix, **audible}.items():
        exact = torch.from_numpy(samples.astype(np.float32) / np.float32(32768))
        audio.save(folder / f"{name}.flac", exact, rate, subtype="PCM_16")


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
    renderer: SongSounds,
    groups: list[list[pretty_midi.Instrument]],
    productions: list[Production],
    stems: list[np.ndarray],
    gain: float,
) -> dict[str, Any]:
    """Return the content of metadata.yaml: Slakh2100's keys and `generator`."""
    name = song.folder.name
    origin = "composed"
    if song.midi is not None:  # its name may not be UTF-8
        origin = os.fsencode(song.midi.name).decode("utf-8", "backslashreplace")
    described = {}
    for index, (group, stem) in enumerate(zip(groups, stems, strict=True)):
        program, is_drum = int(group[0].program), bool(group[0].is_drum)
        program_name = "Drums" if is_drum else pretty_midi.program_to_instrument_name(program)
        entry: dict[str, Any] = {
            "audio_rendered": bool(stem.any()),
            "inst_class": inst_class(program, is_drum),
            "is_drum": is_drum,
            "midi_program_name": program_name,
            "midi_saved": True,
            "plugin_name": renderer.name(group) if stem.any() else "None",
            "program_num": 128 if is_drum else program,
        }
        level = loudness(stem / np.float32(32768 * gain), renderer.sample_rate)
        if math.isfinite(level):
            entry["integrated_loudness"] = level
        described[f"S{index:02d}"] = entry
    seed = settings.seed
    generator: dict[str, Any] = {"seed": seed, "song": song.number, "origin": origin}
    if song.take is not None:
        generator["take"] = song.take.name
    if settings.production:
        names = described.keys()
        generator["production"] = {
            name: drawn.as_dict() for name, drawn in zip(names, productions, strict=True)
        }
    return {
        "UUID": uuid.uuid5(uuid.NAMESPACE_URL, f"{origin}/{seed}/{song.number}").hex,
        "audio_dir": f"{name}/stems",
        "generator": generator,
        "lmd_midi_dir": origin,
        "midi_dir": f"{name}/MIDI",
        "normalization_factor": _LOUDNESS if settings.level == "loudness" else _LEVELS["Bass"],
        "normalized": True,
        "overall_gain": gain,
        "stems": described,
        "target_peak": _TARGET_PEAK,
    }
