"""MIDI songs as `pretty_midi` objects: read, cut, change instruments, split into stems."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi

from data.layout import fold_name, inst_class
from jukebox_core.checks import one_line

HELD_OUT_BASS = (35, 37, 39)
"""Basses that composed songs never play with the embedded soundfont; `reorchestrate` uses them."""

HELD_OUT_KITS = (24, 32)
"""Drum kits that composed songs never play with the embedded soundfont."""


def read_midi(path: Path, classes: Collection[str] | None = None) -> pretty_midi.PrettyMIDI:
    """Read a file, without its empty instruments.

    Args:
        path: A MIDI file.
        classes: Instrument classes to keep, folded (`bass`, `synth_lead`); None keeps all.

    Raises:
        ValueError: It cannot be used; the message says why.
    """
    if not path.is_file():
        raise ValueError("it is not a regular file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tempo changes on other tracks than the first
            midi = pretty_midi.PrettyMIDI(str(path))
    except Exception as error:  # damaged files raise every kind, from EOFError to KeyError
        text = one_line(error)
        raise ValueError(f"it cannot be read as MIDI ({text or type(error).__name__})") from error
    midi.instruments = [
        instrument
        for instrument in midi.instruments
        if instrument.notes and (classes is None or fold_name(_class_of(instrument)) in classes)
    ]
    if not midi.instruments:
        raise ValueError("it has no notes" + (f" of {', '.join(classes)}" if classes else ""))
    return midi


def _class_of(instrument: pretty_midi.Instrument) -> str:
    return inst_class(instrument.program, instrument.is_drum)


def cut(midi: pretty_midi.PrettyMIDI, seconds: float) -> pretty_midi.PrettyMIDI:
    """Cut a song so that it begins where both bass and drums play."""
    entries: dict[str, list[float]] = {"Bass": [], "Drums": []}
    for instrument in midi.instruments:
        starts = entries.get(_class_of(instrument), [])
        starts.extend(note.start for note in instrument.notes)
    start = max((min(starts) for starts in entries.values() if starts), default=0.0)
    piece = pretty_midi.PrettyMIDI(resolution=960)
    for instrument in midi.instruments:
        part = copy.copy(instrument)
        part.notes = [
            pretty_midi.Note(
                n.velocity, n.pitch, max(0.0, n.start - start), min(seconds, n.end - start)
            )
            for n in instrument.notes
            if n.end > start and n.start < start + seconds
        ]
        part.control_changes = _shifted(instrument.control_changes, start, seconds)
        part.pitch_bends = _shifted(instrument.pitch_bends, start, seconds)
        if part.notes:
            piece.instruments.append(part)
    return piece


def reorchestrate(midi: pretty_midi.PrettyMIDI, rng: np.random.Generator) -> pretty_midi.PrettyMIDI:
    """Move the notes to other instruments: of the same family, other basses, other drum kits.

    Basses and kits change to those that composed songs never use, so that a model trained on these
    has not heard them.
    """
    changed = copy.deepcopy(midi)
    for instrument in changed.instruments:
        own = int(instrument.program)
        family = own // 8 * 8
        if instrument.is_drum:
            choices: Sequence[int] = HELD_OUT_KITS
        elif inst_class(own, False) == "Bass":
            choices = HELD_OUT_BASS
        else:
            choices = range(family, family + 8)
        instrument.program = int(rng.choice([program for program in choices if program != own]))
    return changed


def stem_groups(midi: pretty_midi.PrettyMIDI) -> list[list[pretty_midi.Instrument]]:
    """Group instruments into stems: all drums together, every other instrument alone."""
    drums = [instrument for instrument in midi.instruments if instrument.is_drum]
    groups = [[instrument] for instrument in midi.instruments if not instrument.is_drum]
    return [*groups, drums] if drums else groups


def tidy(
    notes: Sequence[pretty_midi.Note], *, alone: bool = False, apart: float = 0.0
) -> list[pretty_midi.Note]:
    """End every note before the next one of its pitch begins.

    Args:
        notes: In any order; they are changed in place.
        alone: One note at a time: every note ends before the next one of any pitch.
        apart: Of notes that begin within so many seconds, the loudest stays.

    Returns:
        The notes by onset.
    """
    kept: dict[int, list[pretty_midi.Note]] = {}
    for note in sorted(notes, key=lambda note: (note.start, note.pitch, -note.velocity)):
        voice = kept.setdefault(0 if alone else note.pitch, [])
        if voice and note.start - voice[-1].start <= apart:
            voice[-1] = max(voice[-1], note, key=lambda note: note.velocity)
            continue
        if voice:
            voice[-1].end = min(voice[-1].end, note.start)
        voice.append(note)
    return sorted(itertools.chain(*kept.values()), key=lambda note: (note.start, note.pitch))


def _shifted(changes: list[Any], start: float, seconds: float) -> list[Any]:
    """Move earlier changes to the start, in order, since they still apply there."""
    kept = []
    for change in sorted(changes, key=lambda change: change.time):
        if change.time < start + seconds:
            change = copy.copy(change)
            change.time = max(0.0, change.time - start)
            kept.append(change)
    return kept
