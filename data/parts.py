"""The notes of each instrument of a composed song, bar by bar.

A part is written as one list of hits per bar of the song, in sixteenths; `data.composer` plans the
song and performs the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

_BASS_STYLES = (
    "root_fifth",
    "walking",
    "octave",
    "pump",
    "syncopated",
    "arpeggio",
    "sustained",
    "riff",
)

KINDS = ("intro", "verse", "chorus", "bridge", "break")  # of sections

_KICK, _SNARE, _RIM, _CLAP, _TAMBOURINE, _SHAKER = 36, 38, 37, 39, 54, 70
_CLOSED, _PEDAL, _OPEN, _RIDE, _BELL = 42, 44, 46, 51, 53
_CRASHES, _TOMS = (49, 57), (50, 48, 47, 45, 43, 41)
_LEVELS = {"X": 112, "x": 92, "o": 46}

_GROOVES = {  # (kick, snare), sixteen steps: X accent, x normal, o ghost
    "rock": ("X.......X.x.....", "....X.......X..."),
    "push": ("X.....x.X.......", "....X.......X..."),
    "four": ("X...X...X...X...", "....X.......X..."),
    "half": ("X.........x.....", "........X......."),
    "funk": ("X..x..x...X..x..", "....X..o.o..X..o"),
    "break": ("X.X.......XX....", "....X..o.o..X..."),
    "train": ("X...X...X...X...", "oooxooxooooxooxo"),
    "ballad": ("X.......x.......", "....x.......x..."),
    "motown": ("X.x...x.X.x...x.", "x...x...x...x..."),
    "latin": ("X..xX..xX..xX..x", "x..x..x...x..x.."),
    "hiphop": ("X......x..X.....", "....X.......X..o"),
    "dnb": ("X.........X.....", "....X..o.o..X..."),
}
_WALTZES = {  # twelve steps
    "waltz": ("X...........", "....x...x..."),
    "three": ("X.....x.....", "........X..."),
}
_CYMBALS = {  # closed pattern, open pattern; repeated to fill the bar
    "eighths": ("X.x.", "...."),
    "quarters": ("X...", "...."),
    "sixteenths": ("XoxoxoXo", "........"),
    "offbeat": ("x...", "..X."),
    "gallop": ("X.ox", "...."),
    "none": ("....", "...."),
}
_CHORD_RHYTHMS = (
    "X...............",
    "X.......x.......",
    "X...x...x...x...",
    "..x...x...x...x.",
    "X..x..x.........",
    "X..x..x...x.x...",
    "X.x.x.x.x.x.x.x.",
)


class Hit(NamedTuple):
    """A note in a bar: start and length in sixteenths."""

    step: float
    length: float
    pitch: int
    velocity: float
    slide: float = 0.0  # semitones from the pitch at which it starts


@dataclass(frozen=True)
class Bar:
    """One bar of the plan."""

    number: int
    kind: str  # intro, verse, chorus, bridge, break
    root: int  # pitch class of the chord
    chord: tuple[int, ...]  # pitch classes, root first
    next_root: int
    opens: bool  # first bar of a section
    closes: bool  # last bar of a section
    resting: frozenset[str]
    level: float = 1.0  # factor of all velocities


@dataclass(frozen=True)
class Song:
    """Values that all parts share."""

    tempo: float
    steps: int  # sixteenths in a bar
    swing: float  # how much later the second eighth of a beat comes, in beats
    scale: tuple[int, ...]  # pitch classes, tonic first
    metre: tuple[int, int] = (4, 4)
    bars: list[Bar] = field(default_factory=list)

    def time(self, bar: int, step: float) -> float:
        """Seconds from the start of the song."""
        beat, within = divmod(step / 4, 1)
        late = 2 * self.swing * (within if within < 0.5 else 1 - within)
        return (bar * self.steps / 4 + beat + within + late) * 60 / self.tempo


def _drums(song: Song, rng: np.random.Generator) -> list[list[Hit]]:
    """One groove with its cymbals per kind of section; fills, crashes and small changes."""
    grooves = _WALTZES if song.steps == 12 else _GROOVES
    main = str(rng.choice(list(grooves)))
    styles = {}
    for kind in KINDS:
        groove = main if rng.random() < 0.6 else str(rng.choice(list(grooves)))
        cymbals = str(rng.choice(list(_CYMBALS), p=[0.36, 0.12, 0.16, 0.16, 0.14, 0.06]))
        cymbal = _RIDE if rng.random() < (0.5 if kind == "chorus" else 0.15) else _CLOSED
        styles[kind] = (grooves[groove], _CYMBALS[cymbals], cymbal)
    backbeat = int(rng.choice([_SNARE, _SNARE, _SNARE, 40, _RIM]))
    kick = int(rng.choice([_KICK, 35]))
    extra = int(rng.choice([0, 0, 0, _TAMBOURINE, _SHAKER, _CLAP]))
    fill_chance = rng.uniform(0.5, 1.0)
    bars = []
    after_fill = True
    for bar in song.bars:
        (kicks, snares), (closed, opened), cymbal = styles[bar.kind]
        hits = strokes(kicks, kick, song.steps) + strokes(snares, backbeat, song.steps)
        hits += strokes(closed, cymbal, song.steps, 0.78)
        hits += strokes(opened, _OPEN if cymbal == _CLOSED else _BELL, song.steps, 0.8)
        if extra == _CLAP:
            hits += strokes("....x...", _CLAP, song.steps)
        elif extra:
            hits += strokes("x.o.", extra, song.steps, 0.7)
        if rng.random() < 0.25:
            hits.append(Hit(float(rng.integers(song.steps)), 1, kick, 80))
        if rng.random() < 0.15:
            hits.append(Hit(song.steps - 2.0, 2, _OPEN, 88))
        hits = [hit for hit in hits if hit.velocity > 85 or rng.random() > 0.06]
        if bar.closes and rng.random() < fill_chance:
            length = int(rng.choice([4, 4, 8, song.steps]))
            hits = [hit for hit in hits if hit.step < song.steps - length]
            hits += fill(rng, song.steps - length, length, kick, backbeat)
        if bar.opens and (after_fill or rng.random() < 0.3):
            hits.append(Hit(0, 4, int(rng.choice(_CRASHES)), 112))
        after_fill = bar.closes
        bars.append(once(hits))
    return bars


def strokes(pattern: str, pitch: int, steps: int, scale: float = 1.0) -> list[Hit]:
    """Return the hits of a pattern (`X` accent, `x` normal, `o` ghost), repeated to fill a bar."""
    return [
        Hit(step, 1, pitch, _LEVELS[pattern[step % len(pattern)]] * scale)
        for step in range(steps)
        if pattern[step % len(pattern)] != "."
    ]


def fill(rng: np.random.Generator, start: int, length: int, kick: int, snare: int) -> list[Hit]:
    """Snare and toms, mostly downwards, getting louder."""
    hits = []
    stride = int(rng.choice([1, 1, 2]))
    rolling = rng.random() < 0.3
    for step in range(0, length, stride):
        if step > 0 and rng.random() < 0.2:
            continue
        place = step / length
        drum = _TOMS[min(5, int(place * 6 + rng.integers(0, 2)))]
        pitch = snare if rolling or rng.random() < 0.25 else drum
        hits.append(Hit(start + step, 1, pitch, 78 + 36 * place))
        if step % 4 == 0 and rng.random() < 0.5:
            hits.append(Hit(start + step, 1, kick, 100))
    return hits


def once(hits: list[Hit]) -> list[Hit]:
    """Keep the loudest hit of each drum at each step."""
    best: dict[tuple[float, int], Hit] = {}
    for hit in sorted(hits, key=lambda hit: -hit.velocity):
        best.setdefault((hit.step, hit.pitch), hit)
    return sorted(best.values())


def _bass(song: Song, rng: np.random.Generator) -> list[list[Hit]]:
    """A style per kind of section; roots move to the nearest octave in the bass's range."""
    main = str(rng.choice(_BASS_STYLES))
    styles, rhythms = {}, {}
    for kind in KINDS:
        styles[kind] = main if rng.random() < 0.5 else str(rng.choice(_BASS_STYLES))
        rhythms[kind] = _bass_rhythm(rng, song.steps)
    center = int(rng.integers(33, 38))
    legato = rng.uniform(0.6, 1.0)
    bars = []
    root = center
    for bar in song.bars:
        root = nearest(bar.root, (root + center) // 2, 28, 43)
        line = _bass_bar(song, bar, styles[bar.kind], rhythms[bar.kind], root, rng)
        following = nearest(bar.next_root, root, 28, 43)
        if rng.random() < 0.25 and line and line[-1].step >= song.steps - 4:
            line[-1] = line[-1]._replace(pitch=following + int(rng.choice([-2, -1, 1, 2])))
        bars.append(
            [h._replace(length=h.length * legato, pitch=min(60, max(26, h.pitch))) for h in line]
        )
    return bars


def _bass_rhythm(rng: np.random.Generator, steps: int) -> list[tuple[int, int]]:
    """A syncopated bar: (step, index of a chord interval) with a note on the first beat."""
    weights = np.resize([0.55, 0.18, 0.5, 0.25], steps)
    places = [0, *(step for step in range(1, steps) if rng.random() < weights[step])]
    return [(step, int(rng.choice(6, p=[0.5, 0.16, 0.14, 0.08, 0.06, 0.06]))) for step in places]


def _bass_bar(
    song: Song,
    bar: Bar,
    style: str,
    rhythm: list[tuple[int, int]],
    root: int,
    rng: np.random.Generator,
) -> list[Hit]:
    third, fifth = (root + (bar.chord[i] - bar.root) % 12 for i in (1, 2))
    octave = root + 12
    tones = [root, third, fifth, octave]
    steps = song.steps

    def line(pitches: Sequence[int], every: int) -> list[Hit]:
        return [
            Hit(step, every, pitches[index % len(pitches)], 104 if step % 8 == 0 else 90)
            for index, step in enumerate(range(0, steps, every))
        ]

    if style == "root_fifth":
        return line([root, fifth if rng.random() < 0.8 else octave], 8 if steps == 16 else 4)
    if style == "walking":
        beats = steps // 4
        target = nearest(bar.next_root, root, 28, 43)
        middle = [int(rng.choice(tones)) for _ in range(beats - 2)]
        return line([root, *middle, target + int(rng.choice([-1, 1, -2, 2]))], 4)
    if style == "octave":
        return line([root, octave], 2)
    if style == "pump":
        return line([root] * 7 + [fifth if rng.random() < 0.4 else root], 2)
    if style == "arpeggio":
        return line([root, third, fifth, octave, fifth, third], 2)
    if style == "sustained":
        return line([root], steps if rng.random() < 0.5 else 8)
    below = root - 5 if root > 33 else fifth
    if style == "riff":  # the same intervals in every bar, on the scale
        pitches = [root, fifth, octave, third, below, root + 10]
    else:
        pitches = [root, octave, root, fifth, below, third]
    ends = [step for step, _ in rhythm[1:]] + [steps]
    return [
        Hit(step, min(end - step, 4), pitches[choice], 106 if step % 4 == 0 else 88)
        for (step, choice), end in zip(rhythm, ends, strict=True)
    ]


def nearest(pitch_class: int, around: int, lowest: int, highest: int) -> int:
    """Return the pitch of a class nearest to another pitch, within a range of an octave or more."""
    pitches = [pitch for pitch in range(lowest, highest + 1) if pitch % 12 == pitch_class % 12]
    return min(pitches, key=lambda pitch: abs(pitch - around))


def _chords(
    song: Song, rng: np.random.Generator, center: int, styles: Sequence[str]
) -> list[list[Hit]]:
    """Chords near a pitch: struck in a rhythm, broken, strummed or held."""
    manners = {}
    for kind in KINDS:
        rhythm = _CHORD_RHYTHMS[int(rng.integers(len(_CHORD_RHYTHMS)))]
        manners[kind] = (str(rng.choice(list(styles))), rhythm)
    level = rng.uniform(66, 92)
    bars = []
    for bar in song.bars:
        style, rhythm = manners[bar.kind]
        voicing = sorted(nearest(tone, center, center - 7, center + 8) for tone in bar.chord)
        if style == "held":
            hits = [Hit(0, song.steps, pitch, level) for pitch in voicing]
        elif style == "broken":
            order = [*voicing, *voicing[-2:0:-1]]
            hits = [
                Hit(step, 4, order[step // 2 % len(order)], level + (10 if step % 8 == 0 else 0))
                for step in range(0, song.steps, 2)
            ]
        else:
            spread = 0.12 if style == "strummed" else 0.0
            struck = strokes(rhythm, 0, song.steps)
            ends = [stroke.step for stroke in struck[1:]] + [song.steps]
            hits = [
                Hit(stroke.step + spread * voice, (end - stroke.step) * 0.9, pitch, level)
                for stroke, end in zip(struck, ends, strict=True)
                for voice, pitch in enumerate(voicing)
            ]
        bars.append(hits)
    return bars


WRITERS = {
    "bass": _bass,
    "drums": _drums,
    "piano": lambda song, rng: _chords(song, rng, 62, ("struck", "broken", "held")),
    "guitar": lambda song, rng: _chords(song, rng, 55, ("strummed", "strummed", "broken")),
    "strings": lambda song, rng: _chords(song, rng, 67, ("held",)),
}
