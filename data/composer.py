"""Compose songs from a seed: drums, bass and a few more parts over a chord progression.

They exist so that the whole system can be trained and tested anywhere without a download. Every
part draws from its own random stream: leaving one out changes none of the others.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pretty_midi

from data import wide
from data.groove import Performance, Take
from data.midi import tidy
from data.parts import WRITERS, Bar, Hit, Song
from jukebox_core.checks import require_choice

PARTS = ("bass", "drums", "piano", "guitar", "strings")
Style = Literal["plain", "wide"]
STYLES: tuple[Style, ...] = ("plain", "wide")

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

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
}
PROGRESSIONS = (  # scale degrees, one chord a bar
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
    seed: int | Sequence[int],
    seconds: float,
    *,
    parts: Sequence[str] = PARTS,
    style: Style = "plain",
    take: Take | None = None,
) -> pretty_midi.PrettyMIDI:
    """A song of a given length.

    Args:
        seed: One or several integers >= 0. The same seed is the same song, note for note; a longer
            one begins with another plan in the plain style, with the same in the wide style.
        seconds: Length; notes are cut at the end.
        parts: Which of `PARTS` to write. Guitar and strings sit out some songs.
        style: `wide` has more tempos, metres, grooves, articulations and dynamics than `plain`
            (see `data.wide`).
        take: The drum part, if it is not composed. The other parts follow it.

    Returns:
        One instrument per part, in the order of `PARTS`, named after it.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or not parts:
        raise ValueError(f"parts are {list(parts)}, expected some of {', '.join(PARTS)}")
    if not 1 <= seconds < math.inf:
        raise ValueError(f"seconds is {seconds}, expected at least 1")
    require_choice("style", style, STYLES)
    take_rng = _stream(seed, "take")
    performance = None if take is None else Performance(take, seconds, take_rng)
    song = _plan(_stream(seed, "plan"), seconds, style, take)
    writers = WRITERS | (wide.WRITERS if style == "wide" else {})
    midi = pretty_midi.PrettyMIDI(resolution=960, initial_tempo=song.tempo)
    midi.time_signature_changes.append(pretty_midi.TimeSignature(*song.metre, 0.0))
    for part in PARTS:
        rng = _stream(seed, part)
        absent = rng.random() > _PRESENCE.get(part, 1.0)
        program = int(rng.choice(_PROGRAMS[part]))
        if part not in parts or absent:
            continue
        instrument = pretty_midi.Instrument(program, is_drum=part == "drums", name=part)
        midi.instruments.append(instrument)
        if performance and part == "drums":
            instrument.notes = performance.notes
            continue
        bars = writers[part](song, rng)
        if performance and part == "bass":
            bars = performance.lock(song, bars, take_rng)
        if style == "wide":  # the writer took as many numbers as the song has bars
            rng = _stream(seed, f"touch of {part}")
        played = _perform(song, bars, part, rng, seconds, style, performance)
        instrument.notes = [note for note, _ in played]
        instrument.pitch_bends = wide.glides(played)
    return midi


def _stream(seed: int | Sequence[int], name: str) -> np.random.Generator:
    numbers = [seed] if isinstance(seed, int) else list(seed)
    return np.random.default_rng([*numbers, zlib.crc32(name.encode())])


def _plan(rng: np.random.Generator, seconds: float, style: Style, take: Take | None) -> Song:
    """Tempo, metre, key, form and harmony."""
    if style == "wide":
        tempo, metre, swing = wide.time(rng)
    else:
        tempo = float(np.clip(rng.normal(116, 28), 72, 176))
        metre = (3, 4) if rng.random() < 0.08 else (4, 4)
        swing = float(rng.uniform(0.06, 0.16)) if rng.random() < 0.3 else 0.0
    if take is not None:
        tempo, metre, swing = take.bpm, take.metre, 0.0  # its hits swing
    steps = metre[0] * 16 // metre[1]
    scale = SCALES[str(rng.choice(list(SCALES)))]
    tonic = int(rng.integers(12))
    song = Song(tempo, steps, swing, tuple((tonic + degree) % 12 for degree in scale), metre)
    n_bars = math.ceil(seconds / (steps / 4 * 60 / tempo)) + 1
    sevenths = bool(rng.random() < 0.35)
    harmony = {
        kind: PROGRESSIONS[int(rng.integers(len(PROGRESSIONS)))]
        for kind in ("verse", "chorus", "bridge")
    }
    bars: list[tuple[int, str, bool, bool, frozenset[str], float]] = []
    sections = wide.sections(rng, _form(rng)) if style == "wide" else _sections(rng, n_bars)
    for kind, resting, levels in sections:
        if len(bars) > n_bars:
            break
        pattern, last = harmony.get(kind, harmony["verse"]), len(resting) - 1
        for bar, (silent, level) in enumerate(zip(resting, levels, strict=True)):
            bars.append((pattern[bar % 4], kind, bar == 0, bar == last, silent, level))
    size = 4 if sevenths else 3
    for number, (degree, kind, opens, closes, silent, level) in enumerate(bars[:n_bars]):
        chord = tuple(song.scale[(degree + 2 * third) % 7] for third in range(size))
        following = song.scale[bars[number + 1][0]]
        song.bars.append(
            Bar(number, kind, chord[0], chord, following, opens, closes, silent, level)
        )
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


def _sections(
    rng: np.random.Generator, n_bars: int
) -> Iterator[tuple[str, list[frozenset[str]], list[float]]]:
    """Yield sections without end: the kind, the parts that rest in each bar, a level per bar."""
    unit = 8 if n_bars >= 40 else 4
    for number, kind in enumerate(_form(rng)):
        length = unit if kind in ("verse", "chorus") else unit // 2
        resting = _rests(rng, kind, length, first=number == 0, short=n_bars < 8)
        yield kind, resting, [1.0] * length


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
    style: Style,
    drums: Performance | None,
) -> list[tuple[pretty_midi.Note, float]]:
    """Convert notes to seconds, with a player's timing and touch; return them with their slides."""
    lag, spread = rng.normal(0, 0.004), rng.uniform(0.002, 0.008)
    lags = wide.limbs(rng, lag) if style == "wide" and part == "drums" else {}
    softest = 8 if style == "wide" else 20
    notes, slides = [], {}
    for bar, hits in zip(song.bars, bars, strict=True):
        if part in bar.resting:
            continue
        for hit in hits:
            time, accent = song.time(bar.number, hit.step), 0.0
            if drums:
                time, accent = drums.attract(time)
            start = time + lags.get(hit.pitch, lag) + rng.normal(0, spread)
            end = song.time(bar.number, hit.step + hit.length) + lag
            loudness = hit.velocity * bar.level + accent + rng.normal(0, 6)
            velocity = round(float(np.clip(loudness, softest, 127)))
            start = max(0.0, start)
            end = min(seconds, max(end, start + 0.03))
            if end - start >= 0.02:
                note = pretty_midi.Note(velocity, hit.pitch, start, end)
                notes.append(note)
                slides[id(note)] = hit.slide
    if style == "wide" or drums:
        notes = tidy(notes, alone=part == "bass", apart=0.02)
    else:
        notes.sort(key=lambda note: (note.start, note.pitch))
    return [(note, slides[id(note)]) for note in notes]
