"""Drum takes played by people, from a folder in the layout of the Groove MIDI Dataset.

    GROOVE/info.csv             a row per take: bpm, beat_type, time_signature, midi_filename, ...
    GROOVE/<midi_filename>      the take, with velocities and microtiming

The dataset (Gillick et al. 2019, https://magenta.tensorflow.org/datasets/groove, CC BY 4.0) was
recorded to a metronome on a Roland TD-11. A take becomes the drum part of a composed song; the
other parts follow its tempo, metre and accents.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pretty_midi

from data.layout import SPLITS
from data.midi import read_midi, tidy
from data.parts import KINDS, Bar, Hit, Song
from jukebox_core.files import sha256

SHORTEST = 10.0
"""Seconds of the shortest take that is used."""

# Notes of the TD-11 that General MIDI lacks or gives to another sound: edges of the hi-hat and of
# the crash cymbals, rim of the third tom.
_GENERAL_MIDI = {22: 42, 26: 46, 52: 57, 55: 49, 58: 43}
_KICKS = (35, 36)
_LEAST_SECONDS = 0.02  # of a note
_REACH = {"kick": 0.75, "other": 0.6}  # sixteenths from which a hit attracts an onset


@dataclass(frozen=True)
class Take:
    """A row of info.csv."""

    path: Path
    name: str  # `midi_filename` without its suffix
    bpm: float  # quarters a minute
    metre: tuple[int, int]
    split: str

    @property
    def steps(self) -> int:
        """Sixteenths in a bar."""
        return self.metre[0] * 16 // self.metre[1]

    @property
    def bar_seconds(self) -> float:
        """Length of a bar in seconds."""
        return self.steps * 15 / self.bpm


def read_takes(folder: str | Path) -> list[Take]:
    """Read info.csv.

    Args:
        folder: In the layout of the Groove MIDI Dataset.

    Returns:
        The takes of type `beat` that last at least `SHORTEST` seconds and whose file is there.

    Raises:
        FileNotFoundError: There is no info.csv.
        ValueError: It is no such table, or lists no usable take.
    """
    table = Path(folder) / "info.csv"
    if not table.is_file():
        raise FileNotFoundError(
            f"groove folder {folder} has no info.csv, expected the Groove MIDI Dataset's layout"
        )
    try:
        with open(table, newline="", encoding="utf-8") as file:
            takes = [
                _take(table.parent, row)
                for row in csv.DictReader(file)
                if row["beat_type"] == "beat" and float(row["duration"]) >= SHORTEST
            ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(
            f"groove folder {folder}: info.csv is no table of the Groove MIDI Dataset ({error})"
        ) from error
    takes = [take for take in takes if take.path.is_file() and take.split in SPLITS]
    if not takes:
        raise ValueError(
            f"groove folder {folder} has no take of type beat that lasts {SHORTEST:g} seconds"
        )
    return sorted(takes, key=lambda take: take.name)


def _take(folder: Path, row: dict[str, str]) -> Take:
    beats, unit = map(int, row["time_signature"].split("-"))
    bpm = float(row["bpm"])
    if not (1 <= beats <= 32 and unit in (2, 4, 8, 16) and 20 <= bpm <= 400):
        raise ValueError(f"{row['midi_filename']} has {bpm:g} bpm in {beats}/{unit}")
    path = folder / row["midi_filename"]
    name = row["midi_filename"].removesuffix(".mid")
    return Take(path, name, bpm, (beats, unit), row["split"])


def digest(takes: Sequence[Take]) -> str:
    """SHA-256 of everything that songs take from the takes.

    Raises:
        OSError: A file cannot be read.
    """
    text = "".join(f"{t.name} {t.bpm} {t.metre} {t.split} {sha256(t.path)}\n" for t in takes)
    return hashlib.sha256(text.encode()).hexdigest()


class Performance:
    """A take as the drum part of a song.

    The song begins with a bar of the take that the random generator chooses. After the take's last
    bar follows its first.

    Args:
        take: What to play.
        seconds: Length of the song; notes are cut at the end.
        rng: One number is drawn from it, whatever the length.

    Attributes:
        notes: The drum part with General MIDI's note numbers, by onset.

    Raises:
        ValueError: The take's file cannot be read as MIDI, or has no drums.
    """

    def __init__(self, take: Take, seconds: float, rng: np.random.Generator):
        try:
            instruments = read_midi(take.path, ("drums",)).instruments
        except ValueError as error:
            raise ValueError(f"take {take.name}: {error}") from error
        played = [note for instrument in instruments for note in instrument.notes]
        bar, self._step = take.bar_seconds, 15 / take.bpm
        early = self._step / 2  # an onset just before a bar line belongs to the next bar
        onsets = sorted(note.start for note in played)
        first = int((onsets[0] + early) // bar)
        bars = max(1, round(onsets[-1] / bar) - first)
        begin, period = first * bar, bars * bar
        played = [note for note in played if -early <= note.start - begin < period - early]
        shift = -begin - int(rng.integers(bars)) * bar
        notes = []
        for repeat in itertools.count():
            offset = shift + repeat * period
            if begin + offset - early >= seconds:
                break
            for note in played:
                start, end = note.start + offset, note.end + offset
                if -early <= start < seconds:
                    pitch = _GENERAL_MIDI.get(note.pitch, note.pitch)
                    start = max(0.0, start)
                    end = min(seconds, max(end, start + _LEAST_SECONDS))
                    notes.append(pretty_midi.Note(note.velocity, pitch, start, end))
        self.notes = tidy(notes)
        self._hits = {
            "kick": [note for note in self.notes if note.pitch in _KICKS],
            "other": [note for note in self.notes if note.pitch not in _KICKS],
        }
        self._onsets = {
            kind: np.array([note.start for note in notes]) for kind, notes in self._hits.items()
        }
        kicks = [note.velocity for note in played if note.pitch in _KICKS]
        self._loudness = float(np.mean(kicks)) if kicks else 0.0

    def attract(self, time: float) -> tuple[float, float]:
        """Move an onset to the nearest kick, or else to the nearest hit, if one is near.

        Returns:
            The onset in seconds, and a change of velocity: positive on loud kicks.
        """
        for kind, onsets in self._onsets.items():
            index = int(np.searchsorted(onsets, time))
            near = range(max(0, index - 1), min(len(onsets), index + 1))
            best = min(near, key=lambda i: abs(onsets[i] - time), default=None)
            if best is not None and abs(onsets[best] - time) <= _REACH[kind] * self._step:
                hit = self._hits[kind][best]
                return hit.start, (hit.velocity - self._loudness) / 3 if kind == "kick" else 0.0
        return time, 0.0

    def lock(
        self, song: Song, bars: Sequence[list[Hit]], rng: np.random.Generator
    ) -> list[list[Hit]]:
        """Give a bass line the rhythm of the kicks, in most kinds of sections."""
        locked = {kind: rng.random() < 0.75 for kind in KINDS}
        return [
            self._locked(song, bar, line, rng) if line and locked[bar.kind] else line
            for bar, line in zip(song.bars, bars, strict=True)
        ]

    def _locked(self, song: Song, bar: Bar, line: list[Hit], rng: np.random.Generator) -> list[Hit]:
        """Play the line's pitches on a bar's kicks, and few of its notes between them."""
        kicks: list[float] = []
        positions = (self._onsets["kick"] - song.time(bar.number, 0)) / self._step
        for position in positions[(positions >= -0.5) & (positions < song.steps - 0.5)]:
            if not kicks or position - kicks[-1] > 0.6:
                kicks.append(max(0.0, float(position)))
        between = [
            hit
            for hit in line
            if rng.random() < 0.3 and all(abs(hit.step - kick) > 1 for kick in kicks)
        ]
        if not kicks:
            return line
        solid = [hit for hit in line if hit.velocity >= 60] or line
        on_kicks = [
            max((hit for hit in solid if hit.step <= kick + 0.5), default=solid[0])._replace(
                step=kick
            )
            for kick in kicks
        ]
        hits = sorted([*on_kicks, *between])
        ends = [hit.step for hit in hits[1:]] + [float(song.steps)]
        return [
            hit._replace(length=min(hit.length, end - hit.step))
            for hit, end in zip(hits, ends, strict=True)
        ]
