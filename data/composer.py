"""Compose songs from a seed: drums, bass and a few more parts over a chord progression.

They exist so that the whole system can be trained and tested anywhere without a download. Every
part draws from its own random stream: leaving one out changes none of the others.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import pretty_midi

from data.parts import WRITERS, Bar, Hit, Song

PARTS = ("bass", "drums", "piano", "guitar", "strings")

# Programs and kits kept out of here are the ones that `midi.reorchestrate` changes to.
BASS_PROGRAMS = (32, 33, 34, 36, 38)
DRUM_KITS = (0, 8, 16, 25, 40)
_PROGRAMS = {
    "bass": BASS_PROGRAMS,
    "drums": DRUM_KITS,
    "piano": (0, 1, 2, 3, 4, 5),
    "guitar": (24, 25, 26, 27, 29, 30),
    "strings": (48, 49, 50, 52, 88, 89, 90),
}
_PRESENCE = {"guitar": 0.6, "strings": 0.5}  # the other parts play in every song

_SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
}
_PROGRESSIONS = (  # scale degrees, one chord a bar
    (0, 4, 5, 3),
    (0, 5, 3, 4),
    (0, 3, 4, 3),
    (0, 3, 0, 4),
    (5, 3, 0, 4),
    (1, 4, 0, 0),
    (0, 2, 3, 4),
    (0, 6, 5, 6),
    (0, 0, 3, 4),
    (0, 6, 3, 0),
    (3, 4, 2, 5),
    (0, 5, 1, 4),
)


def compose(
    seed: int | Sequence[int], seconds: float, *, parts: Sequence[str] = PARTS
) -> pretty_midi.PrettyMIDI:
    """A song of a given length.

    Args:
        seed: One or several integers >= 0. The same seed is the same song, note for note; a longer
            one begins with another plan.
        seconds: Length; notes are cut at the end.
        parts: Which of `PARTS` to write. Guitar and strings sit out some songs.

    Returns:
        One instrument per part, in the order of `PARTS`, named after it.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or not parts:
        raise ValueError(f"parts are {list(parts)}, expected some of {', '.join(PARTS)}")
    if not 1 <= seconds < math.inf:
        raise ValueError(f"seconds is {seconds}, expected at least 1")
    song = _plan(_stream(seed, "plan"), seconds)
    midi = pretty_midi.PrettyMIDI(resolution=960, initial_tempo=song.tempo)
    beats = song.steps // 4
    midi.time_signature_changes.append(pretty_midi.TimeSignature(beats, 4, 0.0))
    for part in PARTS:
        rng = _stream(seed, part)
        absent = rng.random() > _PRESENCE.get(part, 1.0)
        program = int(rng.choice(_PROGRAMS[part]))
        if part not in parts or absent:
            continue
        bars = WRITERS[part](song, rng)
        instrument = pretty_midi.Instrument(program, is_drum=part == "drums", name=part)
        instrument.notes = _perform(song, bars, part, rng, seconds)
        midi.instruments.append(instrument)
    return midi


def _stream(seed: int | Sequence[int], name: str) -> np.random.Generator:
    numbers = [seed] if isinstance(seed, int) else list(seed)
    return np.random.default_rng([*numbers, zlib.crc32(name.encode())])


def _plan(rng: np.random.Generator, seconds: float) -> Song:
    """Tempo, metre, key, form and harmony."""
    tempo = float(np.clip(rng.normal(116, 28), 72, 176))
    steps = 12 if rng.random() < 0.08 else 16
    swing = float(rng.uniform(0.06, 0.16)) if rng.random() < 0.3 else 0.0
    scale = _SCALES[str(rng.choice(list(_SCALES)))]
    tonic = int(rng.integers(12))
    song = Song(tempo, steps, swing, tuple((tonic + degree) % 12 for degree in scale))
    n_bars = math.ceil(seconds / (steps / 4 * 60 / tempo)) + 1
    sevenths = bool(rng.random() < 0.35)
    harmony = {
        kind: _PROGRESSIONS[int(rng.integers(len(_PROGRESSIONS)))]
        for kind in ("verse", "chorus", "bridge")
    }
    degrees: list[tuple[str, int, bool, bool, frozenset[str]]] = []
    unit = 8 if n_bars >= 40 else 4
    for number, kind in enumerate(_form(rng)):
        if len(degrees) > n_bars:
            break
        length = unit if kind in ("verse", "chorus") else unit // 2
        resting = _rests(rng, kind, length, first=number == 0, short=n_bars < 8)
        pattern = harmony.get(kind, harmony["verse"])
        for bar in range(length):
            degree = pattern[bar % 4]
            degrees.append((kind, degree, bar == 0, bar == length - 1, resting[bar]))
    size = 4 if sevenths else 3
    for number, (kind, degree, opens, closes, resting_now) in enumerate(degrees[:n_bars]):
        chord = tuple(song.scale[(degree + 2 * third) % 7] for third in range(size))
        following = song.scale[degrees[number + 1][1]]
        song.bars.append(Bar(number, kind, chord[0], chord, following, opens, closes, resting_now))
    return song


def _form(rng: np.random.Generator) -> Iterator[str]:
    """Yield kinds of sections without end."""
    if rng.random() < 0.6:
        yield "intro"
    while True:
        yield "verse"
        if rng.random() < 0.4:
            yield "break"
        yield "chorus"
        if rng.random() < 0.5:
            yield str(rng.choice(["bridge", "break"]))


def _rests(
    rng: np.random.Generator, kind: str, length: int, *, first: bool, short: bool
) -> list[frozenset[str]]:
    """Choose the parts that rest in each bar: one for a bar or two, in breaks and some intros.

    The others may sit out a section, but not the first; a short song has everybody playing.
    """
    quiet = [set[str]() for _ in range(length)]
    if kind == "break" or (first and rng.random() < 0.5):
        part = str(rng.choice(["bass", "drums"]))
        for bar in range(min(length, int(rng.integers(1, 3)))):
            quiet[bar].add(part)
    for part in ("piano", "guitar", "strings"):
        if rng.random() < 0.2 and not first:
            for resting in quiet:
                resting.add(part)
    return [frozenset() if short else frozenset(resting) for resting in quiet]


def _perform(
    song: Song,
    bars: list[list[Hit]],
    part: str,
    rng: np.random.Generator,
    seconds: float,
) -> list[pretty_midi.Note]:
    """Convert notes to seconds, with a player's timing and touch."""
    lag, spread = rng.normal(0, 0.004), rng.uniform(0.002, 0.008)
    notes = []
    for bar, hits in zip(song.bars, bars, strict=True):
        if part in bar.resting:
            continue
        for hit in hits:
            start = song.time(bar.number, hit.step) + lag + rng.normal(0, spread)
            end = song.time(bar.number, hit.step + hit.length) + lag
            velocity = round(float(np.clip(hit.velocity + rng.normal(0, 6), 20, 127)))
            start = max(0.0, start)
            end = min(seconds, max(end, start + 0.03))
            if end - start >= 0.02:
                notes.append(pretty_midi.Note(velocity, hit.pitch, start, end))
    return sorted(notes, key=lambda note: (note.start, note.pitch))
